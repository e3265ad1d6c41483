use super::check::{Checked, Hardware, Roots, check_external, check_hardware, is_anchor_of};
use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use std::sync::OnceLock;
use tempfile::TempDir;
use x509_parser::pem::parse_x509_pem;

/// A CA of somebody else.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Maker");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

fn ca_with(name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    Ca { params, key }
}

fn ca(name: &str) -> Ca {
    ca_with(name, rsa(), |_| ())
}

impl Ca {
    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> String {
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().pem()
    }
}

fn csr(params: &CertificateParams, key: &KeyPair) -> String {
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// The key of an HSM: they all do.
fn hsm_key() -> &'static KeyPair {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    KEY.get_or_init(rsa)
}

fn hsm_name() -> CertificateParams {
    named("HSM:1:PARTN:2, for FIPS mode")
}

fn hsm_csr() -> String {
    csr(&hsm_name(), hsm_key())
}

fn secret(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

fn files(dir: &TempDir) -> Files {
    Files::new(dir.path().join("own"))
}

fn no_passphrase(_: Passphrase) -> Result<SecretBytes, String> {
    Err("nobody is here".to_owned())
}

#[test]
fn an_own_ca_is_made_once_and_signs_again() {
    let dir = TempDir::with_prefix("kmsfs-ca-").unwrap();
    let (files, csr) = (files(&dir), hsm_csr());
    let mut asked = Vec::new();
    let mut ask = |which| {
        asked.push(which);
        Ok(secret("correct horse"))
    };
    let claim = ensure_signed(&files, "vault", &csr, &mut ask).unwrap();
    check_external(&csr, &claim.signed, &claim.anchor).unwrap();
    is_anchor_of(&claim.signed, &claim.anchor).unwrap();
    let (_, pem) = parse_x509_pem(claim.anchor.as_bytes()).unwrap();
    let anchor = pem.parse_x509().unwrap();
    assert_eq!(anchor.subject().to_string(), "CN=kmsfs vault CA");
    let days = (anchor.validity().not_after.timestamp() - anchor.validity().not_before.timestamp())
        / 86_400;
    assert_eq!(days, 3653);
    let key = std::fs::read_to_string(files.ca_key()).unwrap();
    assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    // All there: nobody is asked.
    assert_eq!(ensure_signed(&files, "vault", &csr, &mut no_passphrase).unwrap(), claim);
    // Killed before the cluster's certificate, and before the CA's.
    std::fs::remove_file(files.signed()).unwrap();
    let again = ensure_signed(&files, "vault", &csr, &mut ask).unwrap();
    assert_eq!(again.anchor, claim.anchor);
    assert_ne!(again.signed, claim.signed);
    std::fs::remove_file(files.signed()).unwrap();
    std::fs::remove_file(files.anchor()).unwrap();
    ensure_signed(&files, "vault", &csr, &mut ask).unwrap();
    assert_eq!(asked, [Passphrase::New, Passphrase::Existing, Passphrase::Existing]);
    assert_eq!(std::fs::read_to_string(files.ca_key()).unwrap(), key);

    // What does not belong together is refused, and stays.
    std::fs::remove_file(files.signed()).unwrap();
    let mut wrong = |_| Ok(secret("wrong"));
    let error = ensure_signed(&files, "vault", &csr, &mut wrong).unwrap_err().to_string();
    assert!(error.contains("passphrase does not open it"), "{error}");
    std::fs::write(files.anchor(), ca("kmsfs vault CA").pem()).unwrap();
    let mut right = |_| Ok(secret("correct horse"));
    let error = ensure_signed(&files, "vault", &csr, &mut right).unwrap_err();
    assert!(matches!(error, CertificateError::OtherKey { .. }), "{error}");
    let other = super::tests::csr(&named("HSM:2"), &rsa());
    let error = ensure_signed(&files, "vault", &other, &mut right).unwrap_err().to_string();
    assert!(error.contains("another cluster"), "{error}");
    std::fs::remove_file(files.ca_key()).unwrap();
    let error = ensure_signed(&files, "vault", &csr, &mut right).unwrap_err().to_string();
    assert!(error.contains("its key"), "{error}");
    // A key that everybody can read protects nothing.
    std::fs::write(files.ca_key(), rsa().serialize_pem()).unwrap();
    let error = ensure_signed(&files, "vault", &csr, &mut right).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::remove_file(files.ca_key()).unwrap();
    let bare = rsa().serialize_pem();
    files::write_new(&files.ca_key(), bare.as_bytes(), files::SECRET).unwrap();
    let error = ensure_signed(&files, "vault", &csr, &mut right).unwrap_err().to_string();
    assert!(error.contains("must be an encrypted private key"), "{error}");
}

#[test]
fn a_request_gets_its_subject_and_key_and_nothing_else() {
    let dir = TempDir::with_prefix("kmsfs-ca-").unwrap();
    let mut params = named("HSM:1");
    // What libraries have no name for, twice.
    for text in ["one", "two"] {
        params.distinguished_name.push(DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 99, 1]), text);
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.custom_extensions =
        vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99, 2], vec![5, 0])];
    let csr = csr(&params, hsm_key());
    let mut ask = |_| Ok(secret("x"));
    let claim = ensure_signed(&files(&dir), "vault", &csr, &mut ask).unwrap();
    let (_, pem) = parse_x509_pem(claim.signed.as_bytes()).unwrap();
    let signed = pem.parse_x509().unwrap();
    let request = check::Request::parse(&csr).unwrap();
    let request = request.parsed().unwrap();
    let info = &request.certification_request_info;
    assert_eq!(signed.subject().as_raw(), info.subject.as_raw());
    assert_eq!(signed.public_key().raw, info.subject_pki.raw);
    assert!(signed.extensions().is_empty());
    assert_eq!(signed.version().0, 2);
}

