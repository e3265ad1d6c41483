//! Glue between the kernel and [`crate::fs`]; the only importer of fuser.
