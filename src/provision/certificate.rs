//! The certificates a CloudHSM cluster is claimed with: an own CA signs what the cluster's first HSM
//! asks for, or somebody else's CA has.
//!
//! [`ensure_signed`] does all of it in a directory, and goes on where it was interrupted. The checks of
//! other people's certificates are in [`check`].

mod authority;
pub mod check;
mod der;
pub mod proof;

pub use authority::{Authority, check_name, sign};

use super::files::{self, PUBLIC};
use crate::crypto::SecretBytes;
use std::path::{Path, PathBuf};

/// What is wrong with a certificate, a signing request or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No PEM of the right kind.
    #[error("{0} cannot be read: it must be one PEM block, and nothing else of that kind")]
    Unreadable(String),
    /// Longer than CloudHSM takes.
    #[error("{0} has more than {max} characters; CloudHSM takes no more", max = check::PEM_MAX)]
    TooLong(String),
    /// Not now.
    #[error("{0} is not valid at this time; check its dates and this host's clock")]
    OutOfDate(String),
    /// A trust anchor must be a root.
    #[error("{0} is not self-signed: it must be the certificate of a root CA")]
    NotSelfSigned(String),
    /// A trust anchor must be allowed to sign.
    #[error("{0} is not marked as a certificate authority (basic constraints, CA:TRUE)")]
    NotAuthority(String),
    /// CloudHSM takes two kinds of keys.
    #[error("{0} needs an RSA key of 2048 or 4096 bits")]
    KeyKind(String),
    /// A broken link.
    #[error("{what} was not signed by {by}")]
    NotSigned {
        /// Which certificate.
        what: String,
        /// Who should have signed it.
        by: String,
    },
    /// For somebody else's key.
    #[error("{what} is for another key than {than}")]
    OtherKey {
        /// Which certificate.
        what: String,
        /// Whose key was expected.
        than: String,
    },
    /// For somebody else.
    #[error(
        "{what} has the subject {has:?}, but {than} has {wanted:?}; have it signed with its subject \
         unchanged"
    )]
    OtherSubject {
        /// Which certificate.
        what: String,
        /// Its subject.
        has: String,
        /// What says otherwise.
        than: String,
        /// The subject there.
        wanted: String,
    },
    /// Everything else, as a sentence.
    #[error("{0}")]
    Other(String),
}

impl From<String> for CertificateError {
    fn from(sentence: String) -> Self {
        Self::Other(sentence)
    }
}

/// Which passphrase is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passphrase {
    /// One for a key that is made now.
    New,
    /// That of a key that is there.
    Existing,
}

/// Gives the passphrase of the CA's key, or says why it cannot.
pub type AskPassphrase<'a> = dyn FnMut(Passphrase) -> Result<SecretBytes, String> + 'a;

/// Where the files of a deployment lie.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// In this directory, which need not be there yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// In the directory that is called after the deployment, in the current one.
    pub fn of_deployment(name: &str) -> Self {
        Self::new(format!("kmsfs-{name}"))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA's private key, encrypted PKCS#8.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("customerCA.key")
    }

    /// The CA's certificate: the trust anchor of the cluster and of its key store.
    pub fn anchor(&self) -> PathBuf {
        self.dir.join("customerCA.crt")
    }

    /// The cluster's signing request.
    pub fn csr(&self) -> PathBuf {
        self.dir.join("cluster.csr")
    }

    /// How far the hardware has proved itself.
    pub fn proof(&self) -> PathBuf {
        self.dir.join("hardware-proof")
    }

    /// The cluster's certificate.
    pub fn signed(&self) -> PathBuf {
        self.dir.join("cluster.crt")
    }
}

/// What a cluster is claimed with, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The cluster's certificate.
    pub signed: String,
    /// The root it was signed by.
    pub anchor: String,
}

const OTHER_REQUEST: &str = "the signing request of another cluster";

impl Claim {
    /// With the certificate of this public key alone.
    pub fn of_key(self, key: &[u8]) -> Result<Self, CertificateError> {
        Ok(Self { signed: check::leaf(&self.signed, key)?, anchor: self.anchor })
    }
}

