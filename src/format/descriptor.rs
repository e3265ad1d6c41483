//! `kmsfs.volume`: the volume descriptor.
//!
//! Invariants: what parses encodes to the same bytes; sizes and Argon2 costs are bounded, because
//! they are read before anything could be authenticated. Must not know how a key is had.

use super::bytes::{Reader, is_zero};
use super::header::Recipient;
use super::layout::Layout;
use super::recipient::Role;
use super::{CHUNK_LOG2, FormatError, SUITE, VERSION, VolumeId, check_suite, check_version};

/// First bytes of the descriptor.
pub const MAGIC: &[u8; 8] = b"KMSFSVOL";
/// Longest descriptor, bytes.
pub const MAX_LEN: usize = 1 << 20;
/// Bytes of the MAC at the end.
pub const MAC_LEN: usize = 32;
/// Most master slots.
pub const MAX_MASTERS: usize = 16;
/// Most allowed keys, and most wrapped copies of the volume key.
pub const MAX_KEYS: usize = 64;
/// Most feature names of one class.
pub const MAX_FEATURES: usize = 64;
/// Longest key-file hint, bytes.
pub const MAX_HINT: usize = 4096;
/// Most Argon2 memory a descriptor may ask for, KiB.
pub const MAX_ARGON2_KIB: u32 = 1 << 20;
/// Most Argon2 passes.
pub const MAX_ARGON2_PASSES: u32 = 64;
/// Most Argon2 lanes.
pub const MAX_ARGON2_LANES: u32 = 64;
/// Most Argon2 memory times passes of one slot, KiB: seconds of work.
pub const MAX_ARGON2_WORK: u64 = 8 << 20;
/// Most Argon2 memory times passes of all slots together, KiB: what one wrong passphrase may cost.
pub const MAX_ARGON2_TOTAL: u64 = 16 << 20;
/// Most new files that share a data key.
pub const MAX_FILES_PER_DATA_KEY: u32 = 65536;

/// Incompatible features this reader knows.
const KNOWN_INCOMPAT: &[&str] = &[];
/// Read-only compatible features this writer knows.
const KNOWN_RO_COMPAT: &[&str] = &[];

/// Bytes before the records.
const START_LEN: usize = 16;

mod kind {
    pub const VOLUME: u16 = 1;
    pub const PARAMS: u16 = 2;
    pub const COMPAT: u16 = 3;
    pub const RO_COMPAT: u16 = 4;
    pub const INCOMPAT: u16 = 5;
    pub const MASTER: u16 = 6;
    pub const ALLOWED: u16 = 7;
    pub const VOLUME_KEY: u16 = 8;
    pub const MAC: u16 = 0xffff;
}

/// How names are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NameMode {
    /// Encrypted.
    Encrypted = 1,
    /// As they are.
    Plain = 2,
}

/// Volume parameters. All but the generation are fixed at init.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Params {
    /// 1, 2 or 4.
    pub header_blocks: u8,
    /// Name storage.
    pub names: NameMode,
    /// 1..=65536 new files share a data key.
    pub files_per_data_key: u32,
    /// Seconds since 1970.
    pub created: u64,
    /// 1 at first, one more with each change of the descriptor: which of two is the later one.
    pub generation: u64,
}

/// How a local master key is unlocked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MasterKdf {
    /// HKDF of a key file's secret; the path is a hint only.
    Keyfile,
    /// Argon2id with its cost.
    Passphrase {
        /// KiB.
        m_kib: u32,
        /// Passes.
        t: u32,
        /// Lanes.
        p: u32,
    },
}

/// One way to the local master key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterSlot {
    /// Derivation.
    pub kdf: MasterKdf,
    /// Salt of the derivation.
    pub salt: [u8; 16],
    /// Where the key file was at init; empty for passphrases.
    pub hint: String,
    /// The master key under the derived key.
    pub wrapped: [u8; 48],
}

/// The parsed descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Volume id.
    pub volume: VolumeId,
    /// Parameters.
    pub params: Params,
    /// Feature names a reader may ignore.
    pub compat: Vec<String>,
    /// Feature names a reader may ignore when it does not write.
    pub ro_compat: Vec<String>,
    /// Feature names a reader must know.
    pub incompat: Vec<String>,
    /// Ways to the local master key.
    pub masters: Vec<MasterSlot>,
    /// Wrapping keys headers may name (wrapped empty).
    pub allowed: Vec<Recipient>,
    /// Wrapped copies of the volume key.
    pub volume_keys: Vec<Recipient>,
}

