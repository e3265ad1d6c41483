//! Bringing file headers in line with the descriptor, of a volume that is mounted or is not.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use parking_lot::Mutex;

use crate::fs::error::{FsError, FsResult};
use crate::fs::journal;
use crate::fs::live::{Rewrapping, wire};
use crate::fs::rewrap::{InPlace, Plan, Sweep, Swept, Writer};
use crate::fs::survey::{Damage, Found, regular_files};
use crate::fs::verify::Watch;
use crate::fs::volume::OpenError;
use crate::fuse::control;
use crate::keys::Keyring;

use crate::cli::exit::{FAILURE, failure};
use crate::cli::output::Out;
use crate::cli::progress::Progress;
use crate::cli::tree::Tree;
use crate::cli::verify::DamageLine;

/// Sweeps of a mounted volume before what keeps moving is given up.
const PASSES: u32 = 6;

/// How headers are swept.
#[derive(Default)]
pub struct Sweeping {
    /// Nothing but the result on standard output.
    pub json: bool,
    /// Rewrapped files get the present as modification time.
    pub touch: bool,
    /// Where the backing paths of rewrapped files are added.
    pub list: Option<List>,
}

/// A file that backing paths are added to, each durable before the file it names is changed.
pub struct List {
    file: Mutex<File>,
    path: PathBuf,
    end: u8,
}

/// Where paths with a newline in them go, each ended with a zero byte.
pub fn odd_list(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".null");
    name.into()
}

fn append_to(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The last byte of a list, if it has any.
fn last_byte(path: &Path) -> std::io::Result<Option<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(Some(last[0]))
}

/// Adds paths and makes them durable; or none of them.
fn add_to(file: &mut File, text: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(text).and_then(|()| file.sync_data()).inspect_err(|_| {
        // A path cut in two would be taken for another one.
        let _ = file.set_len(before);
    })
}

impl List {
    /// Makes the file, or goes on with one that is there. Paths end with a newline, or with `null`
    /// with a zero byte.
    pub fn open(path: &Path, null: bool) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write the list {}", path.display());
        let (end, other) = if null { (0, b'\n') } else { (b'\n', 0) };
        let mut file = append_to(path).with_context(cannot)?;
        let last = last_byte(path).with_context(cannot)?;
        if last.is_some_and(|last| last != end && last != other) {
            // Whoever was writing it was cut off.
            add_to(&mut file, &[end]).with_context(cannot)?;
        }
        if last == Some(other) {
            let text =
                "is there, and ends its paths in another way (--null, or not): name another file";
            return Err(failure(FAILURE, format!("the list {} {text}", path.display())));
        }
        Ok(Self { file: Mutex::new(file), path: path.to_owned(), end })
    }

    fn add(&self, files: &[&Found]) -> FsResult<()> {
        let is_odd = |path: &[u8]| path.contains(&self.end);
        let (mut text, mut odd) = (Vec::new(), Vec::new());
        for found in files {
            let (text, end) =
                if is_odd(&found.backing) { (&mut odd, 0) } else { (&mut text, self.end) };
            text.extend_from_slice(&found.backing);
            text.push(end);
        }
        let failed = |path: &Path, error: std::io::Error| {
            FsError::Damaged(format!("cannot write the list {}: {error}", path.display()))
        };
        if !odd.is_empty() {
            // Hardly ever, so it is not kept open.
            let path = odd_list(&self.path);
            let added = append_to(&path).and_then(|mut file| add_to(&mut file, &odd));
            added.map_err(|error| failed(&path, error))?;
        }
        add_to(&mut self.file.lock(), &text).map_err(|error| failed(&self.path, error))
    }
}

impl Sweeping {
    /// Sweeps a volume that is locked for writing and not mounted.
    pub fn idle(
        &self,
        tree: &Tree,
        keyring: &Keyring,
        generation: u64,
    ) -> anyhow::Result<(Swept, Vec<DamageLine>)> {
        let writer = InPlace {
            context: tree.context.clone(),
            journal: journal::open(&tree.root, &tree.context),
            root: tree.root.clone(),
            touch: self.touch,
            epoch: tree.descriptor.params.generation,
        };
        let screen = SweepScreen::new(self.json, false);
        let swept = self.sweep(tree, keyring, generation, &writer, &screen)?;
        Ok((swept, screen.finish()?))
    }

    /// Sweeps a volume that is mounted, through its daemon, until nothing is left to do: files may
    /// move while they are looked for.
    pub fn live(
        &self,
        tree: &Tree,
        keyring: &Keyring,
        generation: u64,
        mountpoint: &Path,
    ) -> anyhow::Result<(Swept, Vec<DamageLine>)> {
        let writer = Remote { mountpoint, touch: self.touch };
        let mut total = Swept::default();
        let mut passes = 0;
        loop {
            passes += 1;
            writer.flush()?;
            let screen = SweepScreen::new(self.json, true);
            let swept = self.sweep(tree, keyring, generation, &writer, &screen)?;
            total = Swept { rewritten: total.rewritten + swept.rewritten, ..swept };
            let quiet = swept.rewritten + swept.moved + swept.failed == 0;
            if quiet || swept.unserved > 0 || passes >= PASSES {
                // What was found only now may not be the last.
                total.moved += if quiet { 0 } else { swept.rewritten };
                return Ok((total, screen.finish()?));
            }
        }
    }

