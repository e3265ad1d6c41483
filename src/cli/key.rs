//! `kmsfsctl key`: identities, recipients, passphrases, key files.
//!
//! The descriptor changes first, in one step; then, if recipients changed, a sweep brings every file
//! header in line. Running the same command again finishes a sweep that was interrupted.

#[cfg(feature = "aws")]
mod alone;
#[cfg(feature = "aws")]
mod retire;
mod rewrap;
#[cfg(feature = "aws")]
mod rotate;
mod status;
mod sweep;
mod target;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::crypto::wrap::Argon2Cost;
use crate::crypto::{SecretBytes, Vault, VolumeKeys};
use crate::format::descriptor::Descriptor;
use crate::format::header::Recipient;
use crate::fs::Access;
use crate::fs::volume::{unlock_error, volume_context, write_descriptor};
#[cfg(feature = "aws")]
use crate::keys::aws;
use crate::keys::unlock::UnlockError;
use crate::keys::x25519::X25519;
use crate::keys::{Editor, KeyError, KeySpec, UnlockOptions, keyfile, same_key, unlock};

use super::exit::{DAMAGE, KEY_UNAVAILABLE, failure};
use super::output::{Out, hex, note};
use super::secrets::{self, KeyOptions};
use super::tree::{Tree, locked};
use super::verify::DamageLine;
use sweep::Sweeping;

/// Where `key generate` puts an identity unless told.
const IDENTITY_FILE: &str = "kmsfs-identity";

/// Manage what opens a volume
#[derive(Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    Generate(GenerateArgs),
    /// Let another key open the volume: a recipient, a key file or a passphrase
    Add(EditArgs),
    /// Take a key away; what its owner copied before stays readable to him
    Remove(EditArgs),
    ChangePassphrase(PassphraseArgs),
    Status(status::StatusArgs),
    Rewrap(rewrap::RewrapArgs),
    #[cfg(feature = "aws")]
    Rotate(rotate::RotateArgs),
    #[cfg(feature = "aws")]
    Retire(retire::RetireArgs),
}

