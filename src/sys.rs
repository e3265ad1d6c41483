//! The only file with `unsafe`: memory locking, core-dump control, wiping, and the few system calls
//! that the safe wrappers do not offer.
//!
//! Secrets live in [`Locked`] slots: pages of our own, locked in memory, left out of core dumps,
//! each slot wiped when it is freed. Locks do not survive `fork`, so a daemon forks before it
//! unlocks keys.
#![allow(unsafe_code)]

pub mod logging;
pub mod process;

use parking_lot::Mutex;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

/// Forbids core dumps of this process and, except to root, reading its memory through `/proc`
/// and `ptrace`.
pub fn harden_process() -> std::io::Result<()> {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Overwrites the bytes of a value that has no `Drop` and leaves it logically uninitialised, which
/// is why it is asked for as [`MaybeUninit`]. The stores are volatile: the compiler may not omit
/// them.
pub fn wipe<T>(value: &mut MaybeUninit<T>) {
    let len = size_of::<T>();
    // SAFETY: the reference is valid for `size_of::<T>()` writable bytes, and a `MaybeUninit` may
    // hold any bytes afterwards.
    unsafe { wipe_raw(value.as_mut_ptr().cast(), len) }
}

/// Overwrites 4 KiB of stack below the caller, where calls that have returned and by-value moves
/// leave copies that no `Drop` reaches. Best effort: the compiler owns the stack.
#[inline(never)]
pub fn scrub_stack() {
    let mut frame = MaybeUninit::<[u64; 512]>::uninit();
    wipe(&mut frame);
    std::hint::black_box(&mut frame);
}

/// Volatile zeros over a range.
///
/// # Safety
/// `start..start + len` is valid for writes, and nobody reads it as anything but bytes afterwards.
unsafe fn wipe_raw(start: *mut u8, len: usize) {
    let aligned = start.align_offset(align_of::<u64>()) == 0;
    let words = if aligned { len / size_of::<u64>() } else { 0 };
    for i in 0..words {
        // SAFETY: aligned (checked above), within the range the caller vouches for.
        unsafe { start.cast::<u64>().add(i).write_volatile(0) }
    }
    for i in words * size_of::<u64>()..len {
        // SAFETY: within the range the caller vouches for.
        unsafe { start.add(i).write_volatile(0) }
    }
    compiler_fence(Ordering::SeqCst);
}

/// The system's allocator, except that threads which asked for it wipe what they free.
struct Allocator;

thread_local! {
    // Neither allocates nor has a destructor, so it may be read from within the allocator at any time.
    static WIPES: Cell<bool> = const { Cell::new(false) };
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// From now on memory that this thread frees is wiped first. For threads on which libraries handle
/// secrets in buffers of their own.
pub fn wipe_what_this_thread_frees() {
    WIPES.set(true);
}

// SAFETY: every request is handed to the system's allocator as it came; what is added writes only to
// a block that its owner has just given up.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if WIPES.get() {
            // SAFETY: the block is `layout.size()` bytes long and nobody's any more.
            unsafe { wipe_raw(block, layout.size()) }
        }
        // SAFETY: the caller's promises about block and layout are passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !WIPES.get() {
            // SAFETY: the caller's promises are passed on.
            return unsafe { System.realloc(block, layout, size) };
        }
        // The system's own may leave the old place behind as it was.
        // SAFETY: the caller promises that `size`, rounded up to the alignment, is a valid size.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: `size` is not zero, which the caller promises as well.
        let new = unsafe { System.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both blocks are at least that long, and a new block overlaps no other.
            unsafe { std::ptr::copy_nonoverlapping(block, new, layout.size().min(size)) }
            // SAFETY: the old block came from this allocator with this layout; it is not used again.
            unsafe { self.dealloc(block, layout) }
        }
        new
    }
}

/// Slot sizes in bytes, ascending. From 64 on all are multiples of 64, the alignment of a slot.
const CLASSES: [usize; 10] = [32, 64, 128, 192, 256, 384, 512, 640, 1024, 2048];
/// Bytes mapped at a time.
const CHUNK: usize = 16 * 1024;

/// A free slot. Owns its bytes.
struct Slot(NonNull<u8>);
// SAFETY: a slot is plain memory that whoever holds the `Slot` owns alone.
unsafe impl Send for Slot {}

/// Free slots by class. Chunks are never unmapped: their number is bounded by the peak use.
static FREE: [Mutex<Vec<Slot>>; CLASSES.len()] = [const { Mutex::new(Vec::new()) }; CLASSES.len()];

