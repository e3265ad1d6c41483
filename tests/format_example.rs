//! The worked example of FORMAT.md, number by number, against the library.

#[path = "vectors/kit.rs"]
mod kit;

use kit::{Volume, array, hex, secret, unhex, unrows};
use kmsfs::crypto::volumekeys::{encode_name, long_name_hash};
use kmsfs::crypto::wrap::{self, Argon2Cost, Purpose};
use kmsfs::crypto::{DataKey, FileKeys, SecretBytes, hpke};
use kmsfs::format::descriptor::{Descriptor, MasterKdf, MasterSlot, NameMode, Params};
use kmsfs::format::header::{Header, KeySlot, Recipient, RecipientKind};
use kmsfs::format::journal::{Change, Fresh, Head, Record};
use kmsfs::format::layout::Layout;
use kmsfs::format::tags::{Node, Segment, TagBlock, TagEntry};
use kmsfs::format::{BLOCK, DataKeyId, DirId, ObjectId, VolumeId, dirfile};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

const TEXT: &str = include_str!("../src/format/FORMAT.md");

/// The values of the example, by name, and which of them have been used.
struct Example {
    values: BTreeMap<String, Vec<u8>>,
    used: RefCell<BTreeSet<String>>,
}

impl Example {
    fn parse() -> Self {
        let mut values = BTreeMap::new();
        for block in TEXT.split("```example\n").skip(1) {
            let block = block.split("```").next().expect("an end");
            let mut lines = block.lines().peekable();
            while let Some(line) = lines.next() {
                let (name, value) = line.split_once(": ").expect("name and value");
                let value = match value.strip_prefix('"') {
                    Some(text) => text.trim_end_matches('"').as_bytes().to_vec(),
                    None if value.ends_with(" bytes") => unrows(value, &mut lines),
                    None => unhex(value),
                };
                assert!(values.insert(name.to_owned(), value).is_none(), "{name} twice");
            }
        }
        Self { values, used: RefCell::default() }
    }
    /// A value that is an input.
    fn get(&self, name: &str) -> &[u8] {
        self.used.borrow_mut().insert(name.to_owned());
        self.values.get(name).unwrap_or_else(|| panic!("no {name} in FORMAT.md"))
    }
    /// A value that the library must arrive at.
    fn check(&self, name: &str, computed: impl AsRef<[u8]>) {
        assert_eq!(hex(self.get(name)), hex(computed.as_ref()), "{name}: version bump required");
    }
    fn volume(&self) -> Volume {
        Volume::new(self.get("volume id"), self.get("volume key"), self.get("master key"), 1)
    }
    fn file_keys(&self) -> FileKeys {
        let data_key = DataKey(secret(self.get("data key")));
        FileKeys::derive(&data_key, self.object(), &array(self.get("life salt")))
    }
    fn object(&self) -> ObjectId {
        ObjectId(array(self.get("object id")))
    }
    fn local(&self, wrapped: &str) -> Recipient {
        let (kind, wrapped) = (RecipientKind::LocalMaster, self.get(wrapped).to_vec());
        Recipient { kind, epoch: 1, key_ref: vec![], wrapped }
    }
}

/// HKDF by the crate itself: for keys the library does not give out.
fn hkdf(ikm: &[u8], salt: &[u8], info: &[u8], len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let state = hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), ikm);
    state.expand(info, &mut out).expect("short");
    out
}
fn expand(prk: &[u8], info: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 32];
    let state = hkdf::Hkdf::<sha2::Sha256>::from_prk(prk).expect("32 bytes");
    state.expand(info, &mut out).expect("short");
    out
}
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    use hmac::{KeyInit, Mac};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).expect("any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn volume_keys(e: &Example) {
    let (key, id) = (e.get("volume key"), e.get("volume id"));
    for (name, len) in [
        ("header mac", 32),
        ("descriptor mac", 32),
        ("directory mac", 32),
        ("names", 64),
        ("symlinks", 64),
        ("xattrs", 64),
        ("journal head mac", 32),
        ("journal", 32),
    ] {
        let info = format!("kmsfs v1 {name}");
        e.check(&format!("{name} key"), hkdf(key, id, info.as_bytes(), len));
    }
    let keys = e.volume().keys;
    assert_eq!(keys.header_mac(b"m")[..], hmac(e.get("header mac key"), b"m"));
    assert_eq!(keys.descriptor_mac(b"m")[..], hmac(e.get("descriptor mac key"), b"m"));
    assert_eq!(keys.directory_mac(b"m")[..], hmac(e.get("directory mac key"), b"m"));
}

