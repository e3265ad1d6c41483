//! The kernel protocol: mounting, the session's life, and glue from requests to [`crate::fs`].
//!
//! The only importer of the transport library. Nothing here decides what an operation means:
//! the glue converts, calls one method of [`crate::fs::Volume`] and replies. Keys, formats and
//! backing files are unknown here.

pub mod control;
mod convert;
pub mod glue;
mod guard;
mod init;
pub mod metrics;
pub mod mount;
pub mod ops;
mod pool;
pub mod session;

pub use glue::Glue;
pub use mount::MountOptions;
pub use ops::{Counters, Op};
pub use session::{Config, SessionError, serve};
