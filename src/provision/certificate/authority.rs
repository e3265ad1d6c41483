//! An own certificate authority: made for one deployment, kept in two files.

use super::check::{Certificate, Request};
use super::der::{Statement, certificate, pem};
use super::{AskPassphrase, CertificateError, Files, Passphrase};
use crate::crypto::{SecretBytes, random_array};
use crate::provision::files::{self, PUBLIC, SECRET};
use pkcs8::der::Decode;
use pkcs8::der::asn1::OctetString;
use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::{EncryptedPrivateKeyInfoOwned, LineEnding, SecretDocument};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize, SigningKey, date_time_ymd,
};
use std::time::{Duration, SystemTime};
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;
use zeroize::Zeroizing;

const CA: &str = "customerCA.crt";
/// How long a CA is good for.
const LIFE: Duration = Duration::from_secs(3652 * 86_400);
/// How far another clock may be behind this host's.
const BEFORE: Duration = Duration::from_secs(86_400);
/// Rounds between a guess of the passphrase and its key. OpenSSL takes so many, while it refuses
/// scrypt with more than 32 MiB.
const ROUNDS: u32 = 600_000;
const PEM_LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// Longest deployment name that leaves the CA's name in the 64 characters a common name may have.
const NAME_MAX: usize = 50;

/// Refuses a deployment whose name is too long for that of its CA.
pub fn check_name(name: &str) -> Result<(), CertificateError> {
    if name.chars().count() <= NAME_MAX {
        return Ok(());
    }
    let text = format!("{name:?} has more than {NAME_MAX} characters: use a shorter --name");
    Err(CertificateError::Other(text))
}

/// A CA with its private key.
pub struct Authority {
    key: Zeroizing<KeyPair>,
    certificate: String,
}

impl Authority {
    /// Loads the CA of the directory; whatever of it is missing is made. A new key is on disk before
    /// anything is signed with it.
    pub fn ensure(
        files: &Files,
        name: &str,
        ask: &mut AskPassphrase<'_>,
    ) -> Result<Self, CertificateError> {
        let there = files::read_own(&files.anchor())?;
        let key = match files::read_secret(&files.ca_key())? {
            Some(sealed) => open_key(&sealed, &ask(Passphrase::Existing)?)
                .map_err(|why| format!("{}: {why}", files.ca_key().display()))?,
            None if there.is_some() => {
                let (key, anchor) = (files.ca_key(), files.anchor());
                return Err(CertificateError::Other(format!(
                    "{} is there, but its key {} is not: bring it back, or have the request signed \
                     where the key is (--csr-out, --signed-cert)",
                    anchor.display(),
                    key.display()
                )));
            }
            None => {
                let passphrase = ask(Passphrase::New)?;
                let key = Zeroizing::new(generate()?);
                let sealed = seal_key(&key, &passphrase)?;
                files::write_new(&files.ca_key(), sealed.as_bytes(), SECRET)?;
                key
            }
        };
        match there {
            Some(certificate) => Self::from_parts(key, certificate),
            None => {
                let certificate = self_signed(&key, name)?;
                files::write_new(&files.anchor(), certificate.as_bytes(), PUBLIC)?;
                Self::from_parts(key, certificate)
            }
        }
    }

    /// Only what belongs together.
    fn from_parts(key: Zeroizing<KeyPair>, pem: String) -> Result<Self, CertificateError> {
        let certificate = Certificate::parse(CA, &pem)?;
        certificate.is_anchor()?;
        let same = match certificate.parsed()?.public_key().parsed() {
            Ok(PublicKey::RSA(_)) => {
                let bits = certificate.parsed()?.public_key().subject_public_key.data.to_vec();
                bits == key.public_key_raw()
            }
            _ => false,
        };
        if !same {
            let (what, than) = (CA.to_owned(), "customerCA.key".to_owned());
            return Err(CertificateError::OtherKey { what, than });
        }
        Ok(Self { key, certificate: pem })
    }

    /// The trust anchor, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
}

