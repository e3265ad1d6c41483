//! The rules of the tree that a compiler does not check. Each has a reason; each fails with the place.

use std::fs;
use std::path::{Path, PathBuf};

/// Which top-level modules a top-level module may import. Downwards only.
const LAYERS: [(&str, &[&str]); 9] = [
    ("sys", &[]),
    ("format", &[]),
    ("crypto", &["format", "sys"]),
    ("keys", &["crypto", "format", "sys"]),
    ("store", &["crypto", "format", "sys"]),
    ("fs", &["crypto", "format", "keys", "store", "sys"]),
    ("fuse", &["fs", "sys"]),
    ("provision", &["crypto", "format", "keys", "sys"]),
    ("cli", &["crypto", "format", "fs", "fuse", "keys", "provision", "store", "sys"]),
];

/// Crates that only these top-level modules may name.
const OWNED_CRATES: [(&str, &[&str]); 24] = [
    ("aws_config", &["keys"]),
    ("aws_runtime", &["keys"]),
    ("aws_credential_types", &["keys"]),
    ("aws_sdk_kms", &["keys", "provision"]),
    ("aws_sdk_cloudhsmv2", &["provision"]),
    ("aws_sdk_sts", &["provision"]),
    ("pkcs8", &["provision"]),
    ("rcgen", &["provision"]),
    ("x509_parser", &["provision"]),
    ("tokio", &["keys"]),
    ("fuser", &["fuse"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli"]),
    ("indicatif", &["cli"]),
    ("rpassword", &["cli"]),
    ("aes_gcm", &["crypto"]),
    ("aes_siv", &["crypto"]),
    ("argon2", &["crypto"]),
    ("hkdf", &["crypto"]),
    ("hmac", &["crypto"]),
    ("hpke", &["crypto"]),
    ("ring", &["crypto"]),
    ("sha2", &["crypto"]),
    ("getrandom", &["crypto"]),
];

/// Types that hold secrets: never printed, never copied by accident.
const SECRET_TYPES: [&str; 9] = [
    "JournalKey",
    "Secret",
    "SecretBytes",
    "DataKey",
    "VolumeKey",
    "VolumeKeys",
    "FileKeys",
    "SegmentKey",
    "Locked",
];

/// Longest file, tests included.
const FILE_LINES_MAX: usize = 700;
/// Longest function outside tests.
const FUNCTION_LINES_MAX: usize = 70;
/// Calls outside tests that can panic: this number may only go down.
const PANICS_MAX: usize = 9;

struct Source {
    /// Path from the root of the repository.
    path: PathBuf,
    /// As written.
    text: String,
    /// Comments and the insides of literals blanked; lines and columns as in `text`.
    code: String,
    /// `code` with `#[cfg(test)]` modules blanked too; empty for test-only files.
    product: String,
}

impl Source {
    fn module(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src").ok()?;
        let first = inside.components().next()?.as_os_str().to_str()?;
        Some(first.trim_end_matches(".rs").to_owned())
    }

    fn place(&self, offset: usize) -> String {
        let line = self.text[..offset].matches('\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the tree but build products.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![root().to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap_or_default().to_owned();
            if path.is_symlink() || name == "target" || name == ".git" {
                continue;
            }
            if path.is_dir() { stack.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    let mut all: Vec<Source> = rust
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let code = blank_literals(&text);
            let product = blank_test_modules(&code);
            let path = path.strip_prefix(root()).unwrap().to_owned();
            Source { path, text, code, product }
        })
        .collect();
    let test_only: Vec<PathBuf> = all.iter().flat_map(test_only_files).collect();
    for source in &mut all {
        if test_only.iter().any(|path| source.path.starts_with(path.with_extension("")))
            || test_only.contains(&source.path)
        {
            source.product.clear();
        }
    }
    assert!(all.iter().any(|s| s.path == Path::new("src/lib.rs")));
    all
}

/// Files declared as `#[cfg(test)] mod name;`.
fn test_only_files(source: &Source) -> Vec<PathBuf> {
    let dir = source.path.with_extension("");
    after_each(&source.code, "#[cfg(test)]")
        .filter_map(|rest| {
            let (item, _) = rest.split_once(';')?;
            let (visibility, name) = item.trim().split_once("mod ")?;
            let plain = !name.contains('{') && !visibility.contains(char::is_whitespace)
                || visibility.starts_with("pub");
            plain.then(|| dir.join(name).with_extension("rs"))
        })
        .collect()
}

fn after_each<'a>(text: &'a str, what: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(what).map(move |(at, _)| &text[at + what.len()..])
}

/// Blanks comments and the insides of string and character literals.
fn blank_literals(text: &str) -> String {
    let mut out: Vec<u8> = text.as_bytes().to_vec();
    let mut at = 0;
    while at < out.len() {
        let end = literal_end(text.as_bytes(), at);
        match end {
            Some(end) => {
                out[at..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).unwrap()
}

/// The end of the comment or literal that starts at `at`, if one does.
fn literal_end(text: &[u8], at: usize) -> Option<usize> {
    let rest = &text[at..];
    let until = |pattern: &[u8], skip: usize| {
        let found = rest[skip..].windows(pattern.len()).position(|w| w == pattern);
        Some(found.map_or(text.len(), |n| at + skip + n + pattern.len()))
    };
    let boundary = at == 0 || !(text[at - 1].is_ascii_alphanumeric() || text[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return until(b"\n", 2);
    }
    if rest.starts_with(b"/*") {
        return until(b"*/", 2);
    }
    if boundary {
        let raw = rest.strip_prefix(b"b").or(rest.strip_prefix(b"c")).unwrap_or(rest);
        if let Some(raw) = raw.strip_prefix(b"r") {
            let hashes = raw.iter().take_while(|b| **b == b'#').count();
            if raw.get(hashes) == Some(&b'"') {
                let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
                return until(&close, rest.len() - raw.len() + hashes + 1);
            }
        }
    }
    match rest {
        [b'"', ..] => Some(at + quoted_len(rest, b'"')),
        [b'\'', b'\\', ..] => Some(at + quoted_len(rest, b'\'')),
        // A character, not a lifetime: the quote closes after one (possibly long) character.
        [b'\'', first, ..] => {
            let len = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            (rest.get(1 + len) == Some(&b'\'')).then_some(at + len + 2)
        }
        _ => None,
    }
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Length of the block whose opening brace is the first in `code`.
fn block_len(code: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn blank_test_modules(code: &str) -> String {
    let mut out = code.to_owned();
    let starts: Vec<usize> = code.match_indices("#[cfg(test)]").map(|(at, _)| at).collect();
    for start in starts {
        let from = start + "#[cfg(test)]".len();
        let Some(len) = block_len(&code[from..]) else { continue };
        let blank: String =
            code[start..from + len].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        if blank.len() == from + len - start {
            out.replace_range(start..from + len, &blank);
        }
    }
    out
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where `word` stands alone in `code`.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = *at == 0 || !is_word(bytes[at - 1]);
        let after = bytes.get(at + word.len()).is_none_or(|b| !is_word(*b));
        before && after
    })
}

fn check(rule: &str, mut faults: Vec<String>) {
    faults.sort();
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

#[test]
fn imports_point_downwards() {
    let mut faults = Vec::new();
    let mut edges = 0;
    for source in sources().iter().filter(|s| s.path.starts_with("src")) {
        let Some(module) = source.module() else { continue };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else { continue };
        let depth = source.path.components().count() - 1;
        let climb = "super::".repeat(depth);
        for prefix in ["crate::", &climb] {
            for (at, _) in source.product.match_indices(prefix) {
                let rest = &source.product[at + prefix.len()..];
                let name: String = rest.chars().take_while(|c| is_word(*c as u8)).collect();
                if prefix == "crate::" && rest.starts_with('{') {
                    faults.push(format!("{}: one module a line, please", source.place(at)));
                }
                if LAYERS.iter().any(|(layer, _)| *layer == name) && name != module {
                    edges += 1;
                    if !allowed.contains(&name.as_str()) {
                        faults.push(format!("{}: {module} imports {name}", source.place(at)));
                    }
                }
            }
        }
    }
    check("imports point downwards only", faults);
    assert!(edges > 10, "the parser found only {edges} imports");
}

#[test]
fn the_layer_table_is_a_ladder_and_complete() {
    for (at, (module, allowed)) in LAYERS.iter().enumerate() {
        for below in *allowed {
            let place = LAYERS.iter().position(|(name, _)| name == below);
            assert!(place.is_some_and(|place| place < at), "{module} may not import {below}");
        }
    }
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared = library.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in declared {
        assert!(LAYERS.iter().any(|(name, _)| *name == module), "{module} is in no layer");
    }
}

#[test]
fn some_crates_have_one_importer() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| s.path.starts_with("src")) {
        let module = source.module().unwrap_or_default();
        for (name, owners) in OWNED_CRATES.iter().filter(|(_, o)| !o.contains(&module.as_str())) {
            // A module of ours may have the name of the crate it wraps.
            if owners.iter().any(|o| source.product.contains(&format!("crate::{o}::{name}"))) {
                continue;
            }
            for at in words(&source.product, name) {
                let rest = &source.product[at + name.len()..];
                let line = source.product[..at].rsplit('\n').next().unwrap_or_default();
                if rest.starts_with("::") || line.trim() == "use" {
                    faults.push(format!("{}: {name} belongs to {owners:?}", source.place(at)));
                }
            }
        }
    }
    check("some crates have one importer", faults);
}

#[test]
fn unsafe_code_is_rare_and_explained() {
    let mut faults = Vec::new();
    for source in sources() {
        for at in words(&source.code, "unsafe") {
            let in_sys = source.path.starts_with("src/sys") || source.path.ends_with("src/sys.rs");
            let lines: Vec<&str> = source.text[..at].lines().rev().take(8).collect();
            let explained = lines.iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
            if !in_sys {
                faults.push(format!("{}: unsafe outside src/sys", source.place(at)));
            } else if !explained {
                faults.push(format!("{}: no SAFETY comment", source.place(at)));
            }
        }
    }
    check("unsafe code is rare and explained", faults);
}

#[test]
fn files_and_functions_are_short() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{}: {lines} lines", source.path.display()));
        }
        for at in words(&source.product, "fn") {
            let Some(len) = block_len(&source.product[at..]) else { continue };
            let lines = source.product[at..at + len].lines().count();
            if lines > FUNCTION_LINES_MAX {
                faults.push(format!("{}: function of {lines} lines", source.place(at)));
            }
        }
    }
    check("files and functions are short", faults);
}

#[test]
fn nothing_is_left_over() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let calls = [concat!("db", "g!("), concat!("to", "do!("), concat!("unimpl", "emented!(")];
    let mut faults = Vec::new();
    for source in sources() {
        for mark in marks {
            let hits = source.text.match_indices(mark);
            faults.extend(hits.map(|(at, _)| format!("{}: {mark}", source.place(at))));
        }
        for call in calls {
            let hits = source.code.match_indices(call);
            faults.extend(hits.map(|(at, _)| format!("{}: {call}", source.place(at))));
        }
    }
    check("nothing is left over", faults);
}

#[test]
fn the_product_does_not_panic() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| s.path.starts_with("src")) {
        for call in [".unwrap()", ".expect(", "panic!(", "unreachable!("] {
            for (at, _) in source.product.match_indices(call) {
                found.push(format!("{}: {call}", source.place(at)));
            }
        }
    }
    let count = found.len();
    assert!(count <= PANICS_MAX, "{count} > {PANICS_MAX}:\n  {}", found.join("\n  "));
    assert!(count >= PANICS_MAX, "{count} now: lower PANICS_MAX");
}

