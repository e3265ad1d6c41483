//! HPKE to an X25519 public key: break-glass recipients.
