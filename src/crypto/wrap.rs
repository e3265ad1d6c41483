//! Local wrapping: passphrase and key-file derivation, SIV key wrap.
