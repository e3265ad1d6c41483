//! `kmsfsctl export`: the whole plaintext tree into an ordinary directory, without a mount.
//!
//! Keeps modes, times, symbolic and hard links, holes, extended attributes and ACLs; owners and
//! special files when run as root. A damaged file is listed and left out, never half-written.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use serde::Serialize;

use crate::fs::attr::ROOT;
use crate::fs::survey::regular_files;
use crate::fs::{Attr, Caller, FileKind, FsError, FsResult, Ino, Volume};

use super::exit::{DAMAGE, FAILURE, failure};
use super::output::{Out, note, shown};
use super::progress::Progress;
use super::reader::{self, OpenFile, PIECE};
use super::secrets::KeyOptions;

/// Copy the plaintext tree of a volume that is not mounted to OUT
#[derive(Args)]
pub struct ExportArgs {
    /// The volume (a copy of it will do)
    dir: PathBuf,
    /// Where the tree goes; made if missing, must be empty
    out: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

/// An object that is not in the export, or not wholly.
#[derive(Serialize)]
struct Problem {
    path: String,
    backing: String,
    reason: String,
}

#[derive(Serialize, Default)]
struct Report {
    files: u64,
    directories: u64,
    others: u64,
    problems: Vec<Problem>,
}

/// Why one object could not be exported.
enum Trouble {
    /// The volume's side: damage or a missing key.
    Source(FsError),
    /// The output's side: disk full, no permission.
    Target(io::Error),
}

impl From<FsError> for Trouble {
    fn from(error: FsError) -> Self {
        Self::Source(error)
    }
}
impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Target(error)
    }
}
impl From<rustix::io::Errno> for Trouble {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Target(error.into())
    }
}

struct Export<'a> {
    volume: &'a Arc<Volume>,
    progress: Progress,
    report: Report,
    /// First exported path of every object with several names.
    links: HashMap<Ino, PathBuf>,
    is_root: bool,
    who: Caller,
    json: bool,
    /// Something in the volume could not be read, as opposed to written here.
    damaged: bool,
}

/// Work on the stack: a directory's attributes are set when everything in it is there.
enum Step {
    Enter { ino: Ino, attr: Attr, plain: Vec<u8>, out: PathBuf },
    Leave { attr: Attr, plain: Vec<u8>, out: PathBuf },
}

/// Runs the command.
pub fn run(args: ExportArgs) -> anyhow::Result<()> {
    let volume = reader::open(&args.dir, &args.keys.unlock_options())?;
    prepare(&args.out, volume.source())?;
    let who = Caller::this_process();
    let mut export = Export {
        volume: &volume,
        progress: Progress::new("exported", args.json),
        report: Report::default(),
        links: HashMap::new(),
        is_root: who.uid == 0,
        who,
        json: args.json,
        damaged: false,
    };
    export.progress.more(regular_files(File::open(&args.dir)?)?.1);
    export.tree(&args.out)?;
    export.left_out();
    let report = export.report;
    drop(export.progress);
    print(&report, args.json)?;
    let code = if export.damaged { DAMAGE } else { FAILURE };
    match report.problems.len() {
        0 => Ok(()),
        n => Err(failure(code, format!("{n} objects could not be exported faithfully"))),
    }
}

fn prepare(out: &Path, volume: &Path) -> anyhow::Result<()> {
    let shown = out.display();
    let full = std::path::absolute(out)?;
    let parent = full.parent().unwrap_or(&full).canonicalize();
    let parent = parent.with_context(|| format!("cannot make {shown}"))?;
    if parent.starts_with(volume.canonicalize()?) {
        return Err(failure(FAILURE, format!("{shown} is inside the volume itself")));
    }
    match DirBuilder::new().mode(0o700).create(out) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {shown}"));
        }
        _ => {}
    }
    let mut entries = fs::read_dir(out).with_context(|| format!("cannot read {shown}"))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(failure(FAILURE, format!("{shown} is not empty"))),
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    let mut out = Out::new();
    if json {
        out.json(report)?;
    } else {
        let Report { files, directories, others, .. } = report;
        out.line(format!("exported {files} files, {directories} directories, {others} others"))?;
    }
    out.finish()
}

