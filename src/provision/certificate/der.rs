//! As much of DER as a certificate without extensions needs.
//!
//! Names and keys are taken over byte by byte: a library that reads and writes them anew may lose what
//! it does not know, and the subject of a cluster's certificate must be that of its request.

/// SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// `sha256WithRSAEncryption`, without parameters but NULL.
const RSA_SHA256: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
/// `[0] INTEGER 2`: version 3.
const VERSION_3: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];

/// What a certificate says; each part is DER.
pub struct Statement<'a> {
    /// Up to 20 bytes, the first neither 0 nor above 127.
    pub serial: &'a [u8],
    /// A Name.
    pub issuer: &'a [u8],
    /// A Name.
    pub subject: &'a [u8],
    /// A SubjectPublicKeyInfo.
    pub key: &'a [u8],
    /// First and last second: year, month, day, hour, minute, second.
    pub validity: [[u16; 6]; 2],
}

impl Statement<'_> {
    /// What is signed.
    pub fn to_sign(&self) -> Vec<u8> {
        let serial = element(0x02, &[self.serial]);
        let [from, until] = self.validity.map(time);
        let validity = element(SEQUENCE, &[&from, &until]);
        let parts: [&[u8]; 7] =
            [VERSION_3, &serial, RSA_SHA256, self.issuer, &validity, self.subject, self.key];
        element(SEQUENCE, &parts)
    }
}

/// The certificate.
pub fn certificate(signed: &[u8], signature: &[u8]) -> Vec<u8> {
    let bits = element(0x03, &[&[0], signature]);
    element(SEQUENCE, &[signed, RSA_SHA256, &bits])
}

/// PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    let base64 = data_encoding::BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for at in (0..base64.len()).step_by(64) {
        text.push_str(&base64[at..base64.len().min(at + 64)]);
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let len = body.len().to_be_bytes();
    let short = &len[len.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    match body.len() {
        0..0x80 => out.push(body.len() as u8),
        _ => {
            out.push(0x80 | short.len() as u8);
            out.extend_from_slice(short);
        }
    }
    out.extend_from_slice(&body);
    out
}

/// Two digits of the year up to 2049, four from then on, as RFC 5280 wants it.
fn time([year, month, day, hour, minute, second]: [u16; 6]) -> Vec<u8> {
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    match year {
        1950..2050 => element(0x17, &[format!("{:02}{rest}", year % 100).as_bytes()]),
        _ => element(0x18, &[format!("{year:04}{rest}").as_bytes()]),
    }
}
