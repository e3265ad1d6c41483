//! Whether the hardware that holds a cluster's key has proved itself. It can only until the cluster is
//! claimed, so what was checked by then is kept in the deployment's directory, with the key it is about.

use super::check::{Certificate, Checked, Request};
use super::{CertificateError, Files};
use crate::provision::files::{self, PUBLIC};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Proof {
    /// Public key of the signing request: SubjectPublicKeyInfo, base64.
    key: String,
    #[serde(flatten)]
    checked: Checked,
}

/// Keeps which chains of a request's key were followed to their root now; all that were ever.
pub fn record(files: &Files, csr: &str, now: Checked) -> Result<Checked, CertificateError> {
    let before = recorded(files, Some(csr), None)?;
    let checked = Checked {
        aws: before.aws || now.aws,
        manufacturer: before.manufacturer || now.manufacturer,
    };
    if checked != before {
        let proof = Proof { key: BASE64.encode(&Request::parse(csr)?.key()?), checked };
        let text = serde_json::to_string(&proof).map_err(|e| e.to_string())? + "\n";
        files::ensure_dir(files.dir())?;
        files::replace(&files.proof(), text.as_bytes(), PUBLIC)?;
    }
    Ok(checked)
}

/// Which chains were followed, of the cluster with this signing request or, once it is claimed, this
/// certificate. Without a record of its key: none.
pub fn recorded(
    files: &Files,
    csr: Option<&str>,
    certificate: Option<&str>,
) -> Result<Checked, CertificateError> {
    let key = match (csr, certificate) {
        (Some(csr), _) => Request::parse(csr)?.key()?,
        (None, Some(pem)) => Certificate::parse("the cluster's certificate", pem)?.key()?,
        (None, None) => return Ok(Checked::default()),
    };
    let Some(text) = files::read_own(&files.proof())? else { return Ok(Checked::default()) };
    let proof: Proof = serde_json::from_str(&text).map_err(|e| {
        let path = files.proof();
        format!("{} is no record of a check of hardware ({e}); move it away", path.display())
    })?;
    let same = proof.key == BASE64.encode(&key);
    Ok(if same { proof.checked } else { Checked::default() })
}
