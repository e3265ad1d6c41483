//! `kmsfsctl verify`: checks a whole volume.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use clap::Args;
use parking_lot::Mutex;
use serde::Serialize;

use crate::fs::Access;
use crate::fs::survey::{Damage, regular_files};
use crate::fs::verify::{Checked, Verifier, Watch};

use super::exit::{DAMAGE, FAILURE, failure};
use super::output::{Out, hex, human_bytes, shown};
use super::progress::Progress;
use super::secrets::KeyOptions;
use super::tree::Tree;

/// Threads that read the content of a volume on a KMS key.
const KMS_THREADS: usize = 32;

/// Check every name, attribute and byte of the volume in DIR
#[derive(Args)]
pub struct VerifyArgs {
    /// The volume, not mounted (a copy of it will do)
    dir: PathBuf,
    /// Threads that read content (default: one per processor, 32 with
    /// a KMS key)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

/// One damaged object, for people and for JSON.
#[derive(Serialize)]
pub struct DamageLine {
    /// Plaintext path.
    path: String,
    /// Path in the backing directory.
    backing: String,
    /// What is wrong.
    reason: String,
}

impl From<Damage> for DamageLine {
    fn from(damage: Damage) -> Self {
        Self {
            path: format!("/{}", shown(&damage.plain)),
            backing: shown(&damage.backing),
            reason: damage.reason,
        }
    }
}

impl DamageLine {
    pub fn text(&self) -> String {
        let at = if self.backing.is_empty() { "." } else { &self.backing };
        format!("damaged: {} (backing file {at}): {}", self.path, self.reason)
    }
}

#[derive(Serialize)]
struct Report {
    volume_id: String,
    files: u64,
    bytes: u64,
    directories: u64,
    symlinks: u64,
    special_files: u64,
    crash_leftovers: u64,
    /// Files checked as the journal of an unclean stop shows them.
    in_journal: u64,
    /// What that journal held.
    journal: Vec<String>,
    /// Directories that nobody could look into.
    not_checked: Vec<String>,
    damaged: Vec<DamageLine>,
}

/// Prints damage as it is found; keeps it for the report.
pub struct Screen {
    progress: Progress,
    json: bool,
    damaged: Mutex<Vec<DamageLine>>,
    broken_pipe: Mutex<anyhow::Result<()>>,
}

impl Screen {
    /// `verb` as for [`Progress::new`].
    pub fn new(verb: &'static str, json: bool) -> Self {
        Self {
            progress: Progress::new(verb, json),
            json,
            damaged: Mutex::default(),
            broken_pipe: Mutex::new(Ok(())),
        }
    }

    /// So many bytes of work lie ahead.
    pub fn more(&self, bytes: u64) {
        self.progress.more(bytes);
    }

    /// Ends the display; what was damaged.
    pub fn finish(self) -> anyhow::Result<Vec<DamageLine>> {
        self.broken_pipe.into_inner()?;
        Ok(self.damaged.into_inner())
    }
}

impl Watch for Screen {
    fn checked(&self, bytes: u64) {
        self.progress.done(bytes);
    }

    fn damaged(&self, damage: Damage) {
        let line = DamageLine::from(damage);
        let mut all = self.damaged.lock();
        if !self.json {
            self.progress.line(|| {
                let mut out = Out::new();
                let written = out.line(line.text()).and_then(|()| out.finish());
                if written.is_err() {
                    *self.broken_pipe.lock() = written;
                }
            });
        }
        all.push(line);
    }
}

/// Runs the command.
pub fn run(args: VerifyArgs) -> anyhow::Result<()> {
    let tree = Tree::open(&args.dir, Access::ReadOnly, &args.keys.unlock_options())?;
    let screen = Screen::new("checked", args.json);
    screen.more(regular_files(&tree.root)?.1);
    let verifier = Verifier {
        context: tree.context.clone(),
        names: tree.descriptor.params.names,
        generation: tree.descriptor.params.generation,
        keyring: &tree.keyring,
        views: &tree.recovery.views,
        watch: &screen,
    };
    // Where each file may have to wait for a KMS, most threads wait.
    let default = if tree.keyring.is_watched() { KMS_THREADS } else { processors() };
    let threads = args.threads.map_or(default, usize::from);
    let checked = verifier.run(&tree.root, threads)?;
    let report = Report::new(&tree, checked, screen.finish()?);
    report.print(args.json)?;
    match (report.damaged.len(), report.not_checked.len()) {
        (0, 0) => Ok(()),
        (0, n) => Err(failure(
            FAILURE,
            format!("{}: {n} directories were not checked", args.dir.display()),
        )),
        (n, _) => Err(failure(DAMAGE, format!("{}: damage in {n} places", args.dir.display()))),
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Report {
    fn new(tree: &Tree, checked: Checked, damaged: Vec<DamageLine>) -> Self {
        Self {
            volume_id: hex(&tree.descriptor.volume.0),
            files: checked.files.load(Relaxed),
            bytes: checked.bytes.load(Relaxed),
            directories: checked.directories.load(Relaxed),
            symlinks: checked.symlinks.load(Relaxed),
            special_files: checked.specials.load(Relaxed),
            crash_leftovers: checked.leftovers.load(Relaxed),
            in_journal: tree.recovery.views.len() as u64,
            journal: tree.recovery.sentences(),
            not_checked: checked.denied.lock().iter().map(|path| path_shown(path)).collect(),
            damaged,
        }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        let others = self.symlinks + self.special_files;
        let bytes = human_bytes(self.bytes);
        out.line(format!(
            "checked {} files ({bytes}), {} directories, {others} other objects; {} damaged",
            self.files,
            self.directories,
            self.damaged.len()
        ))?;
        if self.crash_leftovers > 0 {
            out.line(format!(
                "{} harmless leftovers of interrupted work: files longer than their header says, \
                 helpers without an owner",
                self.crash_leftovers
            ))?;
        }
        for sentence in &self.journal {
            out.line(sentence)?;
        }
        if self.in_journal > 0 {
            out.line(format!(
                "{} files were checked as the journal shows them; the next mount or `kmsfsctl \
                 recover` brings them to their place",
                self.in_journal
            ))?;
        }
        for path in &self.not_checked {
            out.line(format!("not checked: {path}: its mode keeps us out; run this as root"))?;
        }
        out.finish()
    }
}

/// A plaintext path from the root of the volume.
fn path_shown(plain: &[u8]) -> String {
    format!("/{}", shown(plain))
}
