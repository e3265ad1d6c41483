//! A fault in one handler must not take the mount down.
//!
//! A handler that panics loses its request only: its reply object is dropped while the stack
//! unwinds, which answers EIO, and the thread goes on with the next request.

use super::ops::Op;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Called with every operation before it is handled. Tests inject faults here; programs have none.
pub type Hook = Arc<dyn Fn(Op) + Send + Sync>;

/// Runs one handler. `body` owns the reply, so that unwinding answers the request.
pub fn guarded(op: Op, hook: Option<&Hook>, body: impl FnOnce()) {
    let run = || {
        if let Some(hook) = hook {
            hook(op);
        }
        body();
    };
    // Unwind safety: locks here do not poison, and the file system below keeps its invariants
    // at every point where it may fail; the request at hand is answered with EIO.
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        log::error!("{} failed by an internal fault and was answered with EIO", op.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Reply<'a>(&'a std::cell::Cell<bool>);
    impl Drop for Reply<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn a_panic_drops_the_reply_and_goes_no_further() {
        let answered = std::cell::Cell::new(false);
        let reply = Reply(&answered);
        guarded(Op::Read, None, move || {
            let _reply = reply;
            panic!("injected");
        });
        assert!(answered.get());
    }

    #[test]
    fn a_panic_of_the_hook_still_drops_the_reply() {
        let answered = std::cell::Cell::new(false);
        let reply = Reply(&answered);
        let hook: Hook = Arc::new(|op| assert_ne!(op, Op::Write, "injected"));
        guarded(Op::Write, Some(&hook), move || drop(reply));
        assert!(answered.get());
    }
}
