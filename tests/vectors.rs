//! Every vector in `tests/vectors/`, accepted or rejected with exactly the error it names.
//!
//! `KMSFS_REGENERATE_VECTORS=1 cargo test --test vectors writers` writes them anew; a change of the
//! format is the only reason to do that, and needs a new version.

#[path = "vectors/file.rs"]
mod file;
#[path = "vectors/kit.rs"]
mod kit;
#[path = "vectors/make.rs"]
mod make;
#[path = "vectors/run.rs"]
mod run;

use file::Vector;
use kmsfs::format::FormatError;
use run::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// The vectors as files: name and text.
fn stored() -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder()).expect("the folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("text"))
        })
        .collect()
}

fn made() -> BTreeMap<String, String> {
    let mut made = BTreeMap::new();
    for vector in make::all() {
        assert!(made.insert(vector.name.clone(), vector.render()).is_none(), "{}", vector.name);
    }
    made
}

fn parsed() -> Vec<Vector> {
    stored().iter().map(|(name, text)| Vector::parse(name, text)).collect()
}

/// What is written today is byte for byte what was written when the vectors were made.
#[test]
fn writers_still_write_what_they_wrote() {
    let made = made();
    if std::env::var_os("KMSFS_REGENERATE_VECTORS").is_some() {
        stored().keys().for_each(|name| {
            fs::remove_file(folder().join(format!("{name}.txt"))).expect("removed");
        });
        for (name, text) in &made {
            fs::write(folder().join(format!("{name}.txt")), text).expect("written");
        }
    }
    let stored = stored();
    let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&stored));
    for (name, text) in &made {
        assert!(
            stored[name] == *text,
            "{name} would be written differently: version bump required"
        );
    }
}

#[test]
fn every_vector_gives_what_it_says() {
    let vectors = parsed();
    let wrong: Vec<String> = vectors
        .iter()
        .map(|v| (v, run::run(v).to_string()))
        .filter(|(v, outcome)| *outcome != v.expect)
        .map(|(v, outcome)| format!("{}: {outcome} instead of {}", v.name, v.expect))
        .collect();
    assert!(wrong.is_empty(), "version bump required:\n{}", wrong.join("\n"));
    let count = |ok: bool| vectors.iter().filter(|v| (v.expect == "ok") == ok).count();
    assert!(count(true) >= 15 && count(false) >= 60, "{} and {}", count(true), count(false));
}

#[test]
fn every_kind_is_there_accepted_and_rejected() {
    let vectors = parsed();
    let kinds: BTreeSet<&str> = vectors.iter().map(|v| v.kind.as_str()).collect();
    for kind in &kinds {
        let of_kind = || vectors.iter().filter(|v| v.kind == *kind);
        assert!(of_kind().any(|v| v.expect == "ok"), "{kind}: none accepted");
        assert!(of_kind().any(|v| v.expect != "ok"), "{kind}: none rejected");
    }
    assert!(kinds.len() >= 12, "{kinds:?}");
}

/// The name of a variant. A new one does not compile until it is named here, and needs a vector.
fn variant(e: &FormatError) -> &'static str {
    match e {
        FormatError::Length(_) => "Length",
        FormatError::Magic => "Magic",
        FormatError::Version(_) => "Version",
        FormatError::Suite(_) => "Suite",
        FormatError::Field(_) => "Field",
        FormatError::Mac => "Mac",
        FormatError::OtherVolume => "OtherVolume",
        FormatError::Feature(_) => "Feature",
        FormatError::TooLarge => "TooLarge",
    }
}

/// Every field a reader of version 1 may find bad; spaces written as hyphens.
const FIELDS: &str = "version chunk_log2 header_blocks header-reserved generation segment-key-slot
    segment-reserved location-binding current-key-slot key-slot-state empty-key-slot recipients
    key-slot-length key-slot-reserved key-slot-padding recipient-kind recipient-reserved
    recipient-length recipient-reference recipient-wrapped-key directory-reserved parent-binding
    tag-block-reserved empty-tag-block record-type record-order record-reserved record-length
    record-count volume-id parameters volume-keys names files_per_data_key feature-name
    descriptor-generation master-slots-cost master-slot-kind master-slot-reserved master-slot-cost master-slot-hint master-slot-length";

#[test]
fn every_error_and_every_field_has_a_vector() {
    let outcomes: Vec<Outcome> = parsed().iter().map(run::run).collect();
    let errors = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Format(e) => Some(e),
        _ => None,
    });
    let hit: BTreeSet<&str> = errors.clone().map(variant).collect();
    assert_eq!(hit.len(), 9, "{hit:?}");
    let fields: BTreeSet<&str> = errors
        .filter_map(|e| match e {
            FormatError::Field(field) => Some(*field),
            _ => None,
        })
        .collect();
    let expected: BTreeSet<&str> = FIELDS.split_whitespace().collect();
    let found: BTreeSet<String> = fields.iter().map(|field| field.replace(' ', "-")).collect();
    assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
}