fn wrapping(e: &Example) {
    let (volume, salt) = (e.volume(), array(e.get("master slot salt")));
    let kek = wrap::kek_from_keyfile(&secret(e.get("key file secret")), &salt);
    e.check("key file KEK", kek.expose());
    let passphrase = SecretBytes::new(b"correct horse".to_vec());
    let cost = Argon2Cost { m_kib: 64, t: 2, p: 1 };
    let from_passphrase = wrap::kek_from_passphrase(&passphrase, &salt, cost).expect("derives");
    e.check("passphrase KEK", from_passphrase.expose());
    let master = secret(e.get("master key"));
    e.check("wrapped master", wrap::seal_master(&kek, volume.id, &master));
    let local = hkdf(e.get("master key"), e.get("volume id"), b"kmsfs v1 local wrap", 64);
    e.check("local wrap key", local);
    let for_volume = wrap::context(volume.id, Purpose::Volume);
    let data_key_id = DataKeyId(array(e.get("data key id")));
    let for_data = wrap::context(volume.id, Purpose::Data(data_key_id));
    e.check("volume key context", for_volume);
    e.check("data key context", for_data);
    e.check("wrapped volume key", volume.local.seal(&for_volume, &secret(e.get("volume key"))));
    e.check("wrapped data key", volume.local.seal(&for_data, &secret(e.get("data key"))));
    let identity = hpke::Identity::from_secret(secret(e.get("x25519 identity")));
    e.check("x25519 public key", identity.public_key());
    let wrapped = e.get("x25519 wrapped volume key");
    let opened = hpke::open(&identity, &for_volume, wrapped).expect("opens");
    e.check("volume key", opened.expose());
    let ephemeral = hpke::Identity::from_secret(secret(e.get("x25519 ephemeral private key")));
    assert_eq!(wrapped[..32], ephemeral.public_key());
}

fn descriptor(e: &Example) {
    let public = e.get("x25519 public key").to_vec();
    let x25519 = |wrapped: &[u8]| Recipient {
        kind: RecipientKind::X25519,
        epoch: 1,
        key_ref: public.clone(),
        wrapped: wrapped.to_vec(),
    };
    let named = Recipient { wrapped: vec![], ..e.local("wrapped volume key") };
    let descriptor = Descriptor {
        volume: VolumeId(array(e.get("volume id"))),
        params: Params {
            header_blocks: 1,
            names: NameMode::Encrypted,
            files_per_data_key: 64,
            created: 1_700_000_000,
            generation: 1,
        },
        compat: vec![],
        ro_compat: vec![],
        incompat: vec![],
        masters: vec![MasterSlot {
            kdf: MasterKdf::Keyfile,
            salt: array(e.get("master slot salt")),
            hint: "/k".into(),
            wrapped: array(e.get("wrapped master")),
        }],
        allowed: vec![named, x25519(&[])],
        volume_keys: vec![
            e.local("wrapped volume key"),
            x25519(e.get("x25519 wrapped volume key")),
        ],
    };
    let keys = e.volume().keys;
    e.check("kmsfs.volume", descriptor.encode(|bytes| keys.descriptor_mac(bytes)));
    let bytes = e.get("kmsfs.volume");
    let (read, maced) = Descriptor::parse(bytes).expect("parses");
    assert_eq!(read, descriptor);
    assert!(keys.descriptor_mac_ok(&bytes[..maced], &array(&bytes[maced..])));
}

