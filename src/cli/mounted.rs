//! `kmsfsctl umount`, `status` and `sync`: the commands that talk to a live mount.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use rustix::fs::{FlockOperation, flock};

use crate::fs::volume::SESSION_NAME;
use crate::fuse::control;
use crate::fuse::mount::{TYPE, table, unmount_path};

use super::exit::{FAILURE, MOUNT_POINT, failure};
use super::output::{Out, note};

/// What people look for first.
const FIRST_FACTS: [&str; 4] = ["mountpoint", "source", "volume", "access"];

/// Unmount, and wait until the daemon has written everything and ended
#[derive(Args)]
pub struct UmountArgs {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Detach now even if programs use it; the daemon ends when the last of them has closed its files
    #[arg(long)]
    lazy: bool,
}

/// Show what a mount is doing
#[derive(Args)]
pub struct StatusArgs {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Print the counters as Prometheus reads them
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
    /// Print the facts as JSON
    #[arg(long)]
    json: bool,
}

/// Write everything to the backing disk; sync(2) cannot do that here
#[derive(Args)]
pub struct SyncArgs {
    /// Where the volume is mounted
    mountpoint: PathBuf,
}

/// Runs `umount`.
pub fn umount(args: UmountArgs) -> anyhow::Result<()> {
    let point = absolute(&args.mountpoint)?;
    require_mount(&point)?;
    let source = written_source(&point);
    let device = table::top_at(&point).map(|entry| entry.device).unwrap_or_default();
    let result = if args.lazy {
        unmount_path(&point, true)
    } else {
        control::unmount_patiently(&point, &mut || tell_the_wait(&point, &device))
    };
    match result {
        Ok(()) if args.lazy => Ok(()),
        Ok(()) => source.map_or(Ok(()), |source| require_clean_end(&source)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let holders = table::holders(&point);
            let cure = "close it there and try again, or use --lazy";
            let text = format!("{} is busy{holders}; {cure}", point.display());
            Err(failure(FAILURE, text))
        }
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", point.display())),
    }
}

/// Unmounted here, and the daemon goes on: says why, so that nobody takes it for a hang.
fn tell_the_wait(point: &Path, device: &str) {
    let reason = match table::seen_by(device).as_str() {
        "" => "its daemon to write everything".to_owned(),
        others => format!("another mount namespace that still has it mounted, that of {others}"),
    };
    note(format!("{} is unmounted here; waiting for {reason}", point.display()));
}

/// A daemon that could not write everything leaves its session marker behind.
fn require_clean_end(source: &Path) -> anyhow::Result<()> {
    // Whoever may not read the backing directory cannot be told, and a marker beside a held lock
    // belongs to the next mount.
    let Ok(root) = std::fs::File::open(source) else { return Ok(()) };
    let idle = flock(&root, FlockOperation::NonBlockingLockShared).is_ok();
    if idle && source.join(SESSION_NAME).symlink_metadata().is_ok() {
        let text = "the daemon ended without having written everything; its log says why";
        return Err(failure(FAILURE, format!("{}: {text}", source.display())));
    }
    Ok(())
}

/// Runs `status`.
pub fn status(args: StatusArgs) -> anyhow::Result<()> {
    let point = absolute(&args.mountpoint)?;
    require_mount(&point)?;
    if args.prometheus {
        let text = control::metrics(&point).map_err(|error| no_answer(&point, error))?;
        let mut out = Out::new();
        text.lines().try_for_each(|line| out.line(line))?;
        return out.finish();
    }
    let text = control::status(&point).map_err(|error| no_answer(&point, error))?;
    let facts: serde_json::Value =
        serde_json::from_str(&text).context("the daemon's answer is not understood")?;
    let mut out = Out::new();
    if args.json {
        out.json(&facts)?;
    } else {
        let facts = facts.as_object().cloned().unwrap_or_default();
        let first = FIRST_FACTS.iter().filter_map(|name| facts.get_key_value(*name));
        let rest = facts.iter().filter(|(name, _)| !FIRST_FACTS.contains(&name.as_str()));
        for (name, value) in first.chain(rest) {
            match value {
                serde_json::Value::Object(keys) if name == "keys" => print_keys(&mut out, keys)?,
                value => print_fact(&mut out, name, value)?,
            }
        }
    }
    out.finish()
}

