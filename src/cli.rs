//! The two command lines; the only importer of clap and anyhow.
pub mod mount;
