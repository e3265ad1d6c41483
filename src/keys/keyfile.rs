//! Key files and identity files on disk.
