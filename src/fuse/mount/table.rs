//! The kernel's mount table, and who holds a mount. Reads /proc only: asking the mounted file
//! system itself could wait for the very daemon that asks.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// `major:minor`.
    pub device: String,
    /// Absolute path.
    pub point: PathBuf,
    /// File system type, as in `fuse.kmsfs`.
    pub kind: String,
    /// What is mounted; for a file system of ours, its backing directory.
    pub source: PathBuf,
}

/// Most programs named as holding a mount.
const NAMED_HOLDERS: usize = 5;

/// The mount on top at exactly this path.
pub fn top_at(point: &Path) -> Option<Entry> {
    let text = std::fs::read("/proc/self/mountinfo").ok()?;
    // Later lines cover earlier ones.
    text.split(|&b| b == b'\n').filter_map(parse).rfind(|entry| entry.point == point)
}

/// Is a file system of this type mounted from this directory, as far as we can see?
pub fn is_mounted_from(kind: &str, source: &Path) -> bool {
    mounted_from(kind, source).is_some()
}

/// The latest mount of this type from this directory, as far as we can see.
pub fn mounted_from(kind: &str, source: &Path) -> Option<Entry> {
    let text = std::fs::read("/proc/self/mountinfo").ok()?;
    let wanted = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let same = |entry: &Entry| {
        let found = || entry.source.canonicalize().unwrap_or_else(|_| entry.source.clone());
        entry.kind == kind && found() == wanted
    };
    text.split(|&b| b == b'\n').filter_map(parse).rfind(same)
}

/// `36 35 98:0 /root /point options optional... - type source superoptions`
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let source = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    Some(Entry { device, point, kind, source })
}

/// Undoes the table's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(octal);
        match (byte, code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                rest = &tail[3..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// A clause naming programs that use files below `point`, as far as we may see them; empty if
/// none is seen.
pub fn holders(point: &Path) -> String {
    let names: Vec<String> =
        processes().filter(|p| holds(p, point)).take(NAMED_HOLDERS).map(|p| describe(&p)).collect();
    if names.is_empty() { String::new() } else { format!(", in use by {}", names.join(", ")) }
}

/// Processes that still see a mount of this device, in a mount namespace (a container, say) made
/// while it was mounted here; unmounting here does not reach it there. Empty if there are none.
pub fn seen_by(device: &str) -> String {
    let sees = |process: &PathBuf| {
        let table = std::fs::read(process.join("mountinfo")).unwrap_or_default();
        table.split(|&b| b == b'\n').filter_map(parse).any(|entry| entry.device == device)
    };
    let names: Vec<String> =
        processes().filter(sees).take(NAMED_HOLDERS).map(|p| describe(&p)).collect();
    names.join(", ")
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| {
        path.file_name().is_some_and(|n| n.as_bytes().first().is_some_and(u8::is_ascii_digit))
    })
}

fn holds(process: &Path, point: &Path) -> bool {
    let below = |link: PathBuf| std::fs::read_link(link).is_ok_and(|at| at.starts_with(point));
    if ["cwd", "root", "exe"].iter().any(|link| below(process.join(link))) {
        return true;
    }
    let Ok(open) = std::fs::read_dir(process.join("fd")) else { return false };
    open.flatten().any(|fd| below(fd.path()))
}

fn describe(process: &Path) -> String {
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    let pid = process.file_name().unwrap_or_default().to_string_lossy();
    format!("{} ({pid})", name.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_spaces_and_optional_fields() {
        let line =
            br"36 35 0:51 / /mnt/a\040b\134 rw,nosuid shared:7 master:1 - fuse.kmsfs /src rw";
        let entry = parse(line).unwrap();
        assert_eq!(entry.device, "0:51");
        assert_eq!(entry.point, Path::new("/mnt/a b\\"));
        assert_eq!(entry.kind, "fuse.kmsfs");
        assert_eq!(entry.source, Path::new("/src"));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 0:51 / /mnt rw"), None);
    }

    #[test]
    fn the_root_is_mounted_and_a_plain_directory_is_not() {
        assert!(top_at(Path::new("/proc")).is_some_and(|e| e.kind == "proc"));
        assert!(top_at(Path::new("/proc/self")).is_none());
    }

    #[test]
    fn this_process_holds_its_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        assert_eq!(holders(&place), "");
        let _open = std::fs::File::create(place.join("x")).unwrap();
        assert!(holders(&place).contains(&format!("({})", std::process::id())));
    }
}
