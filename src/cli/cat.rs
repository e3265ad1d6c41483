//! `kmsfsctl cat`: one file's plaintext, without a mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use crate::fs::FileKind;

use super::exit::{FAILURE, failure};
use super::output::{Out, shown};
use super::reader::{self, OpenFile, PIECE, fs_failure};
use super::secrets::KeyOptions;

/// Print one file of a volume that is not mounted
#[derive(Args)]
pub struct CatArgs {
    /// The volume (a copy of it will do)
    dir: PathBuf,
    /// Path of the file inside the volume
    path: OsString,
    #[command(flatten)]
    keys: KeyOptions,
}

/// Runs the command.
pub fn run(args: CatArgs) -> anyhow::Result<()> {
    let volume = reader::open(&args.dir, &args.keys.unlock_options())?;
    let path = args.path.as_bytes();
    let attr = reader::resolve(&volume, path)?;
    if attr.kind != FileKind::Regular {
        return Err(failure(FAILURE, format!("{} is not a regular file", shown(path))));
    }
    let fail = |error| fs_failure(path, &error);
    let file = OpenFile::open(&volume, attr.ino).map_err(fail)?;
    let mut out = Out::new();
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let n = file.read(offset, &mut piece).map_err(fail)?;
        if n == 0 {
            return out.finish();
        }
        out.bytes(&piece[..n])?;
        offset += n as u64;
    }
}
