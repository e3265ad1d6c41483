//! kmsfs: an encrypted directory behind FUSE.
//!
//! The map, from the bottom up; imports point downwards only (`tests/tidy.rs` checks it):
//!
//! | module | knows | must not know |
//! |---|---|---|
//! | [`sys`] | the unsafe corners of the system | everything else |
//! | [`format`] | bytes and arithmetic of the on-disk format | keys, files |
//! | [`crypto`] | ciphers, derivations, names | where bytes are stored |
//! | [`keys`] | providers, recipients, data-key cache and supply | files, FUSE |
//! | [`store`] | one encrypted file over [`store::Storage`] | directories, providers, FUSE |
//! | [`fs`] | the tree: inodes, handles, names, attributes, errno | the kernel protocol |
//! | [`provision`] | AWS accounts: clusters, key stores, keys, policies | the kernel, other files |
//! | [`fuse`] | the kernel protocol and the mount | everything but glue |
//! | [`cli`] | the two command lines | |
#![deny(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

pub mod cli;
pub mod crypto;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod keys;
#[cfg(feature = "aws")]
pub mod provision;
pub mod store;
pub mod sys;
