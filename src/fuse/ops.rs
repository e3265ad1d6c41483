//! The operations the kernel may ask for, and how often it did.

use serde_json::{Map, Value};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! operations {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// An operation of the kernel protocol that this file system answers.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs)]
        pub enum Op { $($name),+ }

        impl Op {
            /// Every operation, in the order of their counters.
            pub const ALL: &'static [Op] = &[$(Op::$name),+];

            /// Name as `status` shows it.
            pub fn name(self) -> &'static str {
                match self { $(Op::$name => $text),+ }
            }
        }
    };
}

operations! {
    Lookup = "lookup", Forget = "forget", Getattr = "getattr", Setattr = "setattr",
    Readlink = "readlink", Mknod = "mknod", Mkdir = "mkdir", Unlink = "unlink", Rmdir = "rmdir",
    Symlink = "symlink", Rename = "rename", Link = "link", Open = "open", Create = "create",
    Read = "read", Write = "write", Flush = "flush", Release = "release", Fsync = "fsync",
    Opendir = "opendir", Readdir = "readdir", Readdirplus = "readdirplus",
    Releasedir = "releasedir", Fsyncdir = "fsyncdir", Statfs = "statfs", Setxattr = "setxattr",
    Getxattr = "getxattr", Listxattr = "listxattr", Removexattr = "removexattr",
    Fallocate = "fallocate", Lseek = "lseek", CopyFileRange = "copy_file_range", Ioctl = "ioctl",
    Poll = "poll",
}

/// How often each operation was asked for since the mount.
pub struct Counters {
    counts: Vec<AtomicU64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { counts: Op::ALL.iter().map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Counters {
    /// Counts one request.
    pub fn count(&self, op: Op) {
        if let Some(counter) = self.counts.get(op as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests of one kind so far.
    pub fn get(&self, op: Op) -> u64 {
        self.counts.get(op as usize).map_or(0, |c| c.load(Ordering::Relaxed))
    }

    /// All counts by name, zeros left out.
    pub fn to_json(&self) -> Value {
        let counted = Op::ALL.iter().map(|&op| (op.name(), self.get(op)));
        let counted = counted.filter(|&(_, n)| n > 0);
        Value::Object(counted.map(|(name, n)| (name.into(), n.into())).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_apart_and_zeros_left_out() {
        let counters = Counters::default();
        counters.count(Op::Read);
        counters.count(Op::Read);
        counters.count(Op::Poll);
        assert_eq!(counters.get(Op::Read), 2);
        assert_eq!(counters.get(Op::Write), 0);
        assert_eq!(counters.to_json(), serde_json::json!({"read": 2, "poll": 1}));
    }
}