/// A certificate for the cluster, by the CA in the directory; whatever is missing is made. A passphrase
/// is asked for only if something has to be made or signed.
pub fn ensure_signed(
    files: &Files,
    name: &str,
    csr: &str,
    ask: &mut AskPassphrase<'_>,
) -> Result<Claim, CertificateError> {
    check::Request::parse(csr)?;
    files::ensure_dir(&files.dir)?;
    keep_same(&files.csr(), csr, OTHER_REQUEST)?;
    if let (Some(signed), Some(anchor)) =
        (files::read_own(&files.signed())?, files::read_own(&files.anchor())?)
    {
        check::check_external(csr, &signed, &anchor)?;
        return Ok(Claim { signed, anchor });
    }
    let ca = Authority::ensure(files, name, ask)?;
    let signed = sign(&ca, csr)?;
    let claim = Claim { signed, anchor: ca.certificate().to_owned() };
    // Our own work is checked as a stranger's would be.
    check::check_external(csr, &claim.signed, &claim.anchor)?;
    keep_same(&files.signed(), &claim.signed, "another certificate")?;
    Ok(claim)
}

/// Could another CA's claim be sent, and be kept afterwards? As CloudHSM takes it: without the other
/// certificates of a chain. Keeps what it was made for.
pub fn check_claim(files: &Files, csr: &str, claim: Claim) -> Result<Claim, CertificateError> {
    let claim = claim.of_key(&check::Request::parse(csr)?.key()?)?;
    check::check_external(csr, &claim.signed, &claim.anchor)?;
    files::ensure_dir(&files.dir)?;
    require_place(files, &claim)?;
    keep_same(&files.csr(), csr, OTHER_REQUEST)?;
    Ok(claim)
}

/// Keeps what another CA has signed where everything later looks for it, once AWS has taken it: what
/// AWS refuses must not be in the way of what it takes.
pub fn keep_claim(files: &Files, claim: &Claim) -> Result<(), CertificateError> {
    files::ensure_dir(&files.dir)?;
    require_place(files, claim)?;
    for (path, text) in [(files.anchor(), &claim.anchor), (files.signed(), &claim.signed)] {
        if files::read_own(&path)?.as_ref() != Some(text) {
            files::replace(&path, text.as_bytes(), PUBLIC)?;
        }
    }
    Ok(())
}

/// Only what an earlier try for the same request has left may be replaced, and never an own CA.
fn require_place(files: &Files, claim: &Claim) -> Result<(), CertificateError> {
    let request = files::read_own(&files.csr())?;
    let ours = request.map(|csr| check::is_for(&csr, &claim.signed)).transpose()?;
    if ours == Some(false) {
        return Err(in_the_way(&files.csr(), OTHER_REQUEST));
    }
    let may_go = ours == Some(true) && !files.ca_key().exists();
    for (path, text, otherwise) in [
        (files.anchor(), &claim.anchor, "another CA's certificate"),
        (files.signed(), &claim.signed, "another certificate"),
    ] {
        let there = files::read_own(&path)?;
        if !may_go && there.is_some_and(|there| there.trim() != text.trim()) {
            return Err(in_the_way(&path, otherwise));
        }
    }
    Ok(())
}

/// Makes a file, or finds it as it would have been made.
fn keep_same(path: &Path, text: &str, otherwise: &str) -> Result<(), CertificateError> {
    match files::read_own(path)? {
        None => Ok(files::write_new(path, text.as_bytes(), PUBLIC)?),
        Some(there) if there.trim() == text.trim() => Ok(()),
        Some(_) => Err(in_the_way(path, otherwise)),
    }
}

fn in_the_way(path: &Path, otherwise: &str) -> CertificateError {
    let path = path.display();
    let text = format!("{path} is {otherwise}: move it away, or use another directory (--dir)");
    CertificateError::Other(text)
}

#[cfg(test)]
mod tests;
