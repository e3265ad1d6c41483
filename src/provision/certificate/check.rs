//! Checks of certificates: those of another CA before a cluster is claimed with them, and those that
//! show the cluster's key lies in real hardware.

use super::CertificateError;
use super::der::pem;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// Longest certificate that CloudHSM's documentation allows, in characters.
pub const PEM_MAX: usize = 5000;

const CSR: &str = "the cluster's signing request";
const SIGNED: &str = "the signed certificate";
const ANCHOR: &str = "the trust anchor";
const HSM: &str = "the HSM's certificate";
const AWS_HARDWARE: &str = "AWS's certificate of the hardware";
const MANUFACTURER_HARDWARE: &str = "the manufacturer's certificate of the hardware";
const AWS_ROOT: &str = "AWS's root certificate";
const MANUFACTURER_ROOT: &str = "the manufacturer's root certificate";

/// A signing request whose own signature holds.
pub struct Request {
    der: Vec<u8>,
}

impl Request {
    /// From PEM.
    pub fn parse(pem: &str) -> Result<Self, CertificateError> {
        let der = block(CSR, pem, &["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"])?;
        let request = Self { der };
        if request.parsed()?.verify_signature().is_err() {
            return Err(not_signed(CSR, "the key it is for"));
        }
        Ok(request)
    }

    /// The parts of it.
    pub fn parsed(&self) -> Result<X509CertificationRequest<'_>, CertificateError> {
        let parsed = X509CertificationRequest::from_der(&self.der);
        let (_, request) = parsed.map_err(|_| CertificateError::Unreadable(CSR.to_owned()))?;
        Ok(request)
    }

    /// Public key, as DER.
    pub fn key(&self) -> Result<Vec<u8>, CertificateError> {
        Ok(self.parsed()?.certification_request_info.subject_pki.raw.to_vec())
    }
}

/// A certificate and what it is called in error messages.
pub struct Certificate<'a> {
    what: &'a str,
    der: Vec<u8>,
}

impl<'a> Certificate<'a> {
    /// From PEM that holds one certificate.
    pub fn parse(what: &'a str, pem: &str) -> Result<Self, CertificateError> {
        let certificate = Self { what, der: block(what, pem, &["CERTIFICATE"])? };
        certificate.parsed()?;
        Ok(certificate)
    }

    /// The parts of it.
    pub fn parsed(&self) -> Result<X509Certificate<'_>, CertificateError> {
        let parsed = X509Certificate::from_der(&self.der);
        let (_, certificate) = parsed.map_err(|_| self.error(CertificateError::Unreadable))?;
        Ok(certificate)
    }

    /// Public key, as DER.
    pub fn key(&self) -> Result<Vec<u8>, CertificateError> {
        Ok(self.parsed()?.public_key().raw.to_vec())
    }

    fn error(&self, kind: fn(String) -> CertificateError) -> CertificateError {
        kind(self.what.to_owned())
    }

    /// Valid now.
    pub fn in_time(&self) -> Result<(), CertificateError> {
        match self.parsed()?.validity().is_valid() {
            true => Ok(()),
            false => Err(self.error(CertificateError::OutOfDate)),
        }
    }

    /// Issued and signed by another.
    fn signed_by(&self, issuer: &Certificate<'_>) -> Result<(), CertificateError> {
        let (own, other) = (self.parsed()?, issuer.parsed()?);
        let named = own.issuer().as_raw() == other.subject().as_raw();
        match named && own.verify_signature(Some(other.public_key())).is_ok() {
            true => Ok(()),
            false => Err(not_signed(self.what, issuer.what)),
        }
    }

    /// A root: signed by itself.
    fn self_signed(&self) -> Result<(), CertificateError> {
        self.signed_by(self).map_err(|_| self.error(CertificateError::NotSelfSigned))
    }

    /// Fit to be a cluster's trust anchor.
    pub fn is_anchor(&self) -> Result<(), CertificateError> {
        self.self_signed()?;
        let own = self.parsed()?;
        let constraints = own.basic_constraints().ok().flatten();
        if !constraints.is_some_and(|has| has.value.ca) {
            return Err(self.error(CertificateError::NotAuthority));
        }
        let bits = match own.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => key.key_size(),
            _ => 0,
        };
        match bits {
            2048 | 4096 => self.in_time(),
            _ => Err(self.error(CertificateError::KeyKind)),
        }
    }

    /// For the key of the signing request.
    fn is_for(&self, request: &Request) -> Result<(), CertificateError> {
        match self.key()? == request.key()? {
            true => Ok(()),
            false => {
                Err(CertificateError::OtherKey { what: self.what.to_owned(), than: CSR.to_owned() })
            }
        }
    }

    /// For who made the signing request. A CA may write the same words in another encoding.
    fn is_named_as(&self, request: &Request) -> Result<(), CertificateError> {
        let has = self.parsed()?.subject().to_string();
        let wanted = request.parsed()?.certification_request_info.subject.to_string();
        let (what, than) = (self.what.to_owned(), CSR.to_owned());
        match has == wanted {
            true => Ok(()),
            false => Err(CertificateError::OtherSubject { what, has, than, wanted }),
        }
    }
}

fn not_signed(what: &str, by: &str) -> CertificateError {
    CertificateError::NotSigned { what: what.to_owned(), by: by.to_owned() }
}