impl Export<'_> {
    fn tree(&mut self, out: &Path) -> anyhow::Result<()> {
        let attr = self.volume.getattr(ROOT, None).map_err(|e| reader::fs_failure(b"/", &e))?;
        let out = out.to_owned();
        let mut stack = vec![Step::Enter { ino: ROOT, attr, plain: Vec::new(), out }];
        while let Some(step) = stack.pop() {
            match step {
                Step::Enter { ino, attr, plain, out } => {
                    stack.push(Step::Leave { attr, plain: plain.clone(), out: out.clone() });
                    let entered = self.directory(ino, &plain, &out, &mut stack).map(|()| None);
                    self.settle(entered, ino, &plain)?;
                }
                Step::Leave { attr, plain, out } => {
                    let done = self.attributes(&attr, &out);
                    self.settle(done, attr.ino, &plain)?;
                    self.report.directories += 1;
                    self.forget(attr.ino);
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        ino: Ino,
        plain: &[u8],
        out: &Path,
        stack: &mut Vec<Step>,
    ) -> Result<(), Trouble> {
        for entry in reader::entries(self.volume, ino)? {
            let plain = [plain, b"/", &entry.name].concat();
            let out = out.join(OsStr::from_bytes(&entry.name));
            let attr = match self.volume.lookup(ino, &entry.name) {
                Ok(attr) => attr,
                Err(error) => {
                    self.damage(entry.ino, &plain, &error);
                    continue;
                }
            };
            if attr.kind == FileKind::Directory {
                DirBuilder::new().mode(0o700).create(&out)?;
                stack.push(Step::Enter { ino: attr.ino, attr, plain, out });
                continue;
            }
            match self.object(&attr, &out) {
                Err(Trouble::Source(error)) => self.damage(attr.ino, &plain, &error),
                Err(Trouble::Target(error)) => return Err(Trouble::Target(error)),
                Ok(Some(reason)) => self.problem(attr.ino, &plain, reason),
                Ok(None) => {}
            }
            self.forget(attr.ino);
        }
        Ok(())
    }

    /// Anything but a directory. Returns what is missing in the copy, if anything is.
    fn object(&mut self, attr: &Attr, out: &Path) -> Result<Option<String>, Trouble> {
        if attr.nlink > 1
            && let Some(first) = self.links.get(&attr.ino)
        {
            fs::hard_link(first, out)?;
            return Ok(None);
        }
        match attr.kind {
            FileKind::Regular => self.file(attr, out)?,
            FileKind::Symlink => {
                let target = self.volume.readlink(attr.ino)?;
                symlink(OsStr::from_bytes(&target), out)?;
            }
            FileKind::Directory => {}
            FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => {
                if !self.is_root && attr.kind != FileKind::Fifo {
                    return Ok(Some("only root can make special files".into()));
                }
                special(attr, out)?;
            }
        }
        let missing = self.attributes(attr, out)?;
        if attr.nlink > 1 {
            self.links.insert(attr.ino, out.to_owned());
        }
        if attr.kind == FileKind::Regular {
            self.report.files += 1;
        } else {
            self.report.others += 1;
        }
        Ok(missing)
    }

    /// Content with its holes. A file that cannot be read to its end is taken away again.
    fn file(&self, attr: &Attr, out: &Path) -> Result<(), Trouble> {
        let source = OpenFile::open(self.volume, attr.ino)?;
        let target = File::options().write(true).create_new(true).mode(0o600).open(out)?;
        // The size in the directory may be that of a growth a crash cut short; the open file knows.
        let size = self.volume.getattr(attr.ino, Some(source.fh))?.size;
        let copied = copy(&source, &target, size);
        if copied.is_err() {
            fs::remove_file(out)?;
        } else {
            self.progress.done(size);
        }
        copied
    }

    /// Owner, mode, attributes and times, in the order in which one does not undo the other.
    /// Returns what the output's file system would not take.
    fn attributes(&self, attr: &Attr, out: &Path) -> Result<Option<String>, Trouble> {
        if self.is_root {
            lchown(out, Some(attr.uid), Some(attr.gid))?;
        }
        let missing = self.extended(attr.ino, out)?;
        if attr.kind != FileKind::Symlink {
            fs::set_permissions(out, fs::Permissions::from_mode(u32::from(attr.perm)))?;
        }
        let time = |(tv_sec, nsec): (i64, u32)| Timespec { tv_sec, tv_nsec: nsec.into() };
        let times =
            Timestamps { last_access: time(attr.atime), last_modification: time(attr.mtime) };
        rustix::fs::utimensat(CWD, out, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(missing)
    }

    fn extended(&self, ino: Ino, out: &Path) -> Result<Option<String>, Trouble> {
        let mut missing = None;
        let names = match self.volume.listxattr(self.who, ino) {
            Err(FsError::Errno(libc::EOPNOTSUPP)) => return Ok(None),
            names => names?,
        };
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let value = self.volume.getxattr(ino, name)?;
            if let Err(error) = rustix::fs::lsetxattr(out, name, &value, XattrFlags::empty()) {
                missing = Some(format!("attribute {} cannot be set: {error}", shown(name)));
            }
        }
        Ok(missing)
    }

    /// Notes damage and goes on; trouble with the output (a full disk) ends the export.
    fn settle(
        &mut self,
        result: Result<Option<String>, Trouble>,
        ino: Ino,
        plain: &[u8],
    ) -> anyhow::Result<()> {
        match result {
            Ok(None) => Ok(()),
            Ok(Some(missing)) => {
                self.problem(ino, plain, missing);
                Ok(())
            }
            Err(Trouble::Source(error)) => {
                self.damage(ino, plain, &error);
                Ok(())
            }
            Err(Trouble::Target(error)) => {
                let at = if plain.is_empty() { b"/" } else { plain };
                Err(error).with_context(|| format!("cannot write the copy of {}", shown(at)))
            }
        }
    }

    fn damage(&mut self, ino: Ino, plain: &[u8], error: &FsError) {
        self.damaged = true;
        self.problem(ino, plain, error.to_string());
    }

    fn problem(&mut self, ino: Ino, plain: &[u8], reason: String) {
        let backing = self.volume.backing_path(ino);
        self.list(shown(plain), &backing, reason);
    }

    /// What the listings did not show has no plaintext name to export it under.
    fn left_out(&mut self) {
        for backing in self.volume.left_out() {
            self.damaged = true;
            self.list("(unknown)".into(), &backing, "its name does not decrypt".into());
        }
    }

    fn list(&mut self, path: String, backing: &Path, reason: String) {
        let backing = shown(backing.as_os_str().as_bytes());
        if !self.json {
            let text = format!("not faithful: {path} (backing file {backing}): {reason}");
            self.progress.line(|| note(text));
        }
        self.report.problems.push(Problem { path, backing, reason });
    }

    fn forget(&self, ino: Ino) {
        if ino != ROOT {
            self.volume.forget(ino, 1);
        }
    }
}

fn copy(source: &OpenFile<'_>, target: &File, size: u64) -> Result<(), Trouble> {
    target.set_len(size)?;
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while let Some(data) = next_data(source, offset, size)? {
        offset = data.start;
        while offset < data.end {
            let want = usize::try_from(data.end - offset).map_or(PIECE, |n| n.min(PIECE));
            let n = source.read(offset, &mut piece[..want])?;
            if n == 0 {
                return Ok(());
            }
            target.write_all_at(&piece[..n], offset)?;
            offset += n as u64;
        }
    }
    Ok(())
}

fn next_data(
    source: &OpenFile<'_>,
    offset: u64,
    size: u64,
) -> FsResult<Option<std::ops::Range<u64>>> {
    if offset >= size { Ok(None) } else { source.data(offset) }
}

fn special(attr: &Attr, out: &Path) -> io::Result<()> {
    let kind = match attr.kind {
        FileKind::Char => FileType::CharacterDevice,
        FileKind::Block => FileType::BlockDevice,
        FileKind::Socket => FileType::Socket,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Regular | FileKind::Directory | FileKind::Symlink => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    };
    Ok(rustix::fs::mknodat(CWD, out, kind, Mode::from_raw_mode(0o600), attr.rdev)?)
}
