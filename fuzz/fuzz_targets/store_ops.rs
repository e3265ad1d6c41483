//! A file of the engine behaves like a vector of bytes; see `properties.rs`.
#![no_main]

#[path = "../properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::store_ops(data));