#[test]
fn a_request_must_be_signed_by_its_own_key() {
    let good = hsm_csr();
    let (_, pem) = parse_x509_pem(good.as_bytes()).unwrap();
    let mut der = pem.contents.clone();
    *der.last_mut().unwrap() ^= 1;
    let bad = der::pem("CERTIFICATE REQUEST", &der);
    assert!(check::Request::parse(&good).is_ok());
    assert!(matches!(check::Request::parse(&bad), Err(CertificateError::NotSigned { .. })));
    for text in ["", "nonsense", &good.replace("REQUEST", "WISH"), &format!("{good}{good}")] {
        assert!(matches!(check::Request::parse(text), Err(CertificateError::Unreadable(_))));
    }
}

#[test]
fn what_another_ca_signed_is_checked() {
    use CertificateError as E;
    let (csr, anchor) = (hsm_csr(), ca("Corporate Root"));
    let good = anchor.sign(&hsm_name(), hsm_key());
    let check = |signed: &str, anchor: &str| check_external(&csr, signed, anchor);
    assert_eq!(check(&good, &anchor.pem()), Ok(()));
    let renamed = check(&anchor.sign(&named("HSM"), hsm_key()), &anchor.pem()).unwrap_err();
    assert_eq!(
        renamed.to_string(),
        "the signed certificate has the subject \"O=Maker, CN=HSM\", but the cluster's signing request \
         has \"O=Maker, CN=HSM:1:PARTN:2, for FIPS mode\"; have it signed with its subject unchanged"
    );
    let stranger = ca("Corporate Root");
    assert!(matches!(check(&good, &stranger.pem()), Err(E::NotSigned { .. })));
    let for_other = anchor.sign(&hsm_name(), &stranger.key);
    assert!(matches!(check(&for_other, &anchor.pem()), Err(E::OtherKey { .. })));
    let mut old = hsm_name();
    old.not_after = date_time_ymd(2020, 1, 1);
    let old = anchor.sign(&old, hsm_key());
    assert!(matches!(check(&old, &anchor.pem()), Err(E::OutOfDate(_))));
    let with = |key, change: fn(&mut CertificateParams)| {
        let ca = ca_with("Root", key, change);
        check(&ca.sign(&hsm_name(), hsm_key()), &ca.pem()).unwrap_err()
    };
    let leaf = with(rsa(), |params| params.is_ca = IsCa::NoCa);
    assert!(matches!(leaf, E::NotAuthority(_)), "{leaf}");
    let late = with(rsa(), |params| params.not_before = date_time_ymd(4000, 1, 1));
    assert!(matches!(late, E::OutOfDate(_)), "{late}");
    let curve = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let curve = with(curve, |_| ());
    assert!(matches!(curve, E::KeyKind(_)), "{curve}");
    let between = anchor.sign(&stranger.params, &stranger.key);
    assert!(matches!(check(&good, &between), Err(E::NotSelfSigned(_) | E::NotSigned { .. })));
    let middle = Ca { params: stranger.params.clone(), key: rsa() };
    let between = ca("Other Root").sign(&middle.params, &middle.key);
    let signed = middle.sign(&hsm_name(), hsm_key());
    assert!(matches!(check(&signed, &between), Err(E::NotSelfSigned(_))));
    assert!(matches!(check("nonsense", &anchor.pem()), Err(E::Unreadable(_))));
    let two = format!("{0}{0}", anchor.pem());
    assert!(matches!(check(&good, &two), Err(E::Unreadable(_))));
    let long = good.clone() + &"\n".repeat(check::PEM_MAX);
    assert!(matches!(check(&long, &anchor.pem()), Err(E::TooLong(_))));
}

