//! The two passwords of a cluster: made here, kept in files of their own or handed to a command.

use crate::crypto::{SecretBytes, random};
use crate::provision::certificate::Files;
use crate::provision::child;
use crate::provision::files::{self, SECRET};
use crate::provision::key_store::check_password;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use zeroize::Zeroizing;

/// The administrator's password; also the name of its file.
pub const ADMIN: &str = "admin-password";
/// That of `kmsuser`.
pub const KMSUSER: &str = "kmsuser-password";

/// What the file of a password becomes that KMS has replaced.
pub fn spent(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".spent");
    name.into()
}

/// KMS has replaced the password of `kmsuser`: its file gets a name under which nobody takes it for one
/// that is still of use. That name, if there was one.
pub fn spend(path: &Path) -> std::io::Result<Option<PathBuf>> {
    let spent = spent(path);
    match std::fs::rename(path, &spent) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        done => done.map(|()| Some(spent)),
    }
}

/// Nothing that a shell, a form or KMS takes amiss.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The longest CloudHSM takes.
const LEN: usize = 32;

/// Where new passwords are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In files of the deployment's directory, for their owner only.
    Files,
    /// This command (`sh -c`) takes them: the password on its standard input, its name in the
    /// environment as KMSFS_PASSWORD_NAME. It is not waited for any longer than the second says.
    Command(String, Duration),
}

/// The passwords of one deployment.
pub struct Passwords {
    files: Files,
    keep: Keep,
    /// Those made in this run: a command does not give them back.
    made: Mutex<HashMap<&'static str, SecretBytes>>,
}

impl Passwords {
    /// Those in the directory, and new ones.
    pub fn new(files: Files, keep: Keep) -> Self {
        Self { files, keep, made: Mutex::default() }
    }

    /// Where one lies, or would lie.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.dir().join(name)
    }

    /// One from its file, or made in this run.
    pub fn remembered(&self, name: &'static str) -> Result<Option<SecretBytes>, String> {
        if let Some(made) = self.made.lock().get(name) {
            return Ok(Some(copy(made)));
        }
        let path = self.path(name);
        let Some(read) = files::read_secret(&path)? else { return Ok(None) };
        let bytes = read.expose().strip_suffix(b"\n").unwrap_or(read.expose());
        let printable = bytes.iter().all(|byte| (b'!'..=b'~').contains(byte));
        if !printable || !(7..=LEN).contains(&bytes.len()) {
            let path = path.display();
            return Err(format!("{path} must be one line of 7 to {LEN} printable characters"));
        }
        let password = SecretBytes::new(bytes.to_vec());
        if name == KMSUSER {
            // Before the HSMs have it: KMS is pickier than they are.
            let good = check_password(&password);
            good.map_err(|refused| format!("{}: {}", path.display(), refused.sentence))?;
        }
        Ok(Some(password))
    }

    /// One that is there, or a new one, which is kept before it is used.
    pub fn existing_or_new(&self, name: &'static str) -> Result<SecretBytes, String> {
        if let Some(there) = self.remembered(name)? {
            return Ok(there);
        }
        let password = new_password();
        match &self.keep {
            Keep::Files => {
                files::ensure_dir(self.files.dir())?;
                files::write_new(&self.path(name), password.expose(), SECRET)?;
            }
            Keep::Command(command, limit) => hand_over(command, *limit, name, &password)?,
        }
        self.made.lock().insert(name, copy(&password));
        Ok(password)
    }
}

fn copy(secret: &SecretBytes) -> SecretBytes {
    SecretBytes::new(secret.expose().to_vec())
}

/// 32 letters and digits, each as likely as the others.
pub fn new_password() -> SecretBytes {
    let fair = 256 / ALPHABET.len() * ALPHABET.len();
    let mut password = Zeroizing::new(Vec::with_capacity(LEN));
    let mut bytes = Zeroizing::new([0u8; 2 * LEN]);
    while password.len() < LEN {
        random(&mut *bytes);
        let drawn = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < fair);
        let left = LEN - password.len();
        password.extend(drawn.take(left).map(|byte| ALPHABET[byte % ALPHABET.len()]));
    }
    SecretBytes::new(std::mem::take(&mut *password))
}