/// File name in the backing root.
pub const DESCRIPTOR_NAME: &str = "kmsfs.volume";

impl Descriptor {
    /// Encodes with its MAC. Values the format does not allow are written as they are, and refused
    /// by every reader: see [`Self::encode_checked`].
    pub fn encode(&self, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 4]);
        record(&mut out, kind::VOLUME, &self.volume.0);
        record(&mut out, kind::PARAMS, &self.params.encode());
        for (kind, names) in [
            (kind::COMPAT, &self.compat),
            (kind::RO_COMPAT, &self.ro_compat),
            (kind::INCOMPAT, &self.incompat),
        ] {
            names.iter().for_each(|name| record(&mut out, kind, name.as_bytes()));
        }
        for master in &self.masters {
            record(&mut out, kind::MASTER, &master.encode());
        }
        for (kind, keys) in [(kind::ALLOWED, &self.allowed), (kind::VOLUME_KEY, &self.volume_keys)]
        {
            for key in keys {
                let mut payload = Vec::with_capacity(key.encoded_len());
                key.encode(&mut payload);
                record(&mut out, kind, &payload);
            }
        }
        record(&mut out, kind::MAC, &[0; MAC_LEN]);
        let total = out.len() as u32;
        out[12..START_LEN].copy_from_slice(&total.to_le_bytes());
        let end = out.len() - MAC_LEN;
        let mac = mac(&out[..end]);
        out[end..].copy_from_slice(&mac);
        out
    }
    /// Like [`Self::encode`], but makes sure that the result parses to this very descriptor; the
    /// error is the one a reader would give.
    pub fn encode_checked(
        &self,
        mac: impl FnOnce(&[u8]) -> [u8; 32],
    ) -> Result<Vec<u8>, FormatError> {
        let bytes = self.encode(mac);
        match Self::parse(&bytes)? {
            (read, _) if read == *self => Ok(bytes),
            _ => Err(FormatError::Field("descriptor")),
        }
    }
    /// Parses without the MAC (it needs a key found inside): every structural check, feature names
    /// included (unknown incompat features are refused; ro-compat ones reported by
    /// [`Self::read_only_reason`]). Returns the descriptor and the length of the MACed part; the
    /// MAC is the 32 bytes after it.
    ///
    /// Order: length, magic, minimum reader version, version, total length, then record by record:
    /// order of types, the payload; then what must be there.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), FormatError> {
        if !(START_LEN..=MAX_LEN).contains(&bytes.len()) {
            return Err(FormatError::Length(bytes.len()));
        }
        let mut r = Reader::new(bytes, "record length");
        if r.array()? != *MAGIC {
            return Err(FormatError::Magic);
        }
        let (version, min_reader) = (r.u16()?, r.u16()?);
        check_version(min_reader)?;
        check_version(version)?;
        if usize::try_from(r.u32()?) != Ok(bytes.len()) {
            return Err(FormatError::Length(bytes.len()));
        }
        let mut parts = Parts::default();
        let mut last = 0;
        while last != kind::MAC {
            last = parts.record(&mut r, last)?;
        }
        if !r.is_done() {
            return Err(FormatError::Length(bytes.len()));
        }
        Ok((parts.finish()?, bytes.len() - MAC_LEN))
    }
    /// Name of an unknown read-only compatible feature, if any.
    pub fn read_only_reason(&self) -> Option<&str> {
        self.ro_compat.iter().map(String::as_str).find(|name| !KNOWN_RO_COMPAT.contains(name))
    }
}

fn record(out: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend([0, 0]);
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(payload);
}

/// A descriptor of which not every record has been seen.
#[derive(Default)]
struct Parts {
    volume: Option<VolumeId>,
    params: Option<Params>,
    features: [Vec<String>; 3],
    masters: Vec<MasterSlot>,
    allowed: Vec<Recipient>,
    volume_keys: Vec<Recipient>,
}

