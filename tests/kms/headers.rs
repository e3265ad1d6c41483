//! What an attacker with the backing directory can write there: refused before KMS is asked, or by KMS.

use std::fs;
use std::path::PathBuf;

use kmsfs::crypto::{Secret, VolumeKey, VolumeKeys};
use kmsfs::format::header::{Header, Recipient};
use kmsfs::format::layout::Layout;
use kmsfs::format::{DataKeyId, VolumeId};

use super::aws::{FakeAws, Origin};
use super::bed::{Bed, errno, refused};

/// A volume with plain names and strict keys, not mounted, with two files; and its volume keys, which
/// the attacker has got hold of.
fn forged() -> (Bed, Forger) {
    let bed = Bed::with(&["--names", "plain", "--files-per-data-key", "1", "--header-blocks", "4"]);
    let mut bed = bed;
    bed.mount("");
    bed.make_files("a", 2);
    bed.unmount();
    let given = bed.fake.given_out();
    let (context, key) = given.iter().find(|(c, _)| c["kmsfs:purpose"] == "volume").unwrap();
    let id = data_encoding::HEXLOWER.decode(context["kmsfs:volume"].as_bytes()).unwrap();
    let volume = VolumeId(id.try_into().unwrap());
    let key = VolumeKey(Secret::fill_with(|out| out.copy_from_slice(key)));
    let keys = VolumeKeys::derive(&key, volume);
    let forger = Forger { volume, keys, layout: Layout::new(4).unwrap(), source: bed.source() };
    (bed, forger)
}

struct Forger {
    volume: VolumeId,
    keys: VolumeKeys,
    layout: Layout,
    source: PathBuf,
}

impl Forger {
    fn read(&self, name: &str) -> (Vec<u8>, Header) {
        let bytes = fs::read(self.source.join(name)).unwrap();
        let ok = |b: &[u8], m: &[u8; 32]| self.keys.header_mac_ok(b, m);
        let len = self.layout.header_len();
        let header = Header::decode(&bytes[..len], self.layout, self.volume, ok).unwrap();
        (bytes, header)
    }

    /// Changes a header and signs it.
    fn change(&self, name: &str, change: impl FnOnce(&mut Header)) {
        let (mut bytes, mut header) = self.read(name);
        change(&mut header);
        let new = header.encode(self.layout, |b| self.keys.header_mac(b)).unwrap();
        bytes[..new.len()].copy_from_slice(&new);
        fs::write(self.source.join(name), bytes).unwrap();
    }
}

/// Mounts, opens `a-00000`; the errno and the number of calls that cost.
fn open(bed: &mut Bed) -> (i32, u64) {
    bed.mount("ro");
    bed.fake.reset_counters();
    let outcome = errno(fs::File::open(bed.at("a-00000")));
    assert_eq!(fs::read(bed.at("a-00001")).unwrap(), b"file 1", "the other one");
    let calls = bed.fake.calls_total() - 1;
    bed.unmount();
    (outcome, calls)
}

#[test]
fn a_header_that_nobody_signed_costs_no_call() {
    let (mut bed, forger) = forged();
    let path = bed.source().join("a-00000");
    let (mut bytes, _) = forger.read("a-00000");
    bytes[700] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(open(&mut bed), (libc::EIO, 0));
    // Another file's header, as a whole: it is that of another object, and the body does not fit.
    let (other, _) = forger.read("a-00001");
    bytes[..forger.layout.header_len()].copy_from_slice(&other[..forger.layout.header_len()]);
    fs::write(&path, &bytes).unwrap();
    bed.mount("ro");
    assert_eq!(errno(fs::read(bed.at("a-00000"))), libc::EIO);
}

#[test]
fn a_strangers_key_is_not_asked() {
    let (mut bed, forger) = forged();
    let stranger = bed.fake.create_key(Origin::Kms);
    forger
        .change("a-00000", |header| header.current.recipients[0].key_ref = stranger.clone().into());
    assert_eq!(open(&mut bed), (libc::ENOKEY, 0));
    assert!(bed.log().contains(&stranger) && bed.log().contains("not a recipient"));
    assert_eq!(bed.fake.calls_of_key(&stranger), 0);
    forger.change("a-00000", |header| header.current.recipients[0].key_ref = b"arn:aws:x".to_vec());
    assert_eq!(open(&mut bed), (libc::ENOKEY, 0));
}

#[test]
fn a_wrapped_key_opens_in_its_own_place_only() {
    let (mut bed, forger) = forged();
    let (_, other) = forger.read("a-00001");
    // A wrapped key of another data key: the encryption context says so to KMS.
    let theirs = other.current.recipients.clone();
    forger.change("a-00000", |header| header.current.recipients = theirs);
    assert_eq!(open(&mut bed), (libc::EIO, 1));
    assert_eq!(bed.fake.calls_with("Decrypt", "InvalidCiphertextException"), 1);
    // With the id that belongs to it KMS opens it, but the header commits to another key.
    forger.change("a-00000", |header| header.current.data_key_id = other.current.data_key_id);
    assert_eq!(open(&mut bed).0, libc::EIO);
    assert!(bed.log().contains("commit"), "{}", bed.log());
}

#[test]
fn the_longest_blob_is_taken_to_kms_and_refused_there() {
    let (mut bed, forger) = forged();
    forger.change("a-00000", |header| header.current.recipients[0].wrapped = vec![7; 6144]);
    assert_eq!(open(&mut bed), (libc::EIO, 1));
    assert_eq!(bed.fake.calls_with("Decrypt", "InvalidCiphertextException"), 1);
}

