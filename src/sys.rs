//! The only file with `unsafe`: memory locking, core-dump control, wiping, and the few system calls
//! that the safe wrappers do not offer.
#![allow(unsafe_code)]

pub mod logging;
pub mod process;