fn hand_over(
    command: &str,
    limit: Duration,
    name: &str,
    password: &SecretBytes,
) -> Result<(), String> {
    let failed = |why: String| {
        Err(format!("the password command for {name} {why}; that password was not used"))
    };
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("KMSFS_PASSWORD_NAME", name);
    // Whatever it says must not end up in the middle of an answer.
    shell.stdout(Stdio::null());
    let ended = match child::run(&mut shell, Zeroizing::new(password.expose().to_vec()), limit) {
        Ok(ended) => ended,
        Err(e) => return failed(format!("cannot be run ({e})")),
    };
    match ended.status {
        None => failed(format!(
            "did not end within {} seconds and was stopped (what it started may go on; --tool-timeout \
             waits longer)",
            limit.as_secs_f64()
        )),
        Some(status) if !status.success() => failed(format!("failed ({status})")),
        // One that reads nothing has kept nothing.
        Some(_) if !ended.took_all => failed("did not read it".to_owned()),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn passwords_are_long_plain_and_fair() {
        let mut counts = HashMap::new();
        let mut seen = HashSet::new();
        for _ in 0..2000 {
            let password = new_password();
            assert_eq!(password.expose().len(), LEN);
            for byte in password.expose() {
                *counts.entry(*byte).or_insert(0u32) += 1;
            }
            assert!(seen.insert(password.expose().to_vec()));
        }
        assert_eq!(counts.len(), ALPHABET.len());
        assert!(counts.keys().all(u8::is_ascii_alphanumeric));
        // 64000 draws: 1032 of each, with a deviation of 32; eight of them are allowed.
        assert!(counts.values().all(|count| (775..1290).contains(count)), "{counts:?}");
    }

    #[test]
    fn passwords_are_kept_before_they_are_used() {
        let dir = tempfile::TempDir::with_prefix("kmsfs-passwords-").unwrap();
        let files = Files::new(dir.path().join("own"));
        let passwords = Passwords::new(files.clone(), Keep::Files);
        assert!(passwords.remembered(ADMIN).unwrap().is_none());
        let made = passwords.existing_or_new(ADMIN).unwrap();
        let again = Passwords::new(files.clone(), Keep::Files).existing_or_new(ADMIN).unwrap();
        assert_eq!(made.expose(), again.expose());
        assert_eq!(std::fs::read(passwords.path(ADMIN)).unwrap(), made.expose());
        // Of the user's making, with a newline at its end.
        files::write_new(&passwords.path(KMSUSER), b"secret1\n", SECRET).unwrap();
        assert_eq!(passwords.remembered(KMSUSER).unwrap().unwrap().expose(), b"secret1");
        for bad in ["short", "two\nlines", "with space", &"x".repeat(33), "s3cret!x"] {
            std::fs::remove_file(passwords.path(KMSUSER)).unwrap();
            files::write_new(&passwords.path(KMSUSER), bad.as_bytes(), SECRET).unwrap();
            let error = passwords.existing_or_new(KMSUSER).err().unwrap();
            assert!(error.contains("7 to 32") && !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_command_may_keep_them() {
        let dir = tempfile::TempDir::with_prefix("kmsfs-passwords-").unwrap();
        let files = Files::new(dir.path().join("own"));
        let vault = dir.path().join("vault-");
        let command = format!("cat > {}$KMSFS_PASSWORD_NAME", vault.display());
        let passwords = Passwords::new(files.clone(), Keep::Command(command, LONG));
        let made = passwords.existing_or_new(ADMIN).unwrap();
        let kept = std::fs::read(dir.path().join("vault-admin-password")).unwrap();
        assert_eq!(kept, made.expose());
        assert_eq!(passwords.existing_or_new(ADMIN).unwrap().expose(), made.expose());
        assert!(!passwords.path(ADMIN).exists());
        for (script, limit, why) in [
            ("cat > /dev/null; exit 3", LONG, "failed (exit status: 3)"),
            ("exec sleep 60", Duration::from_millis(50), "did not end within 0.05 seconds"),
        ] {
            let failing = Passwords::new(files.clone(), Keep::Command(script.to_owned(), limit));
            let error = failing.existing_or_new(ADMIN).err().unwrap();
            assert!(error.contains(why) && error.contains("not used"), "{error}");
            assert!(failing.remembered(ADMIN).unwrap().is_none());
        }
    }
}