#[test]
fn sixteen_copies_cost_one_call_and_seventeen_none() {
    let (mut bed, forger) = forged();
    let many = |header: &mut Header, number| {
        let copy = Recipient { wrapped: vec![1; 20], ..header.current.recipients[0].clone() };
        header.current.recipients = vec![copy; number];
        header.current.data_key_id = DataKeyId([1; 16]);
    };
    forger.change("a-00000", |header| many(header, 16));
    // All name the same key: one is asked for, and its answer is final.
    assert_eq!(open(&mut bed), (libc::EIO, 1));
    let (mut bytes, header) = forger.read("a-00000");
    let slot = bytes.windows(2).position(|pair| pair == [1, 16]).unwrap();
    bytes[slot + 1] = 17;
    assert!(header.encode(forger.layout, |b| forger.keys.header_mac(b)).is_ok());
    let len = forger.layout.header_len();
    let mac = forger.keys.header_mac(&bytes[..len - 32]);
    bytes[len - 32..len].copy_from_slice(&mac);
    fs::write(bed.source().join("a-00000"), bytes).unwrap();
    assert_eq!(open(&mut bed), (libc::EIO, 0));
}

#[test]
fn another_volume_in_the_place_of_the_expected_one_is_refused() {
    let mut bed = Bed::new();
    let info = bed.ctl("info", &["--json"]).output().unwrap().stdout;
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    let id = info["volume_id"].as_str().unwrap().to_owned();
    let key = bed.key.clone();
    bed.mount(&format!("expect-volume={id},expect-key={key}"));
    bed.unmount();
    bed.fake.reset_counters();
    let other = bed.fake.create_key(Origin::Kms);
    let said = refused(&mut bed.mount_command(&format!("expect-key={other}")), 1);
    assert!(said.contains(&key) && said.contains(&other), "{said}");
    let zeros = "0".repeat(32);
    let said = refused(&mut bed.mount_command(&format!("expect-volume={zeros}")), 1);
    assert!(said.contains(&id), "{said}");
    let said = refused(&mut bed.mount_command("expect-key=alias/x"), 2);
    assert!(said.contains("ARN"), "{said}");
    assert_eq!(bed.fake.calls_total(), 0, "KMS is not asked about a volume that is refused");

    // A volume without any KMS key, opened by a key file that lies about, is none of the expected.
    let local = bed.path("local");
    let file = format!("keyfile:{}", bed.path("k").display());
    super::bed::said(super::bed::ctl(&["init"]).arg(&local).args(["--key", &file]));
    fs::rename(bed.source(), bed.path("away")).unwrap();
    fs::rename(local, bed.source()).unwrap();
    let said = refused(&mut bed.mount_command(&format!("expect-key={key}")), 1);
    assert!(said.contains("no KMS key"), "{said}");
}

/// What was made a moment ago need not be known everywhere yet.
#[test]
fn a_new_key_and_its_policy_may_take_a_moment() {
    let fake = FakeAws::start();
    fake.set_consistency(std::time::Duration::from_millis(700));
    let key = fake.create_key(Origin::CloudHsm);
    let bed = Bed::on(fake, key, &[]);
    assert!(bed.source().join("kmsfs.volume").exists());
}

/// A descriptor that names the expected key where it costs nothing, and is opened by a key file.
#[test]
fn a_pin_cannot_be_met_by_a_name_alone() {
    use kmsfs::format::descriptor::Descriptor;
    use kmsfs::keys::{UnlockOptions, unlock};
    let bed = Bed::new();
    let info: serde_json::Value =
        serde_json::from_str(&super::bed::said(bed.ctl("info", &["--json"]))).unwrap();
    let id = info["volume_id"].as_str().unwrap();
    let (theirs, file) = (bed.path("theirs"), bed.path("k"));
    let mut init = super::bed::ctl(&["init", "--volume-id", id, "--key"]);
    super::bed::said(init.arg(format!("keyfile:{}", file.display())).arg(&theirs));
    let ours = fs::read(bed.source().join("kmsfs.volume")).unwrap();
    let copy = Descriptor::parse(&ours).unwrap().0.volume_keys[0].clone();
    let place = theirs.join("kmsfs.volume");
    let options = UnlockOptions { keyfile: Some(file), ..UnlockOptions::default() };
    let (descriptor, unlocked) = unlock(&fs::read(&place).unwrap(), &options).unwrap();
    fs::rename(bed.source(), bed.path("away")).unwrap();
    let name = Recipient { wrapped: vec![], ..copy.clone() };
    for (allowed, volume_keys) in [(vec![], vec![copy]), (vec![name], vec![])] {
        let mut forged = descriptor.clone();
        forged.allowed.extend(allowed);
        forged.volume_keys.extend(volume_keys);
        let bytes = forged.encode_checked(|bytes| unlocked.keys.descriptor_mac(bytes)).unwrap();
        fs::write(&place, bytes).unwrap();
        let _ = fs::remove_file(bed.source());
        std::os::unix::fs::symlink(&theirs, bed.source()).unwrap();
        let pins = format!("expect-volume={id},expect-key={}", bed.key);
        let told = refused(&mut bed.mount_command(&pins), 1);
        assert!(told.contains("no KMS key"), "{told}");
        let mut cat = super::bed::ctl(&["cat", "--expect-key", &bed.key]);
        assert!(refused(cat.arg(bed.source()).arg("x"), 1).contains("no KMS key"));
    }
}
