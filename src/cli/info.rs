//! `kmsfsctl info`: what stands in a descriptor or in the header of a backing file.
//!
//! Neither needs a key. With key options the MAC is checked too, and the output says which it was.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use crate::crypto::VolumeKeys;
use crate::format::descriptor::{Descriptor, MasterKdf, MasterSlot, NameMode};
use crate::format::header::{Header, KeySlot, Recipient, RecipientKind};
use crate::format::layout::Layout;
use crate::fs::volume::{open_root, read_descriptor, unlock_error};
use crate::keys::unlock;
use crate::store::{FileStorage, Storage};

use super::exit::{DAMAGE, FAILURE, NOT_A_VOLUME, failure};
use super::output::{Out, hex};
use super::secrets::KeyOptions;

/// Show what a volume's descriptor or a backing file's header says
#[derive(Args)]
pub struct InfoArgs {
    /// A volume, or one file in its backing directory
    path: PathBuf,
    /// Print the facts as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

#[derive(Serialize)]
struct VolumeFacts {
    volume_id: String,
    format_version: u16,
    created: u64,
    names: &'static str,
    header_blocks: u8,
    files_per_data_key: u32,
    generation: u64,
    features: Vec<String>,
    read_only_because: Option<String>,
    unlock: Vec<Way>,
    recipients: Vec<Named>,
    authenticated: bool,
}

/// A way to the local master key.
#[derive(Serialize)]
struct Way {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_memory_kib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_passes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_lanes: Option<u32>,
}

/// A wrapping key.
#[derive(Serialize)]
struct Named {
    kind: &'static str,
    key: String,
    epoch: u32,
}

#[derive(Serialize)]
struct FileFacts {
    volume_id: String,
    object_id: String,
    size: u64,
    backing_size: u64,
    generation: u64,
    wrap_epoch: u64,
    data_key_id: String,
    recipients: Vec<Named>,
    next_data_key_id: Option<String>,
    authenticated: bool,
}

/// Runs the command.
pub fn run(args: InfoArgs) -> anyhow::Result<()> {
    let meta = args
        .path
        .symlink_metadata()
        .with_context(|| format!("cannot read {}", args.path.display()))?;
    let mut out = Out::new();
    if args.path.is_dir() {
        let facts = volume_facts(&args)?;
        if args.json { out.json(&facts)? } else { facts.print(&mut out)? }
    } else if meta.is_file() {
        let facts = file_facts(&args)?;
        if args.json { out.json(&facts)? } else { facts.print(&mut out)? }
    } else {
        let text = format!("{} is neither a directory nor a regular file", args.path.display());
        return Err(failure(FAILURE, text));
    }
    out.finish()
}

/// The descriptor, and the volume keys if the user named a key.
fn descriptor(args: &InfoArgs, dir: &Path) -> anyhow::Result<(Descriptor, Option<VolumeKeys>)> {
    let bytes = read_descriptor(&open_root(dir)?, dir)?;
    if !args.keys.any() {
        let (descriptor, _) =
            Descriptor::parse(&bytes).map_err(|error| unlock_error(error.into(), dir))?;
        return Ok((descriptor, None));
    }
    let (descriptor, unlocked) =
        unlock(&bytes, &args.keys.unlock_options()).map_err(|error| unlock_error(error, dir))?;
    Ok((descriptor, Some(unlocked.keys)))
}

fn volume_facts(args: &InfoArgs) -> anyhow::Result<VolumeFacts> {
    let (descriptor, keys) = descriptor(args, &args.path)?;
    let params = &descriptor.params;
    let features = [&descriptor.compat, &descriptor.ro_compat, &descriptor.incompat];
    Ok(VolumeFacts {
        volume_id: hex(&descriptor.volume.0),
        format_version: 1,
        created: params.created,
        names: match params.names {
            NameMode::Encrypted => "encrypted",
            NameMode::Plain => "plain",
        },
        header_blocks: params.header_blocks,
        files_per_data_key: params.files_per_data_key,
        generation: params.generation,
        features: features.into_iter().flatten().cloned().collect(),
        read_only_because: descriptor.read_only_reason().map(str::to_owned),
        unlock: descriptor.masters.iter().map(way).collect(),
        recipients: descriptor.allowed.iter().map(named).collect(),
        authenticated: keys.is_some(),
    })
}

fn way(slot: &MasterSlot) -> Way {
    match slot.kdf {
        MasterKdf::Keyfile => Way {
            kind: "keyfile",
            path: Some(slot.hint.clone()),
            argon2_memory_kib: None,
            argon2_passes: None,
            argon2_lanes: None,
        },
        MasterKdf::Passphrase { m_kib, t, p } => Way {
            kind: "passphrase",
            path: None,
            argon2_memory_kib: Some(m_kib),
            argon2_passes: Some(t),
            argon2_lanes: Some(p),
        },
    }
}

fn named(recipient: &Recipient) -> Named {
    let (kind, key) = match recipient.kind {
        RecipientKind::LocalMaster => ("local-master", String::new()),
        RecipientKind::X25519 => ("x25519", format!("x25519:{}", hex(&recipient.key_ref))),
        RecipientKind::AwsKms => {
            ("aws-kms", String::from_utf8_lossy(&recipient.key_ref).into_owned())
        }
    };
    Named { kind, key, epoch: recipient.epoch }
}

fn file_facts(args: &InfoArgs) -> anyhow::Result<FileFacts> {
    let shown = args.path.display();
    let dir = volume_of(&args.path)?;
    let (descriptor, keys) = descriptor(args, &dir)?;
    let layout = Layout::new(descriptor.params.header_blocks)?;
    let file = File::open(&args.path).with_context(|| format!("cannot open {shown}"))?;
    let storage: Arc<dyn Storage> = Arc::new(FileStorage(file));
    let backing_size = storage.len()?;
    if backing_size == 0 {
        let text = "was never written: it is empty and has no header yet";
        return Err(failure(FAILURE, format!("{shown} {text}")));
    }
    let mut bytes = vec![0; layout.header_len()];
    let have = storage.read_at(&mut bytes, 0)?;
    let header = Header::decode(&bytes[..have], layout, descriptor.volume, |bytes, mac| {
        keys.as_ref().is_none_or(|keys| keys.header_mac_ok(bytes, mac))
    })
    .map_err(|error| failure(DAMAGE, format!("{shown}: file header: {error}")))?;
    Ok(FileFacts {
        volume_id: hex(&header.volume.0),
        object_id: hex(&header.object.0),
        size: header.size,
        backing_size,
        generation: header.generation,
        wrap_epoch: header.wrap_epoch,
        data_key_id: hex(&header.current.data_key_id.0),
        recipients: header.current.recipients.iter().map(named).collect(),
        next_data_key_id: header.next.as_ref().map(|slot: &KeySlot| hex(&slot.data_key_id.0)),
        authenticated: keys.is_some(),
    })
}

/// The volume a backing file belongs to: the nearest directory above it with a descriptor.
fn volume_of(path: &Path) -> anyhow::Result<PathBuf> {
    let full = path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?;
    let found = full
        .ancestors()
        .skip(1)
        .find(|dir| dir.join(crate::format::descriptor::DESCRIPTOR_NAME).is_file());
    found.map(Path::to_owned).ok_or_else(|| {
        let text = format!("{} does not stand in a kmsfs volume", path.display());
        failure(NOT_A_VOLUME, text)
    })
}

fn mac_text(authenticated: bool) -> &'static str {
    if authenticated { "yes" } else { "not checked (name a key to check it)" }
}

