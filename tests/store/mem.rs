//! A backing file in memory: sparse, with call counters and fault injection.

use kmsfs::store::Storage;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Mutex;

const PAGE: u64 = 4096;

/// One call that reached the backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Read { offset: u64, len: usize },
    Write { offset: u64, len: usize },
    SetLen(u64),
    Punch { offset: u64, len: u64 },
    Reserve(u64),
    SetMtime((i64, u32)),
    Sync,
}

/// Which calls fail from now on.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Calls that still succeed.
    pub after: u64,
    /// Calls that fail then; later ones succeed again.
    pub times: u64,
    pub errno: i32,
    /// Count reads, or changes only?
    pub reads: bool,
}

#[derive(Clone, Default)]
struct Inner {
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
    len: u64,
    mtime: Option<(i64, u32)>,
    calls: Vec<Call>,
    fault: Option<Fault>,
}

#[derive(Default)]
pub struct MemStorage(Mutex<Inner>);

impl Inner {
    fn get(&self, mut offset: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let at = (offset % PAGE) as usize;
            let n = buf.len().min(PAGE as usize - at);
            match self.pages.get(&(offset / PAGE)) {
                Some(page) => buf[..n].copy_from_slice(&page[at..at + n]),
                None => buf[..n].fill(0),
            }
            buf = &mut buf[n..];
            offset += n as u64;
        }
    }

    fn put(&mut self, mut offset: u64, mut data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        while !data.is_empty() {
            let at = (offset % PAGE) as usize;
            let n = data.len().min(PAGE as usize - at);
            let page = self.pages.entry(offset / PAGE).or_insert_with(|| Box::new([0; 4096]));
            page[at..at + n].copy_from_slice(&data[..n]);
            data = &data[n..];
            offset += n as u64;
        }
    }

    fn zero(&mut self, from: u64, to: u64) {
        self.pages.retain(|p, _| p * PAGE < from || (p + 1) * PAGE > to);
        for edge in [from / PAGE, to / PAGE] {
            let (a, b) = (from.max(edge * PAGE), to.min((edge + 1) * PAGE));
            if let Some(page) = self.pages.get_mut(&edge).filter(|_| a < b) {
                page[(a - edge * PAGE) as usize..(b - edge * PAGE) as usize].fill(0);
            }
        }
    }

    fn enter(&mut self, call: Call) -> io::Result<()> {
        let is_read = matches!(call, Call::Read { .. });
        self.calls.push(call);
        if let Some(fault) = self.fault.as_mut().filter(|f| f.reads || !is_read) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
        }
        Ok(())
    }
}

#[allow(dead_code)]
impl MemStorage {
    /// An independent copy without counters and faults.
    pub fn snapshot(&self) -> Self {
        let inner = self.0.lock().unwrap();
        let (pages, len) = (inner.pages.clone(), inner.len);
        Self(Mutex::new(Inner { pages, len, ..Inner::default() }))
    }
    /// Takes all calls since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.0.lock().unwrap().fault = fault;
    }
    pub fn mtime(&self) -> Option<(i64, u32)> {
        self.0.lock().unwrap().mtime
    }
    /// Pages that take space.
    pub fn pages(&self) -> usize {
        self.0.lock().unwrap().pages.len()
    }
    /// Reads without being counted.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.0.lock().unwrap().get(offset, &mut buf);
        buf
    }
    /// Writes without being counted.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().put(offset, data);
    }
    pub fn flip(&self, offset: u64) {
        let byte = self.peek(offset, 1)[0] ^ 0x40;
        self.poke(offset, &[byte]);
    }
    pub fn cut(&self, len: u64) {
        let mut inner = self.0.lock().unwrap();
        let end = inner.len.max(len);
        inner.zero(len, end);
        inner.len = len;
    }
}

impl Storage for MemStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap();
        inner.enter(Call::Read { offset, len: buf.len() })?;
        let n = inner.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        inner.get(offset, &mut buf[..n]);
        Ok(n)
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let data: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let entered = inner.enter(Call::Write { offset, len: data.len() });
        // A failing write leaves its first half behind.
        let done = if entered.is_ok() { data.len() } else { data.len() / 2 };
        if done > 0 {
            inner.put(offset, &data[..done]);
        }
        entered
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().enter(Call::SetLen(len))?;
        self.cut(len);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.enter(Call::Punch { offset, len })?;
        inner.zero(offset, offset + len);
        Ok(())
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().enter(Call::Reserve(len))
    }
    fn set_mtime(&self, time: (i64, u32)) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.enter(Call::SetMtime(time))?;
        inner.mtime = Some(time);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.0.lock().unwrap().enter(Call::Sync)
    }
}
