//! The certificates of HSMs, and the check of those that a cluster is claimed with. They are real: a
//! client can follow both chains of an HSM, and a wrong certificate is refused for the right reason.

use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// What is wrong with the certificates of an HSM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// AWS's certificate of the hardware was signed by somebody else.
    Aws,
    /// The manufacturer's certificate of the hardware was signed by somebody else.
    Manufacturer,
    /// The HSM's certificate was not signed by the hardware.
    Hsm,
    /// The HSM's certificate is for another key than the signing request.
    Key,
}

impl Spoil {
    const NAMES: [(&'static str, Spoil); 4] = [
        ("aws", Spoil::Aws),
        ("manufacturer", Spoil::Manufacturer),
        ("hsm", Spoil::Hsm),
        ("key", Spoil::Key),
    ];

    /// From its name in control requests.
    pub fn parse(name: &str) -> Option<Spoil> {
        Spoil::NAMES.iter().find(|(known, _)| *known == name).map(|(_, spoil)| *spoil)
    }
}

struct Ca {
    params: CertificateParams,
    key: KeyPair,
}

impl Ca {
    fn new(organization: &str, name: &str) -> Ca {
        let mut params = params(&[(DnType::OrganizationName, organization)], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ca { params, key: rsa() }
    }

    fn certificate(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> String {
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().pem()
    }
}

fn params(parts: &[(DnType, &str)], name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for (kind, text) in parts {
        params.distinguished_name.push(kind.clone(), *text);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

/// What all HSMs of a process have in common: RSA keys are too slow to make for every fake.
struct Factory {
    aws: Ca,
    manufacturer: Ca,
    hardware: Ca,
}

fn factory() -> &'static Factory {
    static FACTORY: OnceLock<Factory> = OnceLock::new();
    FACTORY.get_or_init(|| Factory {
        aws: Ca::new("Amazon", "Fake AWS CloudHSM Root G1"),
        manufacturer: Ca::new("Marvell", "Fake LiquidSecurity Root"),
        hardware: Ca::new("Marvell", "Fake LiquidSecurity adapter"),
    })
}

/// Signs what must not be believed.
fn stranger() -> &'static Ca {
    static STRANGER: OnceLock<Ca> = OnceLock::new();
    STRANGER.get_or_init(|| Ca::new("Stranger", "Nobody's Root"))
}

fn customer() -> &'static Ca {
    static CUSTOMER: OnceLock<Ca> = OnceLock::new();
    CUSTOMER.get_or_init(|| Ca::new("Customer", "Customer Root"))
}

/// The roots that the chains of every HSM end in, PEM: AWS's and the manufacturer's.
pub fn roots() -> (String, String) {
    (factory().aws.certificate(), factory().manufacturer.certificate())
}

/// A trust anchor and the certificate it gives to a signing request, for tests that need no CA.
pub fn sign_as_customer(csr: &str) -> (String, String) {
    sign_as(customer(), csr)
}

/// The same by somebody else.
#[allow(dead_code)]
pub fn sign_as_stranger(csr: &str) -> (String, String) {
    sign_as(stranger(), csr)
}

fn sign_as(ca: &Ca, csr: &str) -> (String, String) {
    let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
    let issuer = Issuer::from_params(&ca.params, &ca.key);
    (ca.certificate(), request.signed_by(&issuer).unwrap().pem())
}

/// The key that the first HSM of a cluster made, with what proves where it lies.
pub struct Identity {
    key: KeyPair,
    subject: CertificateParams,
    /// The cluster's signing request.
    pub csr: String,
    /// The HSM's certificate, signed by the hardware.
    pub hsm: String,
    /// The hardware's certificate, signed by AWS.
    pub aws: String,
    /// The same hardware's certificate, signed by its manufacturer.
    pub manufacturer: String,
}

impl Identity {
    /// Of an HSM with this number.
    pub fn new(number: &str, fips: bool, spoil: Option<Spoil>) -> Identity {
        let mode = if fips { "FIPS" } else { "non-FIPS" };
        let subject = params(
            &[
                (DnType::CountryName, "US"),
                (DnType::StateOrProvinceName, "CA"),
                (DnType::OrganizationName, "Marvell"),
                (DnType::OrganizationalUnitName, "LS2"),
                (DnType::LocalityName, "SanJose"),
            ],
            &format!("HSM:{number}:PARTN:2, for {mode} mode"),
        );
        let key = rsa();
        let csr = subject.serialize_request(&key).unwrap().pem().unwrap();
        let (hsm, aws, manufacturer) = (String::new(), String::new(), String::new());
        let mut identity = Identity { key, subject, csr, hsm, aws, manufacturer };
        identity.certify(spoil);
        identity
    }