/// Make an X25519 identity, to be kept offline, and print its public key
#[derive(Args)]
struct GenerateArgs {
    /// File for the identity (its private half); must not exist
    #[arg(long, value_name = "FILE", default_value = IDENTITY_FILE)]
    out: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct EditArgs {
    /// The volume, not mounted
    dir: PathBuf,
    /// `x25519:PUBLIC-KEY`, `aws-kms:ARN`, `keyfile:PATH` or `passphrase`
    #[arg(value_name = "KEYSPEC")]
    key: KeySpec,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    new: NewPassphrase,
    #[command(flatten)]
    keys: KeyOptions,
}

/// Change the passphrase; only the descriptor is rewritten, after a look at every file header
#[derive(Args)]
struct PassphraseArgs {
    /// The volume, not mounted
    dir: PathBuf,
    #[command(flatten)]
    new: NewPassphrase,
    #[command(flatten)]
    keys: KeyOptions,
}

#[derive(Args)]
struct NewPassphrase {
    /// Read the new passphrase from FILE instead of the terminal
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

impl NewPassphrase {
    fn read(&self) -> Result<SecretBytes, KeyError> {
        let bad = |text: String| KeyError::Misconfigured(text);
        let passphrase = match &self.new_passphrase_file {
            Some(path) => keyfile::read_passphrase_file(path)?,
            None => secrets::ask_twice("New passphrase: ").map_err(|e| bad(e.to_string()))?,
        };
        if passphrase.expose().is_empty() {
            return Err(bad("an empty passphrase protects nothing; nothing was changed".into()));
        }
        Ok(passphrase)
    }
}

#[derive(Serialize)]
struct Generated {
    public_key: String,
    file: String,
}

#[derive(Serialize)]
struct Edited {
    descriptor_changed: bool,
    generation: u64,
    headers: u64,
    rewritten: u64,
    problems: Vec<DamageLine>,
}

/// Runs the command.
pub fn run(args: KeyArgs) -> anyhow::Result<()> {
    match args.command {
        KeyCommand::Generate(args) => generate(&args),
        KeyCommand::Add(args) => edit(&args, add),
        KeyCommand::Remove(args) => edit(&args, remove),
        KeyCommand::ChangePassphrase(args) => change_passphrase(&args),
        KeyCommand::Status(args) => status::run(&args),
        KeyCommand::Rewrap(args) => rewrap::run(&args),
        #[cfg(feature = "aws")]
        KeyCommand::Rotate(args) => rotate::run(&args),
        #[cfg(feature = "aws")]
        KeyCommand::Retire(args) => retire::run(&args),
    }
}

fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let identity = keyfile::create_identity(&args.out)
        .map_err(|error| unlock_error(error.into(), &args.out))?;
    let public_key = format!("x25519:{}", hex(&identity.public_key()));
    let mut out = Out::new();
    if args.json {
        out.json(&Generated { public_key, file: args.out.display().to_string() })?;
    } else {
        note(format!("The identity is in {}; keep it offline.", args.out.display()));
        out.line(public_key)?;
    }
    out.finish()
}

/// Changes an opened descriptor; returns whether there was anything to change.
type Edit = fn(&EditArgs, &mut Editor, &UnlockOptions) -> Result<bool, UnlockError>;

fn edit(args: &EditArgs, change: Edit) -> anyhow::Result<()> {
    let refused = |error| unlock_error(error, &args.dir);
    let (root, bytes) = locked(&args.dir, Access::ReadWrite)?;
    let mut options = args.keys.remembering_options();
    let mut editor = Editor::open(&bytes, &options).map_err(refused)?;
    let (old, keys) = (editor.descriptor().clone(), editor.volume_keys());
    let descriptor_changed = change(args, &mut editor, &options).map_err(refused)?;
    let recipients_changed = editor.descriptor().allowed != old.allowed;
    let bytes = editor.finish().map_err(refused)?;
    let (descriptor, _) =
        Descriptor::parse(&bytes).map_err(|error| refused(UnlockError::from(error)))?;
    let last_local = !args.key.is_recipient() && descriptor.masters.is_empty();
    if last_local {
        // What named it does not open the volume any more.
        (options.keyfile, options.passphrase_file) = (None, None);
    }
    if descriptor_changed {
        // The key that goes may be the last one that works. Of several passphrases and key files any
        // one will do, and only its owner can show it.
        if args.key.is_recipient() || last_local {
            require_way_in(&args.dir, &bytes, &options)?;
        }
        require_newest_of(&root, &args.dir, &old, keys)?;
        write_descriptor(&root, &args.dir, &bytes)?;
    }
    let generation = descriptor.params.generation;
    let (headers, rewritten, problems) = (0, 0, Vec::new());
    let mut edited = Edited { descriptor_changed, generation, headers, rewritten, problems };
    let mut unserved = None;
    // What was right already may have been left by a sweep that was interrupted.
    if recipients_changed || args.key.is_recipient() || !descriptor_changed {
        let tree = Tree::unlock(root, &args.dir, &bytes, Access::ReadWrite, &options)?;
        let sweeping = Sweeping { json: args.json, ..Sweeping::default() };
        let (swept, problems) =
            sweeping.idle(&tree, &tree.keyring, old.params.generation).with_context(|| {
                let again = "run the same command again to finish the file headers";
                format!("{}: the descriptor is changed; {again}", args.dir.display())
            })?;
        edited.headers = swept.headers;
        edited.rewritten = swept.rewritten;
        edited.problems = problems;
        unserved = swept.unserved_why;
    }
    edited.print(args.json)?;
    if let Some(why) = unserved.filter(|_| edited.problems.is_empty()) {
        let text = "some file headers are not done yet; run the same command again";
        return Err(failure(KEY_UNAVAILABLE, format!("{}: {text}: {why}", args.dir.display())));
    }
    match edited.problems.len() {
        0 => Ok(()),
        n => Err(failure(DAMAGE, format!("{n} entries could not be brought in line"))),
    }
}

fn add(args: &EditArgs, editor: &mut Editor, options: &UnlockOptions) -> Result<bool, UnlockError> {
    #[cfg(not(feature = "aws"))]
    let _ = options;
    match &args.key {
        KeySpec::X25519(public) if is_recipient(editor, &X25519::name(public, 0)) => {
            return Ok(false);
        }
        KeySpec::X25519(public) => editor.add_recipient(*public)?,
        KeySpec::Keyfile(path) if editor.has_keyfile(path) => return Ok(false),
        KeySpec::Keyfile(path) => editor.add_keyfile(path)?,
        KeySpec::Passphrase => editor.add_passphrase(&args.new.read()?, Argon2Cost::DEFAULT)?,
        #[cfg(feature = "aws")]
        KeySpec::AwsKms(arn) if is_recipient(editor, &aws::name(arn, 0)) => return Ok(false),
        #[cfg(feature = "aws")]
        KeySpec::AwsKms(arn) => return Ok(editor.add_kms_key(arn, options)?),
    }
    Ok(true)
}

fn remove(
    args: &EditArgs,
    editor: &mut Editor,
    _options: &UnlockOptions,
) -> Result<bool, UnlockError> {
    match &args.key {
        // Gone from the descriptor; headers may still carry it.
        KeySpec::X25519(public) if !is_recipient(editor, &X25519::name(public, 0)) => {
            return Ok(false);
        }
        KeySpec::X25519(public) => editor.remove_recipient(*public)?,
        // The last one went with the master key; headers may still carry its copies.
        KeySpec::Keyfile(_) | KeySpec::Passphrase if editor.descriptor().masters.is_empty() => {
            return Ok(false);
        }
        KeySpec::Keyfile(path) => editor.remove_keyfile(path)?,
        KeySpec::Passphrase => editor.remove_passphrase()?,
        #[cfg(feature = "aws")]
        KeySpec::AwsKms(arn) if !arn.is_alias() && !is_recipient(editor, &aws::name(arn, 0)) => {
            return Ok(false);
        }
        #[cfg(feature = "aws")]
        KeySpec::AwsKms(arn) => editor.remove_kms_key(arn)?,
    }
    Ok(true)
}

/// Before any of the volume's files is opened with a new descriptor.
fn require_newest_of(
    root: &OwnedFd,
    dir: &Path,
    descriptor: &Descriptor,
    keys: VolumeKeys,
) -> anyhow::Result<()> {
    let context = volume_context(descriptor, Vault::new(keys), 0);
    let context = context.map_err(|error| unlock_error(error.into(), dir))?;
    target::require_newest(root, dir, &context, descriptor)
}

fn require_way_in(dir: &Path, bytes: &[u8], options: &UnlockOptions) -> anyhow::Result<()> {
    unlock(bytes, options).map(drop).map_err(|error| {
        let refused = unlock_error(error, dir);
        failure(refused.exit_code, format!("{}; nothing was changed", refused.message))
    })
}

fn generation_of(descriptor: &[u8]) -> Result<u64, UnlockError> {
    Ok(Descriptor::parse(descriptor)?.0.params.generation)
}

fn is_recipient(editor: &Editor, name: &Recipient) -> bool {
    editor.descriptor().allowed.iter().any(|allowed| same_key(allowed, name))
}

impl Edited {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        out.line(match (self.descriptor_changed, self.rewritten) {
            (true, _) => format!("The descriptor is changed (generation {}).", self.generation),
            (false, 0) => "Nothing to change.".into(),
            (false, _) => "The descriptor was right already.".into(),
        })?;
        if self.headers > 0 {
            out.line(format!("{} of {} file headers rewritten.", self.rewritten, self.headers))?;
        }
        out.finish()
    }
}

fn change_passphrase(args: &PassphraseArgs) -> anyhow::Result<()> {
    let refused = |error| unlock_error(error, &args.dir);
    let (root, bytes) = locked(&args.dir, Access::ReadWrite)?;
    let mut editor = Editor::open(&bytes, &args.keys.unlock_options()).map_err(refused)?;
    let mut change = || editor.change_passphrase(&args.new.read()?, Argon2Cost::DEFAULT);
    change().map_err(|error| refused(error.into()))?;
    require_newest_of(&root, &args.dir, editor.descriptor(), editor.volume_keys())?;
    let bytes = editor.finish().map_err(refused)?;
    write_descriptor(&root, &args.dir, &bytes)?;
    let generation = generation_of(&bytes).map_err(refused)?;
    let mut out = Out::new();
    out.line(format!(
        "The passphrase is changed (generation {generation}). Old copies of kmsfs.volume still \
         open with the old one."
    ))?;
    out.finish()
}