fn names(e: &Example) {
    let (keys, dir) = (e.volume().keys, DirId(array(e.get("directory id"))));
    e.check("kmsfs.dir", dirfile::encode(dir, |bytes| keys.directory_mac(bytes)));
    let mac_ok = |bytes: &[u8], mac: &[u8; 32]| keys.directory_mac_ok(bytes, mac);
    assert_eq!(dirfile::decode(e.get("kmsfs.dir"), mac_ok), Ok(dir));
    let sealed = keys.seal_name(dir, b"hello.txt");
    e.check("sealed name", &sealed);
    e.check("stored name", encode_name(&sealed));
    let sealed = keys.seal_name(dir, &[b'n'; 255]);
    e.check("sealed long name", &sealed);
    e.check("stored long name", format!("kmsfs.long.{}", long_name_hash(&sealed)));
    e.check("stored symlink target", encode_name(&keys.seal_symlink(b"hello.txt")));
    let (object, name) = (e.object().0, b"user.mime");
    let stored = encode_name(&keys.seal_xattr_name(&object, name));
    e.check("stored attribute name", format!("user.kmsfs.{stored}"));
    let sealed = keys.seal_xattr_value(&object, name, b"text/plain");
    e.check("stored attribute value", sealed);
    let name = [b"user.".as_slice(), &[b'n'; 200]].concat();
    let sealed = keys.seal_xattr_name(&object, &name);
    e.check("sealed long attribute name", &sealed);
    e.check("stored long attribute name", format!("user.kmsfs.long.{}", long_name_hash(&sealed)));
    let value = keys.seal_xattr_value(&object, &name, b"text/plain");
    let length = (sealed.len() as u16).to_le_bytes();
    e.check("stored long attribute value", [&length[..], &sealed, &value].concat());
}

fn file_keys(e: &Example) {
    let identity = [e.get("object id"), e.get("life salt")].concat();
    e.check("file key", hkdf(e.get("data key"), &identity, b"kmsfs v1 file key", 32));
    let file_key = e.get("file key");
    e.check("commitment", e.file_keys().commitment());
    e.check("commitment", expand(file_key, b"kmsfs v1 commitment"));
    e.check("tree key", expand(file_key, b"kmsfs v1 tree"));
    for number in [0u64, 2] {
        let salt = e.get("segment salt");
        let info = [b"kmsfs v1 segment", &number.to_le_bytes()[..], salt].concat();
        e.check(&format!("segment {number} key"), expand(file_key, &info));
    }
}

/// Encrypts one chunk as the example does; checks ciphertext and tag.
fn chunk(e: &Example, segment: u64, index: u64, plain: &[u8]) -> TagEntry {
    let (keys, nonce) = (e.file_keys(), array(e.get("nonce")));
    let mut data = plain.to_vec();
    let key = keys.segment_key(segment, &array(e.get("segment salt")));
    let tag = key.seal_in_place(&nonce, &keys.chunk_aad(index), &mut data);
    e.check(&format!("chunk {index}"), &data);
    let tag = TagEntry { nonce, tag };
    e.check(&format!("tag {index}"), tag.encode());
    tag
}

fn header(e: &Example, generation: u64, size: u64, segment: Segment, tag: TagEntry) -> Header {
    let mut tags = Box::new([TagEntry::HOLE; 64]);
    tags[0] = tag;
    Header {
        volume: VolumeId(array(e.get("volume id"))),
        object: e.object(),
        life_salt: array(e.get("life salt")),
        generation,
        size,
        root_hash: [0; 32],
        wrap_epoch: 1,
        segment,
        tags,
        current: KeySlot {
            data_key_id: DataKeyId(array(e.get("data key id"))),
            commitment: array(e.get("commitment")),
            recipients: vec![e.local("wrapped data key")],
        },
        next: None,
    }
}

/// Completes and encodes the header; checks the root hash.
fn sealed(e: &Example, mut h: Header, name: &str, top: &[u8; 32]) -> Vec<u8> {
    let keys = e.file_keys();
    h.root_hash = keys.root_hash(h.generation, h.size, &h.segment, &h.tag_bytes(), top);
    e.check(name, h.root_hash);
    let volume = e.volume();
    h.encode(volume.layout, |bytes| volume.keys.header_mac(bytes)).expect("encodes")
}

fn small_file(e: &Example) {
    let plain = b"Hello, kmsfs!\n";
    let tag = chunk(e, 0, 0, plain);
    let segment = Segment { salt: array(e.get("segment salt")), writes: 1, key_slot: 0 };
    let h = header(e, 1, plain.len() as u64, segment, tag);
    let mut file = sealed(e, h, "small file root hash", &[0; 32]);
    file.extend(e.get("chunk 0"));
    e.check("small file", &file);
    assert_eq!(e.volume().read(&file), Ok(plain.to_vec()));
}