#[test]
fn secrets_are_neither_printed_nor_copied() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|s| s.path.starts_with("src")) {
        for name in SECRET_TYPES {
            for at in words(&source.product, name) {
                let before = source.product[..at].trim_end();
                if before.ends_with(" struct") {
                    seen += 1;
                    let from = before.rfind(['}', ';']).unwrap_or(0);
                    let attributes = &before[from..];
                    for bad in ["Debug", "Clone", "Copy", "Serialize", "Display"] {
                        if words(attributes, bad).next().is_some() {
                            faults.push(format!("{}: {name} derives {bad}", source.place(at)));
                        }
                    }
                }
                let line = source.product[..at].rsplit('\n').next().unwrap_or_default();
                if ["Debug for ", "Clone for ", "Display for "].iter().any(|t| line.ends_with(t)) {
                    faults.push(format!("{}: {name} can be printed or copied", source.place(at)));
                }
            }
        }
    }
    check("secrets are neither printed nor copied", faults);
    assert!(seen >= 7, "only {seen} secret types were found");
}

#[test]
fn modules_have_a_purpose_and_a_name() {
    let mut faults = Vec::new();
    for source in sources() {
        if source.path.ends_with("mod.rs") {
            faults.push(format!("{}: use name.rs beside name/", source.path.display()));
        }
        let first = source.text.lines().next().unwrap_or_default();
        // The tests of a module are documented by that module.
        let tests = source.path.file_name().is_some_and(|name| name == "tests.rs");
        if !first.starts_with("//!") && !first.starts_with("#!") && !tests {
            faults.push(format!("{}: no module documentation", source.path.display()));
        }
    }
    check("modules have a purpose and a name", faults);
}

#[test]
fn the_tree_names_no_machine() {
    let marks = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/tmp/", "spec"),
        concat!("SPE", "C.md"),
        concat!("crates.io", "-index"),
        concat!("index.", "crates.io"),
    ];
    let mut faults = Vec::new();
    for path in files() {
        if path.file_name().is_some_and(|name| name == "Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for mark in marks.iter().filter(|mark| text.contains(**mark)) {
            faults.push(format!("{}: {mark}", path.display()));
        }
    }
    check("the tree names no machine", faults);
}

#[test]
fn the_lexer_sees_code_only() {
    let text = "let a = \"unsafe // x\"; // unsafe\nlet b = 'u'; let c: &'a str = r#\"un\"safe\"#; f('\\'');";
    let code = blank_literals(text);
    assert_eq!(code.len(), text.len());
    assert!(!code.contains("unsafe") && !code.contains("un\"safe"));
    assert!(code.contains("let b =") && code.contains("&'a str") && code.contains("f(    );"));
    let code = blank_test_modules("fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}");
    assert!(code.contains("fn a") && code.contains("fn c") && !code.contains("fn b"));
}