impl VolumeFacts {
    fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        out.fact("volume id", &self.volume_id)?;
        out.fact("format version", self.format_version.to_string())?;
        out.fact("created", format!("{} (seconds since 1970)", self.created))?;
        out.fact("file names", self.names)?;
        out.fact("header blocks", self.header_blocks.to_string())?;
        out.fact("files per data key", self.files_per_data_key.to_string())?;
        out.fact("generation", self.generation.to_string())?;
        if !self.features.is_empty() {
            out.fact("features", self.features.join(", "))?;
        }
        if let Some(feature) = &self.read_only_because {
            out.fact("read-only", format!("this kmsfs does not know feature {feature}"))?;
        }
        for way in &self.unlock {
            out.fact("unlocked by", way.text())?;
        }
        for recipient in &self.recipients {
            out.fact("recipient", recipient.text())?;
        }
        out.fact("authenticated", mac_text(self.authenticated))
    }
}

impl Way {
    fn text(&self) -> String {
        match (&self.path, self.argon2_memory_kib) {
            (Some(path), _) if path.is_empty() => "key file (its place is not remembered)".into(),
            (Some(path), _) => format!("key file (made as {path})"),
            (None, Some(memory)) => format!(
                "passphrase (Argon2id, {} MiB, {} passes, {} lanes)",
                memory / 1024,
                self.argon2_passes.unwrap_or_default(),
                self.argon2_lanes.unwrap_or_default()
            ),
            (None, None) => self.kind.to_owned(),
        }
    }
}

impl Named {
    fn text(&self) -> String {
        let key = if self.key.is_empty() { "local master key" } else { &self.key };
        format!("{key} (epoch {})", self.epoch)
    }
}

impl FileFacts {
    fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        out.fact("volume id", &self.volume_id)?;
        out.fact("object id", &self.object_id)?;
        out.fact("size", format!("{} bytes", self.size))?;
        out.fact("backing size", format!("{} bytes", self.backing_size))?;
        out.fact("generation", self.generation.to_string())?;
        out.fact("wrap epoch", self.wrap_epoch.to_string())?;
        out.fact("data key id", &self.data_key_id)?;
        for recipient in &self.recipients {
            out.fact("recipient", recipient.text())?;
        }
        if let Some(next) = &self.next_data_key_id {
            out.fact("next data key id", next)?;
        }
        out.fact("authenticated", mac_text(self.authenticated))
    }
}