#[test]
fn of_a_chain_the_clusters_certificate_is_taken() {
    let (csr, root) = (hsm_csr(), ca("Corporate Root"));
    let key = check::Request::parse(&csr).unwrap().key().unwrap();
    let good = root.sign(&hsm_name(), hsm_key());
    for chain in [
        good.clone(),
        format!("{good}{}", root.pem()),
        format!("Bag Attributes\n{}{good}", root.pem()),
    ] {
        let leaf = check::leaf(&chain, &key).unwrap();
        assert_eq!(check_external(&csr, &leaf, &root.pem()), Ok(()), "{chain}");
    }
    let strange = format!("{}{}", root.pem(), ca("Other Root").pem());
    let error = check::leaf(&strange, &key).unwrap_err().to_string();
    assert!(error.contains("holds several certificates, none for the key"), "{error}");
    assert!(check::leaf(&format!("{good}{csr}"), &key).is_err());
}

#[test]
fn a_proof_counts_for_its_key_alone() {
    let dir = TempDir::with_prefix("kmsfs-ca-").unwrap();
    let (files, csr) = (files(&dir), hsm_csr());
    let recorded = |csr: Option<&str>, certificate: Option<&str>| {
        proof::recorded(&files, csr, certificate).unwrap()
    };
    let (none, aws) = (Checked::default(), Checked { aws: true, manufacturer: false });
    assert_eq!(proof::record(&files, &csr, none), Ok(none));
    assert!(!files.dir().exists());
    assert_eq!(proof::record(&files, &csr, aws), Ok(aws));
    let both = Checked { aws: true, manufacturer: true };
    let maker = Checked { aws: false, manufacturer: true };
    assert_eq!(proof::record(&files, &csr, maker), Ok(both));
    assert_eq!(proof::record(&files, &csr, none), Ok(both));
    let signed = ca("Root").sign(&hsm_name(), hsm_key());
    assert_eq!((recorded(Some(&csr), None), recorded(None, Some(&signed))), (both, both));
    assert_eq!((recorded(None, None), recorded(None, Some(&ca("Root").pem()))), (none, none));
    let other = super::tests::csr(&hsm_name(), &rsa());
    assert_eq!(recorded(Some(&other), None), none);
    assert_eq!(proof::record(&files, &other, aws), Ok(aws));
    assert_eq!((recorded(Some(&other), None), recorded(Some(&csr), None)), (aws, none));
}