    fn sweep(
        &self,
        tree: &Tree,
        keyring: &Keyring,
        generation: u64,
        writer: &dyn Writer,
        screen: &SweepScreen,
    ) -> anyhow::Result<Swept> {
        screen.progress.more(regular_files(&tree.root)?.0);
        let record = |files: &[&Found]| match &self.list {
            Some(list) if !files.is_empty() => list.add(files),
            _ => Ok(()),
        };
        let sweep = Sweep {
            context: tree.context.clone(),
            names: tree.descriptor.params.names,
            generation,
            keyring,
            writer,
            record: &record,
            watch: screen,
        };
        Ok(sweep.run(&tree.root)?)
    }
}

/// Writes headers through the daemon of a mount.
struct Remote<'a> {
    mountpoint: &'a Path,
    touch: bool,
}

impl Remote<'_> {
    fn flush(&self) -> FsResult<()> {
        let failed = |e| format!("{}: {e}", self.mountpoint.display());
        control::sync(self.mountpoint).map_err(|e| FsError::Damaged(failed(e)))
    }

    fn request(&self, request: &[u8], files: usize) -> Vec<FsResult<bool>> {
        match ask(self.mountpoint, request, files) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                (0..files).map(|_| Err(FsError::Damaged(error.message.clone()))).collect()
            }
        }
    }
}

impl Writer for Remote<'_> {
    fn write(&self, batch: &[(&Found, &Plan)]) -> Vec<FsResult<bool>> {
        let files: Vec<_> = batch
            .iter()
            .map(|(found, plan)| Rewrapping { path: found.plain.clone(), plan: Plan::clone(plan) })
            .collect();
        let requests = wire::rewrap(&files, self.touch, control::REQUEST_MAX);
        requests.iter().flat_map(|(files, request)| self.request(request, *files)).collect()
    }

    fn finish(&self) -> FsResult<()> {
        self.flush()
    }
}

/// Has the daemon of a mount carry out a request; what it says of each file, or why it did none of it.
fn ask(mountpoint: &Path, request: &[u8], files: usize) -> Result<Vec<FsResult<bool>>, OpenError> {
    let answer = control::request(mountpoint, &wire::ticket(), request)
        .map_err(|error| OpenError::new(FAILURE, no_answer(mountpoint, &error)))?;
    wire::outcomes(&answer, files)
}

/// The sentence for a daemon that is silent.
pub fn no_answer(mountpoint: &Path, error: &std::io::Error) -> String {
    format!("the daemon of {} does not answer: {error}", mountpoint.display())
}

/// Hands a descriptor to the daemon of a mount.
pub fn adopt(mountpoint: &Path, descriptor: &[u8]) -> Result<(), OpenError> {
    ask(mountpoint, &wire::adopt(descriptor), 0).map(drop)
}

#[cfg(feature = "aws")]
/// Whether the daemon of a mount would take a descriptor.
pub fn check(mountpoint: &Path, descriptor: &[u8]) -> Result<(), OpenError> {
    ask(mountpoint, &wire::check(descriptor), 0).map(drop)
}

/// Shows how far a sweep has come.
struct SweepScreen {
    progress: Progress,
    /// What is wrong may only be moving: it is shown at the end.
    live: bool,
    json: bool,
    damaged: Mutex<Vec<DamageLine>>,
}

impl SweepScreen {
    fn new(json: bool, live: bool) -> Self {
        let progress = Progress::of_files("brought in line", json);
        Self { progress, live, json, damaged: Mutex::default() }
    }

    fn finish(self) -> anyhow::Result<Vec<DamageLine>> {
        let damaged = self.damaged.into_inner();
        if self.live && !self.json {
            let mut out = Out::new();
            damaged.iter().try_for_each(|line| out.line(line.text()))?;
            out.finish()?;
        }
        Ok(damaged)
    }
}

impl Watch for SweepScreen {
    fn checked(&self, _bytes: u64) {
        self.progress.done(1);
    }

    fn damaged(&self, damage: Damage) {
        let line = DamageLine::from(damage);
        if !self.live && !self.json {
            // Whoever closed standard output is told nothing more.
            let print = || -> anyhow::Result<()> {
                let mut out = Out::new();
                out.line(line.text())?;
                out.finish()
            };
            self.progress.line(|| drop(print()));
        }
        self.damaged.lock().push(line);
    }
}