/// The contents of the only PEM block with one of these labels.
fn block(what: &str, pem: &str, labels: &[&str]) -> Result<Vec<u8>, CertificateError> {
    let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(pem.as_bytes()).collect();
    match blocks.ok().as_deref() {
        Some([block]) if labels.contains(&block.label.as_str()) => Ok(block.contents.clone()),
        _ => Err(CertificateError::Unreadable(what.to_owned())),
    }
}

/// A trust anchor and what it signed for this request: would CloudHSM take it?
pub fn check_external(csr: &str, signed: &str, anchor: &str) -> Result<(), CertificateError> {
    for (what, text) in [(SIGNED, signed), (ANCHOR, anchor)] {
        if text.chars().count() > PEM_MAX {
            return Err(CertificateError::TooLong(what.to_owned()));
        }
    }
    let request = Request::parse(csr)?;
    let (signed, anchor) =
        (Certificate::parse(SIGNED, signed)?, Certificate::parse(ANCHOR, anchor)?);
    anchor.is_anchor()?;
    signed.signed_by(&anchor)?;
    signed.is_for(&request)?;
    signed.is_named_as(&request)?;
    signed.in_time()
}

/// The one certificate for this public key, of a file that may hold the chain up to the root as well.
pub fn leaf(signed: &str, key: &[u8]) -> Result<String, CertificateError> {
    let unreadable = || CertificateError::Unreadable(SIGNED.to_owned());
    let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(signed.as_bytes()).collect();
    let blocks = blocks.map_err(|_| unreadable())?;
    if blocks.len() < 2 {
        return Ok(signed.to_owned());
    }
    if blocks.iter().any(|block| block.label != "CERTIFICATE") {
        return Err(unreadable());
    }
    for block in blocks {
        let certificate = Certificate { what: SIGNED, der: block.contents };
        if certificate.key()? == key {
            return Ok(pem("CERTIFICATE", &certificate.der));
        }
    }
    let text = format!("{SIGNED} holds several certificates, none for the key of {CSR}");
    Err(CertificateError::Other(text))
}

/// Is this the root that the cluster's certificate was signed by?
pub fn is_anchor_of(cluster: &str, anchor: &str) -> Result<(), CertificateError> {
    let cluster = Certificate::parse("the cluster's certificate", cluster)?;
    cluster.signed_by(&Certificate::parse(ANCHOR, anchor)?)
}

/// Was this signed for the key of this request?
pub fn is_for(csr: &str, signed: &str) -> Result<bool, CertificateError> {
    let request = Request::parse(csr)?;
    match Certificate::parse(SIGNED, signed)?.is_for(&request) {
        Ok(()) => Ok(true),
        Err(CertificateError::OtherKey { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Are these the same certificate, however they are written?
pub fn is_same(cluster: &str, signed: &str) -> Result<bool, CertificateError> {
    let cluster = Certificate::parse("the cluster's certificate", cluster)?;
    Ok(cluster.der == Certificate::parse(SIGNED, signed)?.der)
}

/// What CloudHSM says of the hardware that made a signing request, PEM.
#[derive(Debug, Clone, Default)]
pub struct Hardware {
    /// Of the HSM, by its hardware.
    pub hsm: Option<String>,
    /// Of the hardware, by AWS.
    pub aws: Option<String>,
    /// Of the same hardware, by its manufacturer.
    pub manufacturer: Option<String>,
}

/// The roots that both chains must end in, PEM, as their owners publish them.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// AWS's.
    pub aws: Option<String>,
    /// The manufacturer's.
    pub manufacturer: Option<String>,
}

/// Which chains were followed to their root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Checked {
    /// AWS vouches for the hardware.
    pub aws: bool,
    /// So does its manufacturer.
    pub manufacturer: bool,
}

/// Follows the chain of each root that is given, from the root down to the key of the request.
/// Without a root a chain proves nothing, so then it is left alone.
pub fn check_hardware(
    csr: &str,
    hardware: &Hardware,
    roots: &Roots,
) -> Result<Checked, CertificateError> {
    let request = Request::parse(csr)?;
    let mut checked = Checked::default();
    if let Some(root) = &roots.aws {
        let names = (AWS_HARDWARE, AWS_ROOT);
        follow(&request, hardware.hsm.as_deref(), hardware.aws.as_deref(), root, names)?;
        checked.aws = true;
    }
    if let Some(root) = &roots.manufacturer {
        let names = (MANUFACTURER_HARDWARE, MANUFACTURER_ROOT);
        follow(&request, hardware.hsm.as_deref(), hardware.manufacturer.as_deref(), root, names)?;
        checked.manufacturer = true;
    }
    Ok(checked)
}

fn follow(
    request: &Request,
    hsm: Option<&str>,
    middle: Option<&str>,
    root: &str,
    (middle_name, root_name): (&str, &str),
) -> Result<(), CertificateError> {
    let (Some(hsm), Some(middle)) = (hsm, middle) else {
        let missing = if hsm.is_none() { HSM } else { middle_name };
        let text = format!("CloudHSM shows no certificate to check: {missing} is missing");
        return Err(CertificateError::Other(text));
    };
    let root = Certificate::parse(root_name, root)?;
    let middle = Certificate::parse(middle_name, middle)?;
    let hsm = Certificate::parse(HSM, hsm)?;
    root.self_signed()?;
    middle.signed_by(&root)?;
    hsm.signed_by(&middle)?;
    hsm.is_for(request)?;
    [&root, &middle, &hsm].into_iter().try_for_each(Certificate::in_time)
}
