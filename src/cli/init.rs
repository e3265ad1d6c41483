//! `kmsfsctl init`: makes a volume.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::crypto::random_array;
use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor, NameMode, Params};
use crate::format::header::RecipientKind;
use crate::format::{DirId, VolumeId, dirfile};
use crate::fs::Access;
use crate::fs::opening::{NEW_DESCRIPTOR_NAME, write_descriptor, write_helper};
use crate::fs::volume::{lock_root, open_root, unlock_error};
use crate::keys::{KeySpec, describe_recipient, unlock};

use super::exit::{FAILURE, failure};
use super::kms::KmsOptions;
use super::mount::options::volume_id;
use super::output::{Out, hex};
use super::secrets::KeyOptions;

/// File name of a directory's id.
const DIRFILE_NAME: &str = "kmsfs.dir";
/// Made and looked up in two spellings, to find out whether the backing folds case.
const PROBE_NAMES: [&str; 2] = ["kmsfs.probe-a", "kmsfs.probe-A"];

/// Make DIR an encrypted volume
#[derive(Args)]
pub struct InitArgs {
    /// Directory that will hold the ciphertext; made if missing, must be empty
    dir: PathBuf,
    /// What unlocks the volume: `passphrase`, `keyfile:PATH` (the file is made if missing) or
    /// `aws-kms:ARN` of a KMS key or an alias
    #[arg(long, value_name = "KEYSPEC")]
    key: KeySpec,
    /// How many new files may share one wrapped data key
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    files_per_data_key: u32,
    /// Encrypt file names, or leave them readable
    #[arg(long, value_enum, default_value_t = Names::Encrypted)]
    names: Names,
    /// Also wrap every key for this one: x25519:HEX, aws-kms:ARN, keyfile:PATH or passphrase; may be
    /// repeated
    #[arg(long, value_name = "KEYSPEC")]
    recipient: Vec<KeySpec>,
    /// Use this volume id (32 hexadecimal digits) instead of a random one
    #[arg(long, value_name = "ID", value_parser = volume_id)]
    volume_id: Option<[u8; 16]>,
    /// Header blocks of 4 KiB per file: 1, 2 or 4; more leave room for more recipients (default: as
    /// many as the recipients need)
    #[arg(long, value_name = "N", value_parser = ["1", "2", "4"])]
    header_blocks: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Read the passphrase from FILE (one newline at its end is dropped)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    kms: KmsOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum Names {
    Encrypted,
    Plain,
}

#[derive(Serialize)]
struct Made {
    volume_id: String,
    directory: String,
    /// Keys of a KMS, by which a mount can be pinned.
    kms_keys: Vec<String>,
    header_blocks: u8,
}

/// Runs the command.
pub fn run(args: InitArgs) -> anyhow::Result<()> {
    let volume = VolumeId(args.volume_id.unwrap_or_else(random_array));
    let dir = prepare_directory(&args.dir)?;
    refuse_key_inside(&args)?;
    let passphrase_file = args.passphrase_file.clone();
    // Named, because the volume may not be able to remember the place.
    let keyfile = match &args.key {
        KeySpec::Keyfile(path) => Some(path.clone()),
        _ => None,
    };
    let options =
        KeyOptions { passphrase_file, keyfile, kms: args.kms.clone(), ..KeyOptions::default() }
            .creation_options();
    let refused = |error| unlock_error(error, &args.dir);
    let descriptor = unlock::create(volume, params(&args)?, &args.key, &args.recipient, &options)
        .map_err(refused)?;
    let (facts, unlocked) = unlock::unlock(&descriptor, &options).map_err(refused)?;
    let root = dirfile::encode(DirId(random_array()), |bytes| unlocked.keys.directory_mac(bytes));

    write_helper(&dir, &args.dir, DIRFILE_NAME, &root)?;
    write_descriptor(&dir, &args.dir, &descriptor)?;
    drop(dir);
    print(&args, &facts)
}

fn params(args: &InitArgs) -> anyhow::Result<Params> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Params {
        // 0: as many as are needed.
        header_blocks: args.header_blocks.as_ref().map_or(Ok(0), |blocks| blocks.parse())?,
        names: match args.names {
            Names::Encrypted => NameMode::Encrypted,
            Names::Plain => NameMode::Plain,
        },
        files_per_data_key: args.files_per_data_key,
        created: now.as_secs(),
        generation: 1,
    })
}

/// Makes the directory if it is missing, locks it, and refuses everything a volume cannot live in.
/// The lock lasts as long as the returned file.
fn prepare_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    let shown = path.display();
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_parent(path)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("cannot make {shown}")),
    }
    let dir = open_root(path).map_err(|error| failure(FAILURE, error.message))?;
    lock_root(&dir, path, Access::ReadWrite)?;
    if path.join(DESCRIPTOR_NAME).symlink_metadata().is_ok() {
        return Err(failure(FAILURE, format!("{shown} is a kmsfs volume already")));
    }
    remove_leftovers(path)?;
    if fs::read_dir(path)?.next().is_some() {
        let hint =
            "a volume starts in an empty directory; move the files into it once it is mounted";
        return Err(failure(FAILURE, format!("{shown} is not empty; {hint}")));
    }
    refuse_case_folding(path)?;
    Ok(dir)
}