/// Signs a cluster's request: its subject and key as they are, no extension it may ask for, valid as
/// long as the CA.
pub fn sign(ca: &Authority, csr: &str) -> Result<String, CertificateError> {
    let request = Request::parse(csr)?;
    let request = request.parsed()?;
    let issuer = Certificate::parse(CA, &ca.certificate)?;
    let issuer = issuer.parsed()?;
    let mut serial: [u8; 16] = random_array();
    // Positive, and as long as it looks.
    serial[0] = serial[0] & 0x7f | 0x40;
    let info = &request.certification_request_info;
    let statement = Statement {
        serial: &serial,
        issuer: issuer.subject().as_raw(),
        subject: info.subject.as_raw(),
        key: info.subject_pki.raw,
        validity: [issuer.validity().not_before, issuer.validity().not_after].map(fields),
    };
    let to_sign = statement.to_sign();
    let signature = ca.key.sign(&to_sign).map_err(failed)?;
    Ok(pem("CERTIFICATE", &certificate(&to_sign, &signature)))
}

fn fields(time: ASN1Time) -> [u16; 6] {
    let time = time.to_datetime();
    // Years of certificates are 0 to 9999.
    let year = u16::try_from(time.year()).unwrap_or_default();
    let rest = [time.month() as u8, time.day(), time.hour(), time.minute(), time.second()];
    let [month, day, hour, minute, second] = rest.map(u16::from);
    [year, month, day, hour, minute, second]
}

fn failed(error: rcgen::Error) -> CertificateError {
    CertificateError::Other(format!("the certificate authority failed: {error}"))
}

fn generate() -> Result<KeyPair, CertificateError> {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096).map_err(failed)
}

fn self_signed(key: &KeyPair, name: &str) -> Result<String, CertificateError> {
    check_name(name)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("kmsfs {name} CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BEFORE);
    params.not_after = epoch + now + LIFE;
    Ok(params.self_signed(key).map_err(failed)?.pem())
}

/// The key as OpenSSL reads it: PBES2 with PBKDF2-HMAC-SHA256 and AES-256-CBC.
fn seal_key(
    key: &KeyPair,
    passphrase: &SecretBytes,
) -> Result<Zeroizing<String>, CertificateError> {
    let failed = |what: &dyn std::fmt::Display| {
        CertificateError::Other(format!("the CA's key cannot be encrypted: {what}"))
    };
    let (salt, iv) = (random_array::<16>(), random_array::<16>());
    let parameters = Parameters::generate_pbkdf2_sha256_aes256cbc(ROUNDS, &salt, iv);
    let parameters = parameters.map_err(|e| failed(&e))?;
    let sealed = parameters.encrypt(passphrase.expose(), key.serialized_der());
    let sealed = OctetString::new(sealed.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    let info = EncryptedPrivateKeyInfoOwned {
        encryption_algorithm: parameters.into(),
        encrypted_data: sealed,
    };
    let document = SecretDocument::try_from(&info).map_err(|e| failed(&e))?;
    document.to_pem(PEM_LABEL, LineEnding::LF).map_err(|e| failed(&e))
}

fn open_key(sealed: &SecretBytes, passphrase: &SecretBytes) -> Result<Zeroizing<KeyPair>, String> {
    let encrypt = "it must be an encrypted private key; `openssl pkcs8 -topk8` makes it one";
    let text = std::str::from_utf8(sealed.expose()).map_err(|_| encrypt)?;
    let (label, document) = SecretDocument::from_pem(text).map_err(|_| encrypt)?;
    if label != PEM_LABEL {
        return Err(encrypt.to_owned());
    }
    let info = EncryptedPrivateKeyInfoOwned::from_der(document.as_bytes()).map_err(|_| encrypt)?;
    let opened = info.decrypt(passphrase.expose());
    let opened = opened.map_err(|_| "the passphrase does not open it")?;
    let key = KeyPair::try_from(opened.as_bytes()).map_err(|_| "it holds no key of use here")?;
    match key.algorithm() == &PKCS_RSA_SHA256 {
        true => Ok(Zeroizing::new(key)),
        false => Err("it is no RSA key".to_owned()),
    }
}