    /// Makes the certificates anew, with something wrong or nothing.
    pub fn certify(&mut self, spoil: Option<Spoil>) {
        let factory = factory();
        let unless = |bad: Spoil, ca: &'static Ca| match spoil == Some(bad) {
            true => stranger(),
            false => ca,
        };
        let hardware = &factory.hardware;
        let key = if spoil == Some(Spoil::Key) { &stranger().key } else { &self.key };
        // The issuer's name stays right: only the signature tells.
        let signer = unless(Spoil::Hsm, hardware);
        let issuer = Issuer::from_params(&hardware.params, &signer.key);
        self.hsm = self.subject.signed_by(key, &issuer).unwrap().pem();
        let root = unless(Spoil::Aws, &factory.aws);
        self.aws = root.sign(&hardware.params, &hardware.key);
        let root = unless(Spoil::Manufacturer, &factory.manufacturer);
        self.manufacturer = root.sign(&hardware.params, &hardware.key);
    }
}

/// The bytes of the only certificate in a PEM text.
fn single(what: &str, pem: &str) -> Result<Vec<u8>, String> {
    let blocks: Vec<Pem> = Pem::iter_from_buffer(pem.as_bytes()).filter_map(Result::ok).collect();
    match blocks.as_slice() {
        [block] if block.label == "CERTIFICATE" => Ok(block.contents.clone()),
        [] => Err(format!("The {what} is not a PEM certificate.")),
        [_] => Err(format!("The {what} is PEM, but not a certificate.")),
        _ => Err(format!("The {what} must be a single certificate.")),
    }
}

fn parse<'a>(what: &str, der: &'a [u8]) -> Result<X509Certificate<'a>, String> {
    let parsed = X509Certificate::from_der(der).map(|(_, certificate)| certificate);
    let certificate = parsed.map_err(|_| format!("The {what} cannot be parsed."))?;
    if !certificate.validity().is_valid() {
        return Err(format!("The {what} is not valid at this time."));
    }
    Ok(certificate)
}

/// Checks what a cluster is claimed with, as the service does.
pub fn check_claim(csr: &str, signed: &str, anchor: &str) -> Result<(), String> {
    let (signed, anchor) = (single("signed certificate", signed)?, single("trust anchor", anchor)?);
    let (signed, anchor) = (parse("signed certificate", &signed)?, parse("trust anchor", &anchor)?);
    if anchor.subject() != anchor.issuer() || anchor.verify_signature(None).is_err() {
        return Err("The trust anchor is not self-signed.".to_owned());
    }
    let size = match anchor.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => key.key_size(),
        _ => 0,
    };
    if size != 2048 && size != 4096 {
        return Err("The trust anchor needs an RSA key of 2048 or 4096 bits.".to_owned());
    }
    let constraints = anchor.basic_constraints().ok().flatten();
    if !anchor.extensions().is_empty() && !constraints.is_some_and(|has| has.value.ca) {
        return Err("The trust anchor has extensions but is no certificate authority.".to_owned());
    }
    if signed.issuer() != anchor.subject()
        || signed.verify_signature(Some(anchor.public_key())).is_err()
    {
        return Err("The signed certificate was not signed by the trust anchor.".to_owned());
    }
    let (_, pem) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).unwrap();
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    if signed.public_key().raw != request.certification_request_info.subject_pki.raw {
        let text = "The signed certificate has another public key than the cluster's CSR.";
        return Err(text.to_owned());
    }
    Ok(())
}

/// Whether two PEM texts are the same certificate.
pub fn same(one: &str, other: &str) -> bool {
    match (single("", one), single("", other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