/// What a mount tells of its keys: first their state, then each KMS key with what was asked of it.
fn print_keys(
    out: &mut Out,
    keys: &serde_json::Map<String, serde_json::Value>,
) -> anyhow::Result<()> {
    let text =
        |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for (name, value) in keys.iter().filter(|(name, value)| *name != "kms" && !value.is_null()) {
        let label = if name == "state" { "keys" } else { name };
        out.fact(&label.replace('_', " "), text(value))?;
    }
    for kms in keys.get("kms").and_then(|kms| kms.as_array()).into_iter().flatten() {
        out.fact("kms key", text(&kms["key"]))?;
        let calls = kms["calls"].as_array().into_iter().flatten().map(|call| {
            format!("{} {} {}", text(&call["operation"]), text(&call["outcome"]), call["calls"])
        });
        let calls: Vec<String> = calls.collect();
        out.fact("kms calls", if calls.is_empty() { "none".into() } else { calls.join(", ") })?;
        for name in
            ["breaker", "unwrap_p50_ms", "unwrap_p99_ms", "last_success_seconds", "last_error"]
        {
            if !kms[name].is_null() {
                out.fact(&format!("kms {}", name.replace('_', " ")), text(&kms[name]))?;
            }
        }
    }
    Ok(())
}

fn print_fact(out: &mut Out, name: &str, value: &serde_json::Value) -> anyhow::Result<()> {
    let label = name.replace('_', " ");
    match value {
        serde_json::Value::String(text) => out.fact(&label, text),
        serde_json::Value::Object(counts) => {
            let pairs: Vec<String> =
                counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            out.fact(&label, if pairs.is_empty() { "none".into() } else { pairs.join(", ") })
        }
        other => out.fact(&label, other.to_string()),
    }
}

/// Runs `sync`.
pub fn sync(args: SyncArgs) -> anyhow::Result<()> {
    let point = absolute(&args.mountpoint)?;
    require_mount(&point)?;
    control::sync(&point).map_err(|error| no_answer(&point, error))
}

/// The path as the mount table writes it. Only the parent is looked at: a dead daemon's mount point
/// answers no question.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let resolve = || -> io::Result<PathBuf> {
        let path = std::path::absolute(path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return path.canonicalize();
        };
        let plain = parent.canonicalize()?.join(name);
        // A symbolic link to a mount point is as good as the mount point.
        if plain.is_symlink() { plain.canonicalize() } else { Ok(plain) }
    };
    resolve().map_err(|error| failure(MOUNT_POINT, format!("{}: {error}", path.display())))
}

fn require_mount(point: &Path) -> anyhow::Result<()> {
    match table::top_at(point) {
        Some(entry) if entry.kind == TYPE => Ok(()),
        _ => Err(failure(MOUNT_POINT, format!("no kmsfs is mounted on {}", point.display()))),
    }
}

/// The backing directory of a mount that may write, if the daemon still answers. A marker in that of
/// a read-only mount is not the daemon's.
fn written_source(point: &Path) -> Option<PathBuf> {
    let facts: serde_json::Value = serde_json::from_str(&control::status(point).ok()?).ok()?;
    let writes = facts.get("access")?.as_str()? == "rw";
    writes.then_some(PathBuf::from(facts.get("source")?.as_str()?))
}

fn no_answer(point: &Path, error: io::Error) -> anyhow::Error {
    let shown = point.display();
    match error.raw_os_error() {
        Some(libc::ENOTCONN) => failure(
            FAILURE,
            format!("the daemon of {shown} has died; `kmsfsctl umount {shown}` clears the mount"),
        ),
        Some(libc::EPERM | libc::EACCES) => {
            let text = "only root and the user who mounted it may ask";
            failure(FAILURE, format!("{shown}: {text}"))
        }
        _ => anyhow::Error::new(error).context(shown.to_string()),
    }
}