/// A volume that was made must still be there after a crash, and so must its directory's name.
fn sync_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match File::open(parent.unwrap_or(Path::new("."))) {
        Ok(parent) => {
            parent.sync_all().with_context(|| format!("cannot keep the name {}", path.display()))
        }
        // Who may make a directory need not be allowed to read the one it is in.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error).with_context(|| format!("above {}", path.display())),
    }
}

/// Takes away what an interrupted `init` left: nothing but our own helpers, never a descriptor.
fn remove_leftovers(path: &Path) -> anyhow::Result<()> {
    let known = |name: &std::ffi::OsStr| {
        [DIRFILE_NAME, NEW_DESCRIPTOR_NAME].iter().chain(&PROBE_NAMES).any(|known| name == *known)
    };
    let names: Vec<_> =
        fs::read_dir(path)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>()?;
    if names.iter().all(|name| known(name)) {
        for name in names {
            fs::remove_file(path.join(name))?;
        }
    }
    Ok(())
}

/// A key beside the ciphertext travels with every backup of it.
fn refuse_key_inside(args: &InitArgs) -> anyhow::Result<()> {
    let keys = std::iter::once(&args.key).chain(&args.recipient);
    let files = keys.filter_map(|key| match key {
        KeySpec::Keyfile(path) => Some(path),
        _ => None,
    });
    files.into_iter().try_for_each(|key| refuse_file_inside(key, &args.dir))
}

fn refuse_file_inside(key: &Path, dir: &Path) -> anyhow::Result<()> {
    let parent = std::path::absolute(key)?.parent().map(Path::canonicalize);
    let inside = match parent {
        Some(Ok(parent)) => parent.starts_with(dir.canonicalize()?),
        // Making the key file will say what is wrong.
        Some(Err(_)) | None => false,
    };
    if inside {
        let text = "a key file inside the volume protects nothing; keep it elsewhere";
        return Err(failure(FAILURE, format!("{}: {text}", key.display())));
    }
    Ok(())
}

/// Encrypted names differ in case; a backing that folds case would mix up files.
fn refuse_case_folding(path: &Path) -> anyhow::Result<()> {
    let probe = path.join(PROBE_NAMES[0]);
    File::create_new(&probe).with_context(|| format!("cannot write in {}", path.display()))?;
    let folds = path.join(PROBE_NAMES[1]).symlink_metadata().is_ok();
    fs::remove_file(&probe)?;
    if folds {
        let message = "does not tell upper from lower case, and kmsfs names need that";
        return Err(failure(FAILURE, format!("{} {message}", path.display())));
    }
    Ok(())
}

fn print(args: &InitArgs, made: &Descriptor) -> anyhow::Result<()> {
    let mut out = Out::new();
    let directory = args.dir.display().to_string();
    let kms = made.allowed.iter().filter(|r| r.kind == RecipientKind::AwsKms);
    let kms_keys: Vec<String> = kms.map(describe_recipient).collect();
    let (volume_id, header_blocks) = (hex(&made.volume.0), made.params.header_blocks);
    if args.json {
        out.json(&Made { volume_id, directory, kms_keys, header_blocks })?;
        return out.finish();
    }
    out.line(format!("Made volume {volume_id} in {directory}."))?;
    // Whoever can replace the whole directory could offer a volume of his own.
    let pins: Vec<String> = kms_keys.iter().map(|key| format!(",expect-key={key}")).collect();
    match pins.is_empty() {
        true => out.line(format!("Next: kmsfs {directory} MOUNTPOINT"))?,
        false => out.line(format!(
            "Next: kmsfs {directory} MOUNTPOINT -o expect-volume={volume_id}{}",
            pins.concat()
        ))?,
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_init_is_cleared_and_anything_else_is_not() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(DIRFILE_NAME), b"x")?;
        drop(prepare_directory(dir.path())?);
        assert_eq!(fs::read_dir(dir.path())?.count(), 0);
        fs::write(dir.path().join(DIRFILE_NAME), b"x")?;
        fs::write(dir.path().join("letter"), b"x")?;
        assert!(prepare_directory(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path())?.count(), 2);
        Ok(())
    }

    /// To a directory that folds case the one probe is the other.
    #[test]
    fn a_directory_that_folds_case_is_refused() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        refuse_case_folding(dir.path())?;
        assert_eq!(fs::read_dir(dir.path())?.count(), 0);
        fs::write(dir.path().join(PROBE_NAMES[1]), b"")?;
        let refusal = refuse_case_folding(dir.path()).expect_err("it folds");
        assert!(refusal.to_string().contains("upper from lower"), "{refusal}");
        assert!(!dir.path().join(PROBE_NAMES[0]).exists());
        assert!(PROBE_NAMES[0] != PROBE_NAMES[1]);
        assert_eq!(PROBE_NAMES[0].to_lowercase(), PROBE_NAMES[1].to_lowercase());
        Ok(())
    }
}