#[test]
fn what_another_ca_signed_is_kept() {
    let dir = TempDir::with_prefix("kmsfs-ca-").unwrap();
    let (files, csr) = (files(&dir), hsm_csr());
    let claim_of = |ca: &Ca| Claim { signed: ca.sign(&hsm_name(), hsm_key()), anchor: ca.pem() };
    let keep = |files: &Files, claim: &Claim| {
        check_claim(files, &csr, claim.clone()).and_then(|claim| keep_claim(files, &claim))
    };
    let (claim, other) = (claim_of(&ca("Corporate Root")), claim_of(&ca("Another Root")));
    keep(&files, &claim).unwrap();
    keep(&files, &claim).unwrap();
    assert_eq!(ensure_signed(&files, "vault", &csr, &mut no_passphrase).unwrap(), claim);
    // For the same request another may come, but not in place of an own CA's.
    keep(&files, &other).unwrap();
    assert_eq!(ensure_signed(&files, "vault", &csr, &mut no_passphrase).unwrap(), other);
    files::write_new(&files.ca_key(), b"sealed", files::SECRET).unwrap();
    let error = keep(&files, &claim).unwrap_err().to_string();
    assert!(error.contains("customerCA.crt is another CA's certificate"), "{error}");
    // Neither what came from elsewhere nor another cluster's.
    let placed = Files::new(dir.path().join("placed"));
    files::ensure_dir(placed.dir()).unwrap();
    files::write_new(&placed.anchor(), claim.anchor.as_bytes(), PUBLIC).unwrap();
    let error = keep(&placed, &other).unwrap_err().to_string();
    assert!(error.contains("customerCA.crt is another CA's certificate"), "{error}");
    files::write_new(&placed.csr(), super::tests::csr(&named("HSM:2"), &rsa()).as_bytes(), PUBLIC)
        .unwrap();
    let error = keep(&placed, &claim).unwrap_err().to_string();
    assert!(error.contains("the signing request of another cluster"), "{error}");
}

#[test]
fn both_chains_of_the_hardware_are_followed() {
    let csr = hsm_csr();
    let (aws, maker, card) = (ca("AWS Root"), ca("Maker Root"), ca("Card 7"));
    let stranger = rsa();
    let sound = || Hardware {
        hsm: Some(card.sign(&named("HSM"), hsm_key())),
        aws: Some(aws.sign(&card.params, &card.key)),
        manufacturer: Some(maker.sign(&card.params, &card.key)),
    };
    let roots = Roots { aws: Some(aws.pem()), manufacturer: Some(maker.pem()) };
    let all = Checked { aws: true, manufacturer: true };
    assert_eq!(check_hardware(&csr, &sound(), &roots), Ok(all));
    let none = check_hardware(&csr, &Hardware::default(), &Roots::default());
    assert_eq!(none, Ok(Checked::default()));
    let says = |hardware: Hardware, roots: &Roots| {
        check_hardware(&csr, &hardware, roots).unwrap_err().to_string()
    };
    // Of the right name, by the wrong key.
    let by = |ca: &Ca, of: &CertificateParams, key: &KeyPair| {
        let issuer = Issuer::from_params(&ca.params, &stranger);
        Some(of.signed_by(key, &issuer).unwrap().pem())
    };
    let bad = Hardware { aws: by(&aws, &card.params, &card.key), ..sound() };
    assert_eq!(
        says(bad, &roots),
        "AWS's certificate of the hardware was not signed by AWS's root certificate"
    );
    let bad = Hardware { manufacturer: by(&maker, &card.params, &card.key), ..sound() };
    assert!(says(bad.clone(), &roots).contains("by the manufacturer's root certificate"));
    let only_aws = Roots { manufacturer: None, ..roots.clone() };
    let checked = Checked { aws: true, manufacturer: false };
    assert_eq!(check_hardware(&csr, &bad, &only_aws), Ok(checked));
    let bad = Hardware { hsm: by(&card, &named("HSM"), hsm_key()), ..sound() };
    assert!(says(bad, &roots).starts_with("the HSM's certificate was not signed by AWS's cert"));
    let bad = Hardware { hsm: Some(card.sign(&named("HSM"), &stranger)), ..sound() };
    assert!(says(bad, &roots).contains("for another key than the cluster's signing request"));
    let bad = Hardware { manufacturer: None, ..sound() };
    assert!(
        says(bad, &roots).contains("the manufacturer's certificate of the hardware is missing")
    );
    let bad = Roots { aws: sound().aws, ..roots.clone() };
    assert!(says(sound(), &bad).contains("AWS's root certificate is not self-signed"));
}
