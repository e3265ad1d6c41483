//! The file engine over memory: model, call counts, faults, tampering.

mod counts;
mod faults;
mod files;
mod mem;
mod model;
mod model_test;
mod support;
mod tamper;
