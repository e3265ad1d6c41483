//! Proof of the durability contract: the engine and its journal on a simulated disk that loses
//! whatever a power cut may lose.

mod backup;
mod check;
mod crash;
mod damage;
mod disk;
mod explore;
mod faults;
mod flushes;
#[allow(dead_code)]
#[path = "../store/mem.rs"]
mod mem;
#[allow(dead_code)]
#[path = "../store/model.rs"]
mod model;
#[cfg(feature = "mutations")]
mod mutations;
mod oracle;
mod random;
mod runner;
mod short;
#[allow(dead_code)]
#[path = "../store/support.rs"]
mod support;
mod threads;
mod volume;
mod world;

use std::sync::{RwLock, RwLockReadGuard};

/// Held by tests of the sound protocol; the one that makes mistakes on purpose has it alone.
static SWITCH: RwLock<()> = RwLock::new(());

fn sound() -> RwLockReadGuard<'static, ()> {
    SWITCH.read().unwrap_or_else(|e| e.into_inner())
}