impl Parts {
    /// Takes one record; returns its type. Order: type known and not below the last one, reserved,
    /// length, payload.
    fn record(&mut self, r: &mut Reader<'_>, last: u16) -> Result<u16, FormatError> {
        let kind = r.u16()?;
        if !matches!(kind, kind::VOLUME..=kind::VOLUME_KEY | kind::MAC) {
            return Err(FormatError::Field("record type"));
        }
        let repeats = matches!(kind, kind::COMPAT..=kind::VOLUME_KEY);
        if kind < last || (kind == last && !repeats) {
            return Err(FormatError::Field("record order"));
        }
        r.zero(2, "record reserved")?;
        let len = r.u32()?;
        let payload = r.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        match kind {
            kind::VOLUME => self.volume = Some(VolumeId(exact(payload)?)),
            kind::PARAMS => self.params = Some(Params::decode(&exact(payload)?)?),
            kind::COMPAT..=kind::INCOMPAT => self.feature(kind, payload)?,
            kind::MASTER => self.master(payload)?,
            kind::ALLOWED => push(&mut self.allowed, key(payload, Role::NameOnly)?, MAX_KEYS)?,
            kind::VOLUME_KEY => {
                push(&mut self.volume_keys, key(payload, Role::Wrapped)?, MAX_KEYS)?;
            }
            _ => drop(exact::<MAC_LEN>(payload)?),
        }
        Ok(kind)
    }
    fn master(&mut self, payload: &[u8]) -> Result<(), FormatError> {
        let slot = MasterSlot::decode(payload)?;
        let work = slot.work() + self.masters.iter().map(MasterSlot::work).sum::<u64>();
        if work > MAX_ARGON2_TOTAL {
            return Err(FormatError::Field("master slots cost"));
        }
        push(&mut self.masters, slot, MAX_MASTERS)
    }
    fn feature(&mut self, kind: u16, payload: &[u8]) -> Result<(), FormatError> {
        let name = feature_name(payload)?;
        let class = &mut self.features[usize::from(kind - kind::COMPAT)];
        if class.contains(&name) {
            return Err(FormatError::Field("feature name"));
        }
        if kind == kind::INCOMPAT && !KNOWN_INCOMPAT.contains(&name.as_str()) {
            return Err(FormatError::Feature(name));
        }
        push(class, name, MAX_FEATURES)
    }
    fn finish(self) -> Result<Descriptor, FormatError> {
        let [compat, ro_compat, incompat] = self.features;
        if self.volume_keys.is_empty() {
            return Err(FormatError::Field("volume keys"));
        }
        Ok(Descriptor {
            volume: self.volume.ok_or(FormatError::Field("volume id"))?,
            params: self.params.ok_or(FormatError::Field("parameters"))?,
            compat,
            ro_compat,
            incompat,
            masters: self.masters,
            allowed: self.allowed,
            volume_keys: self.volume_keys,
        })
    }
}

fn exact<const N: usize>(payload: &[u8]) -> Result<[u8; N], FormatError> {
    payload.try_into().map_err(|_| FormatError::Field("record length"))
}
fn push<T>(list: &mut Vec<T>, item: T, most: usize) -> Result<(), FormatError> {
    if list.len() >= most {
        return Err(FormatError::Field("record count"));
    }
    list.push(item);
    Ok(())
}
/// 1 to 64 visible ASCII characters, so that it can be shown as it is.
fn feature_name(payload: &[u8]) -> Result<String, FormatError> {
    let fits = (1..=64).contains(&payload.len()) && payload.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(payload) {
        Ok(name) if fits => Ok(name.to_owned()),
        _ => Err(FormatError::Field("feature name")),
    }
}
fn key(payload: &[u8], role: Role) -> Result<Recipient, FormatError> {
    let mut r = Reader::new(payload, "recipient length");
    let recipient = Recipient::decode(&mut r, role)?;
    if r.is_done() { Ok(recipient) } else { Err(FormatError::Field("recipient length")) }
}

