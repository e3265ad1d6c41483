//! X25519 recipients as a provider.
