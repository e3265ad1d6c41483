//! `kmsfs SOURCE MOUNTPOINT`, also as `mount.kmsfs` and `mount.fuse.kmsfs` for mount(8).

pub(super) mod options;

use super::kms::{self, KmsOptions};
use super::output::harmless;
use crate::crypto::BACKEND;
use crate::fs::volume::{OpenError, open_root};
use crate::fs::{Access, MountFlags, Volume};
use crate::fuse::mount::{TYPE, table};
use crate::fuse::session::{Config, SessionError, serve};
use crate::keys::{Lifetimes, UnlockOptions};
use crate::sys::{logging, process};
use clap::{ArgAction, Parser};
use log::LevelFilter;
use options::{Probe, Words};
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Exit code of a wrong command line.
const EXIT_USAGE: i32 = 2;
/// How long a mount waits for the daemon before it to finish, and how often it looks.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(20);
const PREDECESSOR_POLL: Duration = Duration::from_millis(20);
/// Newest on-disk format this program writes.
const FORMAT_VERSION: u16 = 1;

/// Mount an encrypted directory. Returns when the mount answers; a daemon serves it until it is
/// unmounted with `kmsfsctl umount`, umount(8) or fusermount3 -u.
#[derive(Parser, Debug)]
#[command(name = "kmsfs", disable_version_flag = true)]
struct Arguments {
    /// Directory with the encrypted files, made by `kmsfsctl init`
    #[arg(required_unless_present = "version")]
    source: Option<PathBuf>,
    /// Empty directory on which the plain files appear
    #[arg(required_unless_present = "version")]
    mountpoint: Option<PathBuf>,
    /// Mount options, separated by commas; every long option below is one of them, too
    #[arg(short = 'o', value_name = "OPT[,OPT...]", action = ArgAction::Append)]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Read the passphrase from this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Use this key file instead of the one the volume remembers
    #[arg(long, value_name = "FILE")]
    keyfile: Option<PathBuf>,
    /// Open with this X25519 identity file
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Refuse any volume but the one with this id
    #[arg(long, value_name = "ID", value_parser = options::volume_id)]
    expect_volume: Option<[u8; 16]>,
    /// Refuse a descriptor older than generation N (`kmsfsctl info` shows it)
    #[arg(long, value_name = "N", value_parser = options::generation)]
    expect_generation: Option<u64>,
    /// Refuse any volume with another KMS key than this (may be repeated)
    #[arg(long, value_name = "ARN", value_parser = options::key_arn)]
    expect_key: Vec<String>,
    #[command(flatten)]
    kms: KmsOptions,
    /// Ask the KMS again for a data key after this time (default 1h)
    #[arg(long, value_name = "TIME", value_parser = kms::lifetime)]
    cache_ttl: Option<Duration>,
    /// Without an answer of the KMS for this long, nothing more is decrypted (default 1h)
    #[arg(long, value_name = "TIME", value_parser = kms::lifetime)]
    offline_grace: Option<Duration>,
    /// Ask the KMS this often whether the volume's key is still granted (default 60s)
    #[arg(long, value_name = "TIME", value_parser = kms::lifetime)]
    probe_interval: Option<Duration>,
    /// Write counters for Prometheus to this file
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,
    /// Mount read-only
    #[arg(long, alias = "read-only", short = 'r')]
    ro: bool,
    /// Mount read-write (default)
    #[arg(long, short = 'w', overrides_with = "ro")]
    rw: bool,
    /// Let other users in; the kernel checks their permissions
    #[arg(long)]
    allow_other: bool,
    /// POSIX access control lists
    #[arg(long)]
    acl: bool,
    /// Mount over a directory that is not empty
    #[arg(long)]
    nonempty: bool,
    /// Log more
    #[arg(short = 'v', long, action = ArgAction::Count)]
    verbose: u8,
    /// Print version, on-disk format and cipher backend
    #[arg(short = 'V', long)]
    version: bool,
    // What mount(8) passes to a helper and means nothing here.
    #[arg(short = 'n', hide = true)]
    no_table: bool,
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    #[arg(short = 't', hide = true)]
    kind: Option<String>,
}

/// Runs the program; returns its exit code.
pub fn main() -> i32 {
    let inherited = process::open_descriptors();
    if let Err(e) = kms::ignore_ambient_endpoints() {
        eprintln!("kmsfs: cannot leave out the variables AWS_ENDPOINT_URL: {e}");
        return super::exit::FAILURE;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help and version requests are not errors and go to standard output.
            let _ = e.print();
            return e.exit_code();
        }
    };
    if arguments.version {
        println!("{}", version());
        return 0;
    }
    logging::init(match arguments.verbose {
        0 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    });
    match words(&arguments) {
        // mount(8) hands its --fake on to helpers as -f.
        Ok(_) if arguments.foreground && called_by_mount() => 0,
        Ok(words) => run(arguments, words, &inherited),
        Err(sentence) => {
            eprintln!("kmsfs: {sentence}");
            EXIT_USAGE
        }
    }
}

/// Whether this is a helper of mount(8): they are named after the type.
fn called_by_mount() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    name.file_name().is_some_and(|name| name.as_bytes().starts_with(b"mount."))
}

fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("kmsfs {version} (on-disk format {FORMAT_VERSION}, AES-256-GCM by {BACKEND})")
}