fn journal(e: &Example) {
    let keys = e.volume().keys;
    let epoch = array(e.get("life salt"));
    let info = [b"kmsfs v1 journal epoch", &epoch[..]].concat();
    e.check("journal epoch key", expand(e.get("journal key"), &info));
    let key = keys.journal_key(&epoch);
    let head = Head { volume: e.volume().id, epoch };
    e.check("journal head", head.encode(|bytes| keys.journal_mac(bytes)).as_slice());

    let (nonce, salt) = (array(e.get("nonce")), array(e.get("segment salt")));
    let mut data = b"Jello, kmsfs!\n".to_vec();
    let segment_key = e.file_keys().segment_key(0, &salt);
    let tag = segment_key.seal_in_place(&nonce, &e.file_keys().chunk_aad(0), &mut data);
    let segment = Segment { salt, writes: 2, key_slot: 0 };
    let changed = header(e, 2, 14, segment, TagEntry { nonce, tag });
    let changed = sealed(e, changed, "changed file root hash", &[0; 32]);
    let record = Record {
        number: 1,
        firm: 0,
        object: e.object(),
        ino: 77,
        base: 1,
        base_root: array(&e.get("small file root hash")[..16]),
        generation: 2,
        mtime: Some((1_700_000_001, 500_000_000)),
        len: 4096 + 14,
        path: e.get("stored name").to_vec(),
        blocks: vec![(0, Change::Image(&changed)), (4096, Change::Image(&data))],
        fresh: vec![Fresh { offset: 12288, sums: vec![crc32fast::hash(b"fresh")], last_len: 5 }],
        freed: std::iter::once(16384..20480).collect(),
    };
    e.check("journal record", record.encode(|bytes| key.mac(bytes)));
    let back = Record::decode(e.get("journal record"), |bytes, mac| key.mac_ok(bytes, mac));
    assert_eq!(back, Ok(record));
}

fn large_file(e: &Example) {
    let (keys, layout) = (e.file_keys(), Layout::new(1).expect("a layout"));
    let size = 192 * 4096 + 4;
    let mut tags = TagBlock::empty();
    tags.tags[0] = chunk(e, 2, 192, b"tail");
    tags.segment = Segment { salt: array(e.get("segment salt")), writes: 1, key_slot: 0 };
    tags.generation = 2;
    let (mut tag_block, mut node_block) = ([0; BLOCK], [0; BLOCK]);
    tags.encode(&mut tag_block);
    let mut node = Node::empty();
    node.children[1] = keys.block_hash(0, 1, &tag_block);
    e.check("hash of tag block 1", node.children[1]);
    node.encode(&mut node_block);
    let top = keys.block_hash(1, 0, &node_block);
    e.check("hash of node 0", top);
    let h = header(e, 2, size, Segment::default(), TagEntry::HOLE);
    let mut file = sealed(e, h, "large file root hash", &top);
    file.resize(layout.backing_len(size) as usize, 0);
    for (at, bytes) in [
        (layout.node_offset(1, 0), &node_block[..]),
        (layout.tag_block_offset(1), &tag_block),
        (layout.chunk_offset(192), e.get("chunk 192")),
    ] {
        file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
    e.check("large file", &file);
    let plain = e.volume().read(&file).expect("reads");
    assert_eq!((plain.len() as u64, &plain[192 * 4096..]), (size, &b"tail"[..]));
    assert!(plain[..192 * 4096].iter().all(|b| *b == 0));
}

#[test]
fn every_value_of_the_worked_example() {
    let e = Example::parse();
    volume_keys(&e);
    wrapping(&e);
    descriptor(&e);
    names(&e);
    file_keys(&e);
    small_file(&e);
    journal(&e);
    large_file(&e);
    let all: BTreeSet<String> = e.values.keys().cloned().collect();
    assert_eq!(*e.used.borrow(), all, "every value must be checked");
    assert!(all.len() >= 45, "{} values", all.len());
}