impl Params {
    fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..4].copy_from_slice(&[SUITE, CHUNK_LOG2, self.header_blocks, self.names as u8]);
        out[4..8].copy_from_slice(&self.files_per_data_key.to_le_bytes());
        out[8..16].copy_from_slice(&self.created.to_le_bytes());
        out[16..].copy_from_slice(&self.generation.to_le_bytes());
        out
    }
    /// Order: suite, chunk size, header blocks, names, files per data key, generation.
    fn decode(bytes: &[u8; 24]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "parameters");
        check_suite(r.u8()?, r.u8()?)?;
        let header_blocks = Layout::new(r.u8()?)?.header_blocks();
        let names = match r.u8()? {
            1 => NameMode::Encrypted,
            2 => NameMode::Plain,
            _ => return Err(FormatError::Field("names")),
        };
        let files_per_data_key = r.u32()?;
        if !(1..=MAX_FILES_PER_DATA_KEY).contains(&files_per_data_key) {
            return Err(FormatError::Field("files_per_data_key"));
        }
        let (created, generation) = (r.u64()?, r.u64()?);
        if generation == 0 {
            return Err(FormatError::Field("descriptor generation"));
        }
        Ok(Self { header_blocks, names, files_per_data_key, created, generation })
    }
}

impl MasterSlot {
    /// Argon2 memory times passes, KiB.
    fn work(&self) -> u64 {
        match self.kdf {
            MasterKdf::Keyfile => 0,
            MasterKdf::Passphrase { m_kib, t, .. } => u64::from(m_kib) * u64::from(t),
        }
    }
    fn encode(&self) -> Vec<u8> {
        let (kind, [m_kib, t, p]) = match self.kdf {
            MasterKdf::Keyfile => (1, [0; 3]),
            MasterKdf::Passphrase { m_kib, t, p } => (2, [m_kib, t, p]),
        };
        let mut out = vec![kind, 0, 0, 0];
        [m_kib, t, p].iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(self.salt);
        out.extend((self.hint.len() as u16).to_le_bytes());
        out.extend(self.hint.as_bytes());
        out.extend(self.wrapped);
        out
    }
    /// Order: kind, reserved, derivation cost, hint (UTF-8, characters, length, none for
    /// passphrases), end.
    fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(payload, "master slot length");
        let kind = r.u8()?;
        if !(1..=2).contains(&kind) {
            return Err(FormatError::Field("master slot kind"));
        }
        r.zero(3, "master slot reserved")?;
        let cost: [u8; 12] = r.array()?;
        let kdf = if kind == 1 { keyfile(&cost)? } else { passphrase(&cost)? };
        let salt = r.array()?;
        let hint_len = usize::from(r.u16()?);
        let most = if kind == 1 { MAX_HINT } else { 0 };
        let hint = std::str::from_utf8(r.take(hint_len)?).ok();
        let hint = hint.filter(|hint| hint.len() <= most && is_hint(hint));
        let hint = hint.ok_or(FormatError::Field("master slot hint"))?.to_owned();
        let wrapped = r.array()?;
        if !r.is_done() {
            return Err(FormatError::Field("master slot length"));
        }
        Ok(Self { kdf, salt, hint, wrapped })
    }
}

/// May this path be remembered? It is shown to people before anything vouches for it, so a terminal
/// must have nothing to obey in it.
pub fn is_hint(path: &str) -> bool {
    path.len() <= MAX_HINT && !path.contains(char::is_control)
}

fn keyfile(cost: &[u8; 12]) -> Result<MasterKdf, FormatError> {
    if is_zero(cost) { Ok(MasterKdf::Keyfile) } else { Err(FormatError::Field("master slot cost")) }
}
/// Argon2's own lower bounds, and upper ones that keep a forged descriptor from eating the machine.
fn passphrase(cost: &[u8; 12]) -> Result<MasterKdf, FormatError> {
    let mut r = Reader::new(cost, "master slot length");
    let (m_kib, t, p) = (r.u32()?, r.u32()?, r.u32()?);
    let fits = (1..=MAX_ARGON2_LANES).contains(&p)
        && (1..=MAX_ARGON2_PASSES).contains(&t)
        && (8 * p..=MAX_ARGON2_KIB).contains(&m_kib)
        && u64::from(m_kib) * u64::from(t) <= MAX_ARGON2_WORK;
    if fits {
        Ok(MasterKdf::Passphrase { m_kib, t, p })
    } else {
        Err(FormatError::Field("master slot cost"))
    }
}

#[cfg(test)]
mod tests;
