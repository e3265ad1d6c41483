//! The two command lines; the only importer of clap and anyhow.
//!
//! A command parses, calls the layers below, and prints: facts to standard output (as text or with
//! `--json` as one JSON document), one sentence per failure to standard error. Every failure leaves
//! through [`exit::report`], which alone knows the exit codes.

pub mod ctl;
pub mod exit;
pub mod mount;

mod cat;
#[cfg(feature = "aws")]
mod confirm;
mod doctor;
mod estimate;
mod export;
mod info;
mod init;
mod key;
mod kms;
mod mounted;
mod output;
mod progress;
#[cfg(feature = "aws")]
mod provision;
mod reader;
mod recover;
mod secrets;
mod tree;
mod verify;