/// `-o` words first, then long options: these are closer to the person who typed them.
fn words(arguments: &Arguments) -> Result<Words, String> {
    let mut words = Words::default();
    arguments.options.iter().try_for_each(|list| words.add_list(list))?;
    let given = [
        (arguments.ro, "ro"),
        (arguments.rw, "rw"),
        (arguments.allow_other, "allow_other"),
        (arguments.acl, "acl"),
        (arguments.nonempty, "nonempty"),
    ];
    given.iter().filter(|(on, _)| *on).try_for_each(|(_, word)| words.add(word))?;
    for (given, word) in [
        (&arguments.passphrase_file, &mut words.passphrase_file),
        (&arguments.keyfile, &mut words.keyfile),
        (&arguments.identity, &mut words.identity),
        (&arguments.metrics_file, &mut words.metrics_file),
    ] {
        if given.is_some() {
            word.clone_from(given);
        }
    }
    words.expect.volume = arguments.expect_volume.or(words.expect.volume);
    words.expect.generation = arguments.expect_generation.or(words.expect.generation);
    words.expect.keys.extend(arguments.expect_key.iter().cloned());
    words.kms = words.kms.with(&arguments.kms);
    let Lifetimes { ttl, grace } = words.lifetimes;
    words.lifetimes.ttl = arguments.cache_ttl.unwrap_or(ttl);
    words.lifetimes.grace = arguments.offline_grace.unwrap_or(grace);
    words.probe = arguments.probe_interval.map_or(words.probe, Probe);
    words.check()?;
    Ok(words)
}

fn run(arguments: Arguments, words: Words, inherited: &[i32]) -> i32 {
    let (Some(source), Some(mountpoint)) = (arguments.source, arguments.mountpoint) else {
        return EXIT_USAGE;
    };
    let source = strip_type(source);
    let config = Config {
        source: source.clone(),
        mountpoint,
        options: words.mount,
        foreground: arguments.foreground,
        aead: BACKEND,
        probe: words.probe.0,
        metrics_file: words.metrics_file.clone(),
        hook: None,
    };
    let open = |access, flags| open_volume(&source, access, flags, words);
    match serve(config, inherited, open) {
        Ok(()) => 0,
        Err(SessionError { message, exit_code }) => {
            eprintln!("kmsfs: {}", harmless(&message));
            exit_code
        }
    }
}

/// fstab may name the source `kmsfs#DIR`, the older way to say the type.
fn strip_type(source: PathBuf) -> PathBuf {
    let bytes = source.as_os_str().as_bytes();
    match bytes.strip_prefix(b"kmsfs#") {
        Some(path) => PathBuf::from(OsString::from(std::ffi::OsStr::from_bytes(path))),
        None => source,
    }
}

fn open_volume(
    source: &std::path::Path,
    access: Access,
    flags: MountFlags,
    words: Words,
) -> Result<Volume, OpenError> {
    let unlock = UnlockOptions {
        passphrase_file: words.passphrase_file,
        keyfile: words.keyfile,
        identity: words.identity,
        prompt: Some(Box::new(super::secrets::ask)),
        expect: words.expect,
        #[cfg(feature = "aws")]
        kms: words.kms.settings(),
        lifetimes: words.lifetimes,
    };
    wait_for_predecessor(source);
    Volume::open(source, access, flags, &unlock)
}

/// After an unmount the daemon goes on until everything is in its place. A mount that comes
/// meanwhile waits for it instead of being refused.
fn wait_for_predecessor(source: &std::path::Path) {
    let started = Instant::now();
    while started.elapsed() < PREDECESSOR_WAIT && !table::is_mounted_from(TYPE, source) {
        let Ok(root) = open_root(source) else { return };
        match flock(&root, FlockOperation::NonBlockingLockShared) {
            // Free now; whoever is quicker than us is told of by the lock itself.
            Ok(()) => return,
            Err(_) => std::thread::sleep(PREDECESSOR_POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Words, String> {
        let line = ["kmsfs", "/src", "/mnt"].iter().chain(line);
        words(&Arguments::try_parse_from(line).map_err(|e| e.to_string())?)
    }

    #[test]
    fn long_options_are_words_too() {
        let id = "00112233445566778899aabbccddeeff";
        let pins = ["--expect-volume", id, "--expect-generation", "7"];
        let long = [&["--ro", "--allow-other", "--keyfile", "/k"][..], &pins].concat();
        let list = format!("ro,allow_other,keyfile=/k,expect-volume={id},expect-generation=7");
        assert_eq!(parse(&long).unwrap(), parse(&["-o", &list]).unwrap());
    }

    #[test]
    fn long_options_win_over_words_and_lists_add_up() {
        let words = parse(&["-o", "keyfile=/a,ro", "--keyfile", "/b", "-o", "acl"]).unwrap();
        assert_eq!(words.keyfile, Some("/b".into()));
        assert!(words.mount.read_only && words.mount.acl);
    }

    #[test]
    fn the_way_mount_calls_its_helpers_is_understood() {
        let helper = ["-n", "-v", "-s", "-o", "rw,noauto,user", "-t", "fuse.kmsfs"];
        assert_eq!(parse(&helper).unwrap(), Words::default());
        assert_eq!(strip_type("kmsfs#/a#b".into()), PathBuf::from("/a#b"));
        assert_eq!(strip_type("/a".into()), PathBuf::from("/a"));
    }

    #[test]
    fn a_missing_mount_point_is_a_usage_error() {
        let error = Arguments::try_parse_from(["kmsfs", "/src"]).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_USAGE);
        assert!(Arguments::try_parse_from(["kmsfs", "--version"]).unwrap().version);
    }
}