/// Index into [`CLASSES`] of the smallest slot that holds a `T`; fails to compile for too large
/// types.
const fn class_of<T>() -> usize {
    let mut i = 0;
    while i < CLASSES.len() {
        let align = if CLASSES[i] < 64 { CLASSES[i] } else { 64 };
        if size_of::<T>() <= CLASSES[i] && align_of::<T>() <= align {
            return i;
        }
        i += 1;
    }
    panic!("type too large for a locked slot")
}

/// An all-zero slot.
fn take_slot(class: usize) -> NonNull<u8> {
    let mut free = FREE[class].lock();
    if let Some(slot) = free.pop() {
        return slot.0;
    }
    let chunk = map_chunk();
    let size = CLASSES[class];
    for i in 1..CHUNK / size {
        // SAFETY: i * size + size <= CHUNK, so the slot lies inside the chunk just mapped.
        free.push(Slot(unsafe { chunk.add(i * size) }));
    }
    chunk
}

/// Wipes a slot and puts it back.
///
/// # Safety `slot` came from `take_slot(class)`, is not used again, and holds nothing that still
/// needs a drop.
unsafe fn give_slot(slot: NonNull<u8>, class: usize) {
    // SAFETY: a slot is CLASSES[class] bytes long and, by the contract above, ours alone.
    unsafe { wipe_raw(slot.as_ptr(), CLASSES[class]) }
    #[cfg(test)]
    // SAFETY: as above; the bytes were just written.
    hook::record(unsafe { std::slice::from_raw_parts(slot.as_ptr(), CLASSES[class]) });
    FREE[class].lock().push(Slot(slot));
}

/// Maps a zeroed chunk, locked and undumped. Without the memory lock it warns once and goes on.
fn map_chunk() -> NonNull<u8> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an anonymous private mapping at an address the kernel chooses touches no other
    // memory.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), CHUNK, prot, MapFlags::PRIVATE) };
    let Some(chunk) = mapped.ok().and_then(|p| NonNull::new(p.cast::<u8>())) else {
        std::alloc::handle_alloc_error(Layout::new::<[u8; CHUNK]>());
    };
    static WARNED: Once = Once::new();
    // SAFETY: the range is exactly the mapping made above; neither call changes its contents.
    let locked = unsafe { mlock(chunk.as_ptr().cast(), CHUNK) };
    if let Err(e) = locked {
        WARNED.call_once(|| {
            log::warn!(
                "cannot lock key memory ({e}): keys may reach swap space; raise the locked-memory \
                 limit (ulimit -l, LimitMEMLOCK=) or encrypt swap"
            );
        });
    }
    // SAFETY: the range is exactly the mapping made above; DONTDUMP does not change its contents.
    let hidden = unsafe { madvise(chunk.as_ptr().cast(), CHUNK, Advice::LinuxDontDump) };
    if let Err(e) = hidden {
        log::debug!("cannot leave key memory out of core dumps: {e}");
    }
    chunk
}

/// A value in a locked, undumped slot; dropped and wiped with its owner. No Debug, no Clone.
pub struct Locked<T> {
    ptr: NonNull<T>,
}

// SAFETY: `Locked<T>` owns its value like a `Box<T>`.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: shared access gives only `&T`, as with a `Box<T>`.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    const CLASS: usize = class_of::<T>();

    /// Moves a value into a slot and wipes the copy left behind in this call.
    pub fn new(value: T) -> Self {
        let mut value = MaybeUninit::new(value);
        let ptr = take_slot(Self::CLASS).cast::<T>();
        // SAFETY: the slot is ours, large and aligned enough for T (`class_of`), and does not
        // overlap the local. The local is never read again, so the value is not duplicated.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), ptr.as_ptr(), 1) }
        wipe(&mut value);
        Self { ptr }
    }
}

impl<const N: usize> Locked<[u8; N]> {
    /// All zero, to be filled in place.
    pub fn zeroed() -> Self {
        // A free slot is all zero, which is a valid array.
        Self { ptr: take_slot(Self::CLASS).cast() }
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the slot holds an initialised T from construction to drop, and `&self` keeps it.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the value is initialised and dropped exactly once, here; the slot came from
        // `take_slot` with the same class and is not touched afterwards.
        unsafe {
            self.ptr.drop_in_place();
            give_slot(self.ptr.cast(), Self::CLASS);
        }
    }
}

