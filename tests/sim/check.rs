//! What a file holds, as far as it can be read, and how that compares with a state.

use crate::oracle::State;
use crate::support::{CHUNK, read};
use kmsfs::store::{Content, StoreError};
use std::collections::BTreeMap;

type Chunk = [u8; CHUNK as usize];

/// A file as it was read back.
#[derive(Clone, Default, PartialEq)]
pub struct Seen {
    /// Size and wrap epoch, if the file could be opened.
    pub header: Option<(u64, u64)>,
    /// Chunks that are not all zero; `None`: reading it gave an error.
    pub chunks: BTreeMap<u64, Option<Box<Chunk>>>,
    /// Errors met.
    pub damage: Vec<String>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} chunks", self.header, self.chunks.len())?;
        if self.damage.is_empty() { Ok(()) } else { write!(f, ", {:?}", self.damage) }
    }
}

/// Chunks read at once.
const RUN: u64 = 64;

impl Seen {
    pub fn unreadable(error: &StoreError) -> Self {
        Self { damage: vec![error.to_string()], ..Self::default() }
    }

    /// Reads everything.
    pub fn of(content: &Content, wrap: u64) -> Self {
        let size = content.size();
        let mut seen = Self { header: Some((size, wrap)), ..Self::default() };
        let mut at = 0;
        while at < size {
            at = match content.seek_data(at) {
                Ok(Some(data)) => data / CHUNK * CHUNK,
                Ok(None) => break,
                // The tree is damaged: look at each chunk.
                Err(_) => at,
            };
            seen.read_run(content, at / CHUNK);
            at += RUN * CHUNK;
        }
        let mut found = 0;
        let verified = content.verify(&mut |e| {
            found += 1;
            if found < 5 {
                seen.damage.push(e.to_string());
            }
        });
        seen.damage.extend(verified.err().map(|e| e.to_string()));
        seen
    }

    fn read_run(&mut self, content: &Content, first: u64) {
        if let Ok(bytes) = read(content, first * CHUNK, (RUN * CHUNK) as usize) {
            for (chunk, part) in (first..).zip(bytes.chunks(CHUNK as usize)) {
                self.add(chunk, part);
            }
            return;
        }
        for chunk in (first..first + RUN).take_while(|c| c * CHUNK < content.size()) {
            match read(content, chunk * CHUNK, CHUNK as usize) {
                Ok(bytes) => self.add(chunk, &bytes),
                Err(error) => {
                    self.chunks.insert(chunk, None);
                    if self.damage.len() < 5 {
                        self.damage.push(format!("read: {error}"));
                    }
                }
            }
        }
    }

    fn add(&mut self, chunk: u64, bytes: &[u8]) {
        if bytes.iter().any(|b| *b != 0) {
            let mut whole = Box::new([0; CHUNK as usize]);
            whole[..bytes.len()].copy_from_slice(bytes);
            self.chunks.insert(chunk, Some(whole));
        }
    }

    /// Is everything that could be read as in this state?
    pub fn fits(&self, state: &State) -> bool {
        self.header == Some((state.content.size, state.wrap)) && self.first_wrong(state).is_none()
    }

    fn first_wrong(&self, state: &State) -> Option<u64> {
        const ZERO: Chunk = [0; CHUNK as usize];
        let want = &state.content.chunks;
        let wrong = |chunk: &&u64| match (self.chunks.get(chunk), want.get(chunk)) {
            (Some(None), _) => false,
            (Some(Some(got)), Some(want)) => **got != **want,
            (Some(Some(_)), None) => true,
            (None, want) => want.is_some_and(|want| **want != ZERO),
        };
        self.chunks.keys().chain(want.keys()).find(wrong).copied()
    }

    /// For people.
    pub fn difference(&self, state: &State) -> String {
        match self.header {
            Some(header) if header == (state.content.size, state.wrap) => {
                format!("{state:?}: chunk {:?}", self.first_wrong(state))
            }
            _ => format!("{state:?}: size or wrap"),
        }
    }
}
