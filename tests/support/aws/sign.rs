//! Signature Version 4: signs the requests of the test client and checks those of everybody.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::http::Request;

/// How far the clock of a caller may be off, in seconds.
const SKEW_MAX: i64 = 900;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What is wrong with a signature.
#[derive(Debug, PartialEq)]
pub enum Wrong {
    /// There is none.
    Missing,
    /// It cannot be read, or lacks a header that must be signed.
    Incomplete(&'static str),
    /// It is for another Region, another service or another day.
    Scope(String),
    /// It is too old or from the future.
    Clock,
    /// It is not that of the secret.
    Mismatch,
}

/// A request as far as its signature is concerned.
pub struct Signed<'a> {
    /// Id of the access key.
    pub access_key: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    end: &'a str,
    headers: Vec<&'a str>,
    signature: &'a str,
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hash(data: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(data))
}

/// The signature of a request whose headers are all there; `headers` are those to sign, sorted.
pub fn signature(
    secret: &str,
    (date, region, service): (&str, &str, &str),
    request: &Request,
    headers: &[&str],
) -> String {
    let values: String = headers
        .iter()
        .map(|name| {
            let value = request.header(name).unwrap_or_default();
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            format!("{name}:{}\n", words.join(" "))
        })
        .collect();
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut query: Vec<&str> = query.split('&').collect();
    query.sort_unstable();
    let canonical = format!(
        "{}\n{path}\n{}\n{values}\n{}\n{}",
        request.method,
        query.join("&"),
        headers.join(";"),
        hash(&request.body)
    );
    let time = request.header("x-amz-date").unwrap_or_default();
    let scope = format!("{date}/{region}/{service}/aws4_request");
    let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", hash(canonical.as_bytes()));
    let mut key = hmac(format!("AWS4{secret}").as_bytes(), date);
    for part in [region, service, "aws4_request"] {
        key = hmac(&key, part);
    }
    HEXLOWER.encode(&hmac(&key, &text))
}

/// Adds the date and the signature to a request; it must have its host already.
pub fn sign(
    request: &mut Request,
    (access_key, secret): (&str, &str),
    region: &str,
    service: &str,
) {
    let time = stamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64);
    request.headers.push(("x-amz-date".to_owned(), time.clone()));
    let date = &time[..8];
    let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let signature = signature(secret, (date, region, service), request, &names);
    let value = format!(
        "{ALGORITHM} Credential={access_key}/{date}/{region}/{service}/aws4_request, \
         SignedHeaders={}, Signature={signature}",
        names.join(";")
    );
    request.headers.push(("authorization".to_owned(), value));
}

/// Reads the Authorization header.
pub fn parse(request: &Request) -> Result<Signed<'_>, Wrong> {
    let header = request.header("authorization").ok_or(Wrong::Missing)?;
    let rest = header.strip_prefix(ALGORITHM).ok_or(Wrong::Incomplete("algorithm"))?;
    let part = |name: &'static str| {
        let mut parts = rest.split(',').map(str::trim);
        parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let credential = part("Credential").ok_or(Wrong::Incomplete("Credential"))?;
    let scope: Vec<&str> = credential.split('/').collect();
    let [access_key, date, region, service, end] = scope[..] else {
        return Err(Wrong::Incomplete("Credential"));
    };
    let headers = part("SignedHeaders").ok_or(Wrong::Incomplete("SignedHeaders"))?;
    let signature = part("Signature").ok_or(Wrong::Incomplete("Signature"))?;
    let headers: Vec<&str> = headers.split(';').collect();
    // Without these a request could be sent elsewhere, later, or as another operation.
    for must in ["host", "x-amz-date", "x-amz-target", "x-amz-security-token"] {
        if !headers.contains(&must) && (must == "host" || request.header(must).is_some()) {
            return Err(Wrong::Incomplete("SignedHeaders"));
        }
    }
    Ok(Signed { access_key, date, region, service, end, headers, signature })
}

impl Signed<'_> {
    /// Checks the signature against the secret and the scope against what it must be.
    pub fn check(
        &self,
        request: &Request,
        secret: &str,
        region: &str,
        service: &str,
    ) -> Result<(), Wrong> {
        if self.region != region {
            let text =
                format!("Credential should be scoped to a valid region, not '{}'.", self.region);
            return Err(Wrong::Scope(text));
        }
        if self.service != service || self.end != "aws4_request" {
            let text = format!("Credential should be scoped to correct service: '{service}'.");
            return Err(Wrong::Scope(text));
        }
        let time = request.header("x-amz-date").ok_or(Wrong::Incomplete("X-Amz-Date"))?;
        let then = seconds(time).ok_or(Wrong::Incomplete("X-Amz-Date"))?;
        if !time.starts_with(self.date) {
            return Err(Wrong::Scope("Date in Credential scope does not match YYYYMMDD.".into()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        if (now - then).abs() > SKEW_MAX {
            return Err(Wrong::Clock);
        }
        let scope = (self.date, self.region, self.service);
        match signature(secret, scope, request, &self.headers) == self.signature {
            true => Ok(()),
            false => Err(Wrong::Mismatch),
        }
    }
}

/// `20150830T123600Z` from seconds since 1970.
pub fn stamp(time: i64) -> String {
    let ([year, month, day], [h, m, s]) = civil(time);
    format!("{year:04}{month:02}{day:02}T{h:02}{m:02}{s:02}Z")
}

/// As in the `Date` header of an answer.
pub fn http_date(time: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let ([year, month, day], [h, m, s]) = civil(time);
    let weekday = DAYS[time.div_euclid(86_400).rem_euclid(7) as usize];
    let month = MONTHS[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year:04} {h:02}:{m:02}:{s:02} GMT")
}

/// Year, month and day; hour, minute and second.
fn civil(time: i64) -> ([i64; 3], [i64; 3]) {
    let (days, rest) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    // The civil calendar in eras of 400 years that begin in March.
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    ([year, month, of_month], [rest / 3600, rest / 60 % 60, rest % 60])
}

/// Seconds since 1970 from `20150830T123600Z`.
pub fn seconds(stamp: &str) -> Option<i64> {
    let shape =
        stamp.len() == 16 && stamp.is_ascii() && &stamp[8..9] == "T" && stamp.ends_with('Z');
    let number = |from: usize, to: usize| stamp.get(from..to)?.parse::<i64>().ok();
    if !shape {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + number(9, 11)? * 3600 + number(11, 13)? * 60 + number(13, 15)?)
}
