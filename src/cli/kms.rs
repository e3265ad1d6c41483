//! How KMS is called, as command lines say it.

use clap::Args;
use std::time::Duration;

/// The options of every command that may have to ask a KMS.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct KmsOptions {
    /// Call KMS at this endpoint (https, or http on a loopback address) instead of AWS's own; for one
    /// Region write REGION=URL; may be repeated
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    pub kms_endpoint: Vec<String>,
    /// Use the FIPS endpoints of KMS
    #[arg(long)]
    pub kms_fips: bool,
    /// Use the dual-stack endpoints of KMS
    #[arg(long)]
    pub kms_dual_stack: bool,
    /// Units a second this host may use of a key store's quota (a CloudHSM key store has 1800)
    #[arg(long, value_name = "UNITS", value_parser = rate)]
    pub kms_rate: Option<u32>,
    /// Longest wait for an answer of KMS, such as 5s
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    pub kms_deadline: Option<Duration>,
}

impl KmsOptions {
    /// These, except where `closer` says otherwise.
    pub fn with(&self, closer: &Self) -> Self {
        Self {
            // Of two for the same Region the later one counts.
            kms_endpoint: [&self.kms_endpoint[..], &closer.kms_endpoint].concat(),
            kms_fips: self.kms_fips || closer.kms_fips,
            kms_dual_stack: self.kms_dual_stack || closer.kms_dual_stack,
            kms_rate: closer.kms_rate.or(self.kms_rate),
            kms_deadline: closer.kms_deadline.or(self.kms_deadline),
        }
    }

    /// For the provider.
    #[cfg(feature = "aws")]
    pub fn settings(&self) -> crate::keys::aws::Settings {
        let mut settings = crate::keys::aws::Settings::default();
        // Each was parsed before.
        settings.route.endpoints = self.kms_endpoint.iter().flat_map(|e| e.parse()).collect();
        settings.route.fips = self.kms_fips.then_some(true);
        settings.route.dual_stack = self.kms_dual_stack.then_some(true);
        settings.units_per_second = self.kms_rate.unwrap_or(settings.units_per_second);
        settings.deadline = self.kms_deadline.unwrap_or(settings.deadline);
        settings
    }
}

/// Only options say where keys and what proves who we are may be sent. To be called first thing.
pub fn ignore_ambient_endpoints() -> std::io::Result<()> {
    #[cfg(feature = "aws")]
    crate::keys::aws::ignore_endpoints()?;
    Ok(())
}

/// An endpoint that keys may be sent to.
pub fn endpoint(text: &str) -> Result<String, String> {
    #[cfg(feature = "aws")]
    text.parse::<crate::keys::aws::Endpoint>()?;
    Ok(text.to_owned())
}

/// Units a second.
pub fn rate(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| (1..=1_000_000).contains(n));
    number.ok_or_else(|| format!("{text:?} is not a rate (units a second, from 1 on)"))
}

/// How long a caller may wait.
pub fn deadline(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let fits = (Duration::from_millis(100)..=Duration::from_secs(300)).contains(&time);
    if fits { Ok(time) } else { Err(format!("{text:?} is not between 100ms and 5m")) }
}

/// How long a key is used without asking, or how often is asked.
pub fn lifetime(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let fits = (Duration::from_secs(1)..=Duration::from_secs(366 * 86_400)).contains(&time);
    if fits { Ok(time) } else { Err(format!("{text:?} is not between 1s and a year")) }
}

/// A number with its unit: `500ms`, `30s`, `5m`, `1h`, `1d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time; write 500ms, 30s, 5m, 1h or 1d");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("7", 7000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5h", "1w", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(deadline("5s").is_ok() && deadline("10ms").is_err() && deadline("1h").is_err());
        assert!(rate("900").is_ok() && rate("0").is_err() && rate("x").is_err());
    }
}
