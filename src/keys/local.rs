//! The local master key as a provider.
