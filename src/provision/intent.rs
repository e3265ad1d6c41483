//! What was asked for and not seen yet, across runs.
//!
//! For a while after a call has made something, AWS may not show it. A run that is killed in between is
//! forgotten, and the next one would make it again, for money. So before such a call a mark is left in the
//! deployment's directory (that of a key, which needs none, in the host's or the user's own), and taken
//! away when the thing was seen. A run that finds a mark looks first, for as long as AWS may take to show
//! what it made. How old the mark is does not matter: clocks differ, and an old one costs no more than
//! that one wait.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use data_encoding::HEXLOWER;

use super::Teller;
use super::account::{Account, Refused};
use super::files::{self, PUBLIC, Place};
use super::once::once;
use super::settling::settled;
use crate::crypto::fingerprint;
use crate::keys::aws::classify::Class;

/// Longest part of a mark's name that people can read.
const NAME_MAX: usize = 120;
/// Bytes of the digest that keeps apart what reads the same.
const DIGEST: usize = 8;

/// Something that is to be made once.
pub struct Intent {
    what: String,
    mark: PathBuf,
    place: Place,
    /// An earlier run, which may have been killed, was about to make it and has not seen it.
    was_begun: bool,
}

impl Intent {
    /// Of a thing that its words name, in the directory of its deployment.
    pub fn of(dir: &Path, what: &str) -> Self {
        Self::at(dir, what, Place::Deployment)
    }

    /// Of a thing that needs no directory of its deployment, in the user's own.
    pub fn of_user(what: &str) -> Self {
        Self::at(&state_dir(), what, Place::User)
    }

    fn at(dir: &Path, what: &str, place: Place) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = what.chars().map(plain).take(NAME_MAX).collect();
        let digest = HEXLOWER.encode(&fingerprint(&[what.as_bytes()])[..DIGEST]);
        let mark = dir.join(format!("making-{name}-{digest}"));
        Self { what: what.to_owned(), was_begun: mark.exists(), mark, place }
    }

    /// Whether the mark can be left, before anything is shown, asked and paid for.
    pub fn ready(&self) -> Result<(), Refused> {
        let dir = self.mark.parent().unwrap_or(Path::new(""));
        files::ensure(dir, self.place).map_err(|text| self.bad(text))
    }

    fn bad(&self, text: String) -> Refused {
        Refused::here(Class::Misconfigured, format!("{}: {text}", self.what))
    }

    /// Leaves the mark; the call comes next.
    pub fn begin(&self) -> Result<(), Refused> {
        self.ready()?;
        let bad = |text| self.bad(text);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let text = format!(
            "kmsfsctl was about to ask AWS for {} (at second {} of the epoch) and has not seen it yet. \
             Leave this file: the next run looks for it before it makes another, and takes the file \
             away.\n",
            self.what,
            now.as_secs()
        );
        if self.was_begun {
            return files::replace(&self.mark, text.as_bytes(), PUBLIC).map_err(bad);
        }
        files::write_new(&self.mark, text.as_bytes(), PUBLIC).map_err(|e| {
            match self.mark.exists() {
                true => {
                    bad("another run is about to make it; wait for that, and run this again"
                        .to_owned())
                }
                false => bad(e),
            }
        })
    }

    /// The same for what was looked for some time ago: `still` looks again, under the mark, and refuses if
    /// it is to be made no more.
    pub fn begin_if(&self, still: impl FnOnce() -> Result<(), Refused>) -> Result<(), Refused> {
        self.begin()?;
        still().inspect_err(|_| self.end())
    }

    /// Takes the mark away: the thing was seen, or AWS refused to make it.
    pub fn end(&self) {
        // One that stays costs a wait, no more.
        match std::fs::remove_file(&self.mark) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("{} cannot be removed: {e}", self.mark.display());
            }
            _ => {}
        }
    }

    /// What an earlier run was about to make, once AWS shows it; `what` names it for people.
    pub fn await_begun<T>(
        &self,
        account: &Account,
        what: &str,
        teller: &dyn Teller,
        look: impl Fn() -> Result<Option<T>, Refused>,
    ) -> Result<Option<T>, Refused> {
        if !self.was_begun {
            return Ok(None);
        }
        let what = format!("{what}, asked for by an earlier run,");
        let not_yet = || Ok(look()?.ok_or_else(|| "not to be seen (yet)".to_owned()));
        Ok(settled(account, &what, teller, not_yet)?.ok())
    }

    /// Makes it; only a refusal takes the mark away again.
    pub fn attempt<T>(&self, make: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
        make().inspect_err(|refused| {
            if !refused.may_have_worked() {
                self.end();
            }
        })
    }

    /// Makes it unless an earlier run has; as [`once`] otherwise. Whoever sees it calls [`Self::end`].
    pub fn once<T>(
        &self,
        account: &Account,
        teller: &dyn Teller,
        make: impl Fn() -> Result<T, Refused>,
        look: impl Fn() -> Result<Option<T>, Refused>,
    ) -> Result<T, Refused> {
        if let Some(made) = self.await_begun(account, &self.what, teller, &look)? {
            return Ok(made);
        }
        self.begin()?;
        once(account, || self.attempt(&make), look)
    }
}

/// Where marks are that belong to no deployment's directory: `/var/lib/kmsfs` for root, whether it is a
/// unit of the system or a shell that asks; for others `kmsfs` in the user's directory for state.
fn state_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    place(set("XDG_STATE_HOME"), set("HOME"), rustix::process::geteuid().is_root())
}

fn place(state: Option<PathBuf>, home: Option<PathBuf>, root: bool) -> PathBuf {
    let home = home.filter(|_| !root).map(|home| home.join(".local/state"));
    state.or(home).unwrap_or_else(|| PathBuf::from("/var/lib")).join("kmsfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_one_place_wherever_its_home_is() {
        let path = |text: &str| Some(PathBuf::from(text));
        let of = |home, root| place(None, home, root);
        assert_eq!(of(path("/root"), true), of(None, true));
        assert_eq!(of(path("/users/a"), false), PathBuf::from("/users/a/.local/state/kmsfs"));
        assert_eq!(of(None, false), PathBuf::from("/var/lib/kmsfs"));
        assert_eq!(place(path("/state"), path("/root"), true), PathBuf::from("/state/kmsfs"));
    }

    #[test]
    fn a_mark_stays_until_it_is_taken_away() {
        let dir = tempfile::TempDir::with_prefix("kmsfs-intent-").unwrap();
        let dir = dir.path().join("own");
        let of = || Intent::of(&dir, "HSM 2 of cluster-a/b");
        let first = of();
        assert!(!first.was_begun);
        first.begin().unwrap();
        let name = first.mark.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("making-hsm-2-of-cluster-a-b-") && first.mark.is_file(), "{name}");
        // Two at once: the second one has not seen the mark of the first.
        assert!(first.begin().unwrap_err().sentence.contains("another run"));
        let second = of();
        assert!(second.was_begun && !Intent::of(&dir, "HSM 1 of cluster-a/b").was_begun);
        // What reads the same is not the same.
        assert!(!Intent::of(&dir, "HSM 2 of cluster-a-b").was_begun);
        let long = "x".repeat(NAME_MAX);
        Intent::of(&dir, &format!("{long}a")).begin().unwrap();
        assert!(!Intent::of(&dir, &format!("{long}b")).was_begun);
        second.begin().unwrap();
        second.end();
        second.end();
        assert!(!of().was_begun);
    }
}
