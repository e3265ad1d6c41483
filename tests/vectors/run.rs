//! Runs one vector with nothing but what stands in it.

use super::file::Vector;
use super::kit::{self, ReadError, Volume, array};
use kmsfs::crypto::volumekeys::{decode_name, long_name_hash};
use kmsfs::crypto::{DataKey, FileKeys};
use kmsfs::format::descriptor::Descriptor;
use kmsfs::format::header::Header;
use kmsfs::format::layout::{self, Layout};
use kmsfs::format::tags::TagBlock;
use kmsfs::format::{DirId, FormatError, ObjectId, dirfile, is_name};

/// What a vector gave: nothing, an error of the format layer, or another one by its name.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Format(FormatError),
    Other(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Format(e) => write!(f, "{e:?}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}
impl<T> From<Result<T, FormatError>> for Outcome {
    fn from(result: Result<T, FormatError>) -> Self {
        result.map_or_else(Self::Format, |_| Self::Ok)
    }
}

fn volume(v: &Vector) -> Volume {
    let blocks = v.get_number("header blocks") as u8;
    let [id, key, master] = ["volume id", "volume key", "master key"].map(|n| v.get_bytes(n));
    Volume::new(id, key, master, blocks)
}
fn verdict(accepted: bool, error: &str) -> Outcome {
    if accepted { Outcome::Ok } else { Outcome::Other(error.into()) }
}

/// The outcome of a vector.
pub fn run(v: &Vector) -> Outcome {
    match v.kind.as_str() {
        "header" => header(v),
        "descriptor" => descriptor(v),
        "directory" => directory(v),
        "tag block" => TagBlock::decode(&array(v.get_bytes("payload"))).into(),
        "chunk" => chunk(v),
        "file" => file(v),
        "name" => name(v),
        "long name" => long_name(v),
        "symlink" => symlink(v),
        "attribute" => attribute(v),
        "size" => size(v),
        "length" => length(v),
        other => panic!("{}: unknown kind {other}", v.name),
    }
}

fn header(v: &Vector) -> Outcome {
    let volume = volume(v);
    let mac_ok = |bytes: &[u8], mac: &[u8; 32]| volume.keys.header_mac_ok(bytes, mac);
    let bytes = v.get_bytes("payload");
    let result = Header::decode(bytes, volume.layout, volume.id, mac_ok);
    if let Ok(header) = &result {
        let again = header.encode(volume.layout, |bytes| volume.keys.header_mac(bytes));
        assert_eq!(again.as_deref(), Ok(bytes), "{}: encodes differently", v.name);
    }
    result.into()
}

fn descriptor(v: &Vector) -> Outcome {
    let bytes = v.get_bytes("payload");
    let (descriptor, maced) = match Descriptor::parse(bytes) {
        Ok(parsed) => parsed,
        Err(e) => return Outcome::Format(e),
    };
    let keys = volume(v).keys;
    if !keys.descriptor_mac_ok(&bytes[..maced], &array(&bytes[maced..])) {
        return Outcome::Format(FormatError::Mac);
    }
    assert_eq!(descriptor.encode(|b| keys.descriptor_mac(b)), bytes, "{}", v.name);
    match descriptor.read_only_reason() {
        None => Outcome::Ok,
        Some(feature) => Outcome::Other(format!("read-only: {feature}")),
    }
}

fn directory(v: &Vector) -> Outcome {
    let keys = volume(v).keys;
    let mac_ok = |bytes: &[u8], mac: &[u8; 32]| keys.directory_mac_ok(bytes, mac);
    let result = dirfile::decode(v.get_bytes("payload"), mac_ok);
    if let Ok(id) = result {
        assert_eq!(id.0, v.get_bytes("directory id"), "{}", v.name);
    }
    result.into()
}

fn chunk(v: &Vector) -> Outcome {
    let data_key = DataKey(kit::secret(v.get_bytes("data key")));
    let object = ObjectId(array(v.get_bytes("object id")));
    let keys = FileKeys::derive(&data_key, object, &array(v.get_bytes("life salt")));
    let key = keys.segment_key(v.get_number("segment"), &array(v.get_bytes("segment salt")));
    let (nonce, tag) = (array(v.get_bytes("nonce")), array(v.get_bytes("tag")));
    let aad = keys.chunk_aad(v.get_number("chunk"));
    let mut data = v.get_bytes("payload").to_vec();
    let opened = key.open_in_place(&nonce, &aad, &mut data, &tag);
    if opened.is_ok() {
        assert_eq!(data, v.get_bytes("plaintext"), "{}", v.name);
    }
    verdict(opened.is_ok(), "AuthError")
}

fn file(v: &Vector) -> Outcome {
    match volume(v).read(v.get_bytes("payload")) {
        Ok(plain) => {
            assert!(plain == v.get_bytes("plaintext"), "{}: other plaintext", v.name);
            Outcome::Ok
        }
        Err(ReadError::Format(e)) => Outcome::Format(e),
        Err(other) => Outcome::Other(format!("{other:?}")),
    }
}

fn name(v: &Vector) -> Outcome {
    let Some(sealed) = decode_name(v.get_text("stored").as_bytes()) else {
        return Outcome::Other("NotBase64".into());
    };
    let opened = volume(v).keys.open_name(DirId(array(v.get_bytes("directory id"))), &sealed);
    if let Ok(name) = &opened {
        assert_eq!(name, v.get_bytes("name"), "{}", v.name);
        return verdict(is_name(name), "NotAName");
    }
    verdict(opened.is_ok(), "AuthError")
}

fn long_name(v: &Vector) -> Outcome {
    let sealed = v.get_bytes("payload");
    if v.get_text("stored") != format!("kmsfs.long.{}", long_name_hash(sealed)) {
        return Outcome::Other("NameHash".into());
    }
    let opened = volume(v).keys.open_name(DirId(array(v.get_bytes("directory id"))), sealed);
    if let Ok(name) = &opened {
        assert_eq!(name, v.get_bytes("name"), "{}", v.name);
    }
    verdict(opened.is_ok(), "AuthError")
}

fn symlink(v: &Vector) -> Outcome {
    let Some(sealed) = decode_name(v.get_text("stored").as_bytes()) else {
        return Outcome::Other("NotBase64".into());
    };
    let opened = volume(v).keys.open_symlink(&sealed);
    if let Ok(target) = &opened {
        assert_eq!(target, v.get_bytes("target"), "{}", v.name);
    }
    verdict(opened.is_ok(), "AuthError")
}

fn attribute(v: &Vector) -> Outcome {
    let (keys, object) = (volume(v).keys, array(v.get_bytes("object id")));
    let (stored, payload) = (v.get_text("stored"), v.get_bytes("payload"));
    let prefix = ["user.kmsfs.", "trusted.kmsfs."].into_iter().find(|p| stored.starts_with(p));
    let prefix = prefix.expect("a prefix");
    let text = &stored[prefix.len()..];
    let (sealed, value) = match text.strip_prefix("long.") {
        Some(hash) => match long_attribute(prefix, hash, payload) {
            Some(parts) => parts,
            None => return Outcome::Other("NameHash".into()),
        },
        None => match decode_name(text.as_bytes()) {
            Some(sealed) => (sealed, payload),
            None => return Outcome::Other("NotBase64".into()),
        },
    };
    let Ok(name) = keys.open_xattr_name(&object, &sealed) else {
        return Outcome::Other("AuthError in name".into());
    };
    if name.starts_with(b"user.") != (prefix == "user.kmsfs.") {
        return Outcome::Other("OtherPrefix".into());
    }
    let opened = keys.open_xattr_value(&object, &name, value);
    if let Ok(value) = &opened {
        assert_eq!((&name[..], &value[..]), (v.get_bytes("name"), v.get_bytes("value")));
    }
    verdict(opened.is_ok(), "AuthError in value")
}

/// Sealed name and value of an attribute with a long name, by section 6 of FORMAT.md.
fn long_attribute<'a>(prefix: &str, hash: &str, payload: &'a [u8]) -> Option<(Vec<u8>, &'a [u8])> {
    let len = usize::from(u16::from_le_bytes(payload.get(..2)?.try_into().ok()?));
    let (sealed, value) = payload[2..].split_at_checked(len)?;
    let does_not_fit = prefix.len() + (len * 4).div_ceil(3) > 255 && len <= 271;
    (does_not_fit && hash == long_name_hash(sealed)).then(|| (sealed.to_vec(), value))
}

fn size(v: &Vector) -> Outcome {
    let (plain, blocks) = (v.get_number("size"), v.get_number("header blocks") as u8);
    let layout = match Layout::new(blocks).and_then(|l| layout::check_size(plain).map(|()| l)) {
        Ok(layout) => layout,
        Err(e) => return Outcome::Format(e),
    };
    assert_eq!(layout.backing_len(plain), v.get_number("backing length"), "{}", v.name);
    Outcome::Ok
}

fn length(v: &Vector) -> Outcome {
    let layout = Layout::new(v.get_number("header blocks") as u8).expect("header blocks");
    let backing = v.get_number("backing length");
    assert_eq!(layout.plain_len_floor(backing), v.get_number("shown size"), "{}", v.name);
    verdict(layout.plain_len(backing).is_some(), "NoSize")
}