/// Lets tests see what a freed slot holds, while the slot is still owned by the thread freeing it.
#[cfg(test)]
pub(crate) mod hook {
    use std::cell::RefCell;

    thread_local! {
        static FREED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn record(bytes: &[u8]) {
        let _ = FREED.try_with(|all| all.borrow_mut().push(bytes.to_vec()));
    }

    /// Contents, after wiping, of the slots this thread freed while `f` ran.
    pub(crate) fn freed_during(f: impl FnOnce()) -> Vec<Vec<u8>> {
        FREED.with_borrow_mut(Vec::clear);
        f();
        FREED.with_borrow_mut(std::mem::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wipe_leaves_only_zeros() {
        let mut value = MaybeUninit::new([0xa5u8; 37]);
        wipe(&mut value);
        // SAFETY: every byte pattern is a [u8; 37], and wipe wrote all of it.
        assert_eq!(unsafe { value.assume_init() }, [0u8; 37]);
    }

    /// Reads back the block just freed: the system's allocator gives it out again.
    #[test]
    fn a_thread_that_asked_for_it_wipes_what_it_frees() {
        let left_behind = || {
            let secret = vec![0xabu8; 100_003];
            let place = secret.as_ptr();
            drop(std::hint::black_box(secret));
            let again: Vec<MaybeUninit<u8>> = Vec::with_capacity(100_003);
            assert_eq!(again.as_ptr().cast(), place, "the allocator has moved on");
            // SAFETY: the block is owned, and was written as a whole by its last owner.
            let bytes = unsafe { std::slice::from_raw_parts(place, 100_003) };
            // The allocator keeps its own notes at the front.
            bytes[64..].iter().filter(|byte| **byte == 0xab).count()
        };
        assert!(left_behind() > 90_000);
        std::thread::spawn(move || {
            wipe_what_this_thread_frees();
            assert_eq!(left_behind(), 0);
            let mut growing = vec![1u8; 10];
            growing.extend([2; 100_000]);
            assert_eq!((growing[9], growing[10], growing.len()), (1, 2, 100_010));
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn a_hardened_process_is_not_dumpable() {
        harden_process().expect("limits can always be lowered");
        let core = rustix::process::getrlimit(rustix::process::Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        let dumpable = rustix::process::dumpable_behavior().expect("prctl");
        assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
    }

    #[test]
    fn a_freed_slot_is_wiped_whole() {
        let freed = hook::freed_during(|| {
            let mut slot = Locked::<[u8; 40]>::zeroed();
            slot.fill(0xee);
            assert_eq!(*slot, [0xee; 40]);
        });
        assert_eq!(freed, [vec![0u8; 64]]);
    }

    #[test]
    fn values_are_dropped_before_their_slot_is_freed() {
        struct Noisy<'a>(&'a std::cell::Cell<u32>, u64);
        impl Drop for Noisy<'_> {
            fn drop(&mut self) {
                assert_eq!(self.1, 7, "wiped before it was dropped");
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = std::cell::Cell::new(0);
        let freed = hook::freed_during(|| drop(Locked::new(Noisy(&drops, 7))));
        assert_eq!((drops.get(), freed.len()), (1, 1));
    }

    #[test]
    fn slots_are_distinct_aligned_and_zero() {
        let mut all: Vec<Locked<[u8; 32]>> = (0..1500).map(|_| Locked::zeroed()).collect();
        for (i, slot) in all.iter_mut().enumerate() {
            assert_eq!(**slot, [0; 32]);
            slot.fill(i as u8);
        }
        for (i, slot) in all.iter().enumerate() {
            assert_eq!(**slot, [i as u8; 32]);
        }
        #[repr(align(64))]
        struct Wide(#[allow(dead_code)] u8);
        let wide: Vec<_> = (0..300).map(|i| Locked::new(Wide(i as u8))).collect();
        assert!(wide.iter().all(|w| w.ptr.as_ptr().is_aligned()));
    }

    /// The kernel's own account of the mapping: `dd` = not dumped, `lo` = locked.
    #[test]
    fn slots_are_kept_out_of_core_dumps() {
        let slot = Locked::<[u8; 32]>::zeroed();
        let address = slot.ptr.as_ptr().addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("own smaps");
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            if let Some((from, to)) = range
                && let (Ok(from), Ok(to)) =
                    (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&address);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                assert!(flags.split(' ').any(|f| f == "dd"), "{flags}");
                return;
            }
        }
        panic!("the slot's mapping is not listed");
    }
}
