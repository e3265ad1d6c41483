//! `kmsfsctl estimate`: what a directory, once migrated, or a volume costs in calls of a KMS.
//!
//! Asks nobody: the numbers come from counting files, from the headers of backing files, and from
//! prices and times that the options can change.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor};
use crate::format::header::RecipientKind;
use crate::format::layout::Layout;
use crate::fs::census::{self, Census};
use crate::fs::volume::{open_root, read_descriptor, unlock_error};
use crate::keys::prices::{HOURS_PER_MONTH, HSM_PER_HOUR, KEY_PER_MONTH};

use super::exit::{FAILURE, failure};
use super::kms;
use super::output::{Out, human_bytes};
use super::progress::Progress;

/// Files per data key of a volume that is made without saying so.
const DEFAULT_SHARE: u32 = 256;
/// GenerateDataKey, against the quota of a key store.
const GENERATE_UNITS: u64 = 3;
/// Calls of the probe in a month: one a minute.
const PROBES_MONTH: u64 = HOURS_PER_MONTH as u64 * 60;

/// Estimate the KMS calls, the time and the money that DIR takes as a volume
#[derive(Args)]
pub struct EstimateArgs {
    /// A directory to be migrated, or the backing directory of a volume
    dir: PathBuf,
    /// How many new files share one wrapped data key (default: as in the volume, or 256)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    files_per_data_key: Option<u32>,
    /// Price of 10,000 requests
    #[arg(long, value_name = "DOLLARS", default_value_t = 0.03, value_parser = amount)]
    price_per_10000: f64,
    /// Units a second of the key store's quota that may be used
    #[arg(long, value_name = "UNITS", default_value_t = 900, value_parser = kms::rate)]
    rate: u32,
    /// Time one call takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20.0, value_parser = amount)]
    latency_ms: f64,
    /// Print the numbers as JSON
    #[arg(long)]
    json: bool,
}

fn amount(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number from 0 on"))
}

#[derive(Serialize)]
struct Estimate {
    directory: String,
    kind: &'static str,
    files: u64,
    empty_files: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_keys: Option<u64>,
    /// KMS keys of an existing volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    kms_keys: Option<usize>,
    headers_unreadable: u64,
    directories_unreadable: u64,
    assumed: Assumed,
    work: Vec<Row>,
    standing: Standing,
}

#[derive(Serialize, Clone, Copy)]
struct Assumed {
    dollars_per_10000: f64,
    units_per_second: u32,
    latency_ms: f64,
}

/// One thing to do with all files.
#[derive(Serialize, PartialEq, Debug)]
struct Row {
    work: &'static str,
    files_per_data_key: u32,
    operation: &'static str,
    calls: u64,
    units: u64,
    dollars: f64,
    seconds_at_quota: f64,
    seconds_in_sequence: f64,
}

/// What it costs to have, per month of 730 hours.
#[derive(Serialize)]
struct Standing {
    key_dollars: f64,
    probe_calls_per_mount: u64,
    probe_dollars_per_mount: f64,
    cloudhsm_dollars_if_used: f64,
}

/// Runs the command.
pub fn run(args: EstimateArgs) -> anyhow::Result<()> {
    let estimate = estimate(&args)?;
    let mut out = Out::new();
    if args.json {
        out.json(&estimate)?
    } else {
        estimate.print(&mut out)?
    }
    out.finish()
}

fn estimate(args: &EstimateArgs) -> anyhow::Result<Estimate> {
    let dir = &args.dir;
    let assumed = Assumed {
        dollars_per_10000: args.price_per_10000,
        units_per_second: args.rate,
        latency_ms: args.latency_ms,
    };
    let root = open_root(dir).map_err(|error| failure(FAILURE, error.message))?;
    let progress = Progress::new("counted", args.json);
    let watch = |bytes| {
        progress.more(bytes);
        progress.done(bytes);
    };
    let is_volume = dir.join(DESCRIPTOR_NAME).symlink_metadata().is_ok();
    let (census, work, kms_keys) = if is_volume {
        let bytes = read_descriptor(&root, dir)?;
        let (descriptor, _) =
            Descriptor::parse(&bytes).map_err(|error| unlock_error(error.into(), dir))?;
        let layout = Layout::new(descriptor.params.header_blocks)?;
        let census = census::volume(&root, layout, descriptor.volume, &watch);
        let census = census.map_err(|error| failure(FAILURE, error.to_string()))?;
        let is_kms = |kind: &RecipientKind| *kind == RecipientKind::AwsKms;
        let kms_keys = descriptor.allowed.iter().map(|r| r.kind).filter(is_kms).count();
        let share = args.files_per_data_key.unwrap_or(descriptor.params.files_per_data_key);
        let work = of_volume(&census, share, kms_keys, assumed);
        (census, work, Some(kms_keys))
    } else {
        let census = census::plain(&root, &watch);
        let census = census.map_err(|error| failure(FAILURE, error.to_string()))?;
        let work = of_plain(census.files, args.files_per_data_key, assumed);
        (census, work, None)
    };
    drop(progress);
    Ok(Estimate {
        directory: dir.display().to_string(),
        kind: if is_volume { "volume" } else { "plain" },
        files: census.files,
        empty_files: census.empty,
        bytes: census.bytes,
        data_keys: is_volume.then_some(census.data_keys),
        kms_keys,
        headers_unreadable: census.unreadable,
        directories_unreadable: census.denied,
        assumed,
        work,
        standing: Standing {
            key_dollars: KEY_PER_MONTH,
            probe_calls_per_mount: PROBES_MONTH,
            probe_dollars_per_mount: assumed.price(PROBES_MONTH),
            cloudhsm_dollars_if_used: 2.0 * HSM_PER_HOUR * HOURS_PER_MONTH,
        },
    })
}

/// Migrating, reading and rewrapping so many files, for the wanted N and two to compare with.
fn of_plain(files: u64, share: Option<u32>, assumed: Assumed) -> Vec<Row> {
    let mut shares = vec![share.unwrap_or(DEFAULT_SHARE)];
    for other in [1, DEFAULT_SHARE] {
        if !shares.contains(&other) {
            shares.push(other);
        }
    }
    let rows = |share: u32| {
        let keys = files.div_ceil(u64::from(share));
        [
            assumed.create(keys, share, 1),
            assumed.each("read", "Decrypt", keys, share),
            assumed.each("rewrap", "ReEncrypt", keys, share),
        ]
    };
    shares.into_iter().flat_map(rows).collect()
}

/// Copying an existing volume into a new one, and what its own wrapped keys take.
fn of_volume(census: &Census, share: u32, kms_keys: usize, assumed: Assumed) -> Vec<Row> {
    let keys = census.files.div_ceil(u64::from(share));
    vec![
        assumed.create(keys, share, kms_keys.max(1) as u64),
        assumed.each("read", "Decrypt", census.data_keys, share),
        assumed.each("rewrap", "ReEncrypt", census.data_keys, share),
    ]
}

impl Assumed {
    fn price(self, calls: u64) -> f64 {
        calls as f64 * self.dollars_per_10000 / 1e4
    }

    fn row(
        self,
        work: &'static str,
        operation: &'static str,
        files_per_data_key: u32,
        (calls, units): (u64, u64),
    ) -> Row {
        Row {
            work,
            files_per_data_key,
            operation,
            calls,
            units,
            dollars: self.price(calls),
            seconds_at_quota: units as f64 / f64::from(self.units_per_second),
            seconds_in_sequence: calls as f64 * self.latency_ms / 1e3,
        }
    }

    /// One KMS key makes each data key, the others wrap it.
    fn create(self, keys: u64, share: u32, kms_keys: u64) -> Row {
        let operation = if kms_keys > 1 { "GenerateDataKey, Encrypt" } else { "GenerateDataKey" };
        let others = kms_keys - 1;
        self.row(
            "create",
            operation,
            share,
            (keys * (1 + others), keys * (GENERATE_UNITS + others)),
        )
    }

    /// One call of one unit for each wrapped key.
    fn each(self, work: &'static str, operation: &'static str, keys: u64, share: u32) -> Row {
        self.row(work, operation, share, (keys, keys))
    }
}

impl Estimate {
    fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let kind = match (self.kind, self.kms_keys) {
            ("volume", Some(0)) => "a volume without a KMS key: as if it had one",
            ("volume", _) => "a volume",
            _ => "a plain directory",
        };
        out.fact("directory", format!("{} ({kind})", self.directory))?;
        out.fact("files with content", self.files.to_string())?;
        out.fact("empty files", format!("{} (need no key)", self.empty_files))?;
        out.fact("content", human_bytes(self.bytes))?;
        if let Some(keys) = self.data_keys {
            out.fact("wrapped data keys", keys.to_string())?;
        }
        if self.headers_unreadable > 0 {
            let text = format!("{} files, not counted", self.headers_unreadable);
            out.fact("no readable header", text)?;
        }
        if self.directories_unreadable > 0 {
            let text = format!("{} directories, not counted", self.directories_unreadable);
            out.fact("not permitted", text)?;
        }
        self.table(out)?;
        self.standing(out)
    }

    fn table(&self, out: &mut Out) -> anyhow::Result<()> {
        out.line("")?;
        out.line(format!(
            "{:<8}{:>6}{:>10}{:>10}{:>11}{:>14}{:>18}  by",
            "work", "N", "calls", "units", "dollars", "at the quota", "one after another"
        ))?;
        for row in &self.work {
            out.line(format!(
                "{:<8}{:>6}{:>10}{:>10}{:>11}{:>14}{:>18}  {}",
                row.work,
                row.files_per_data_key,
                row.calls,
                row.units,
                format!("{:.4}", row.dollars),
                time(row.seconds_at_quota),
                time(row.seconds_in_sequence),
                row.operation
            ))?;
        }
        out.line("")?;
        out.line(
            "N: files that share a data key (init --files-per-data-key); a data key serves new",
        )?;
        out.line(
            "files for an hour at most. create: making all files; read: opening each once after",
        )?;
        out.line("a mount; rewrap: under another KMS key.")?;
        let Assumed { dollars_per_10000, units_per_second, latency_ms } = self.assumed;
        out.line(format!(
            "Assumed: ${dollars_per_10000} for 10,000 requests (--price-per-10000), a quota of \
             {units_per_second} units a second"
        ))?;
        out.line(format!(
            "(--rate; half of what a CloudHSM key store has is 900), {latency_ms} ms a call \
             (--latency-ms)."
        ))
    }

    fn standing(&self, out: &mut Out) -> anyhow::Result<()> {
        let Standing { key_dollars, probe_calls_per_mount, .. } = self.standing;
        out.line("")?;
        out.line("Beside that, per month of 730 hours:")?;
        out.fact("KMS key", format!("${key_dollars:.2} for each"))?;
        out.fact(
            "probe",
            format!(
                "{probe_calls_per_mount} calls, ${:.2} for each mount (one a minute)",
                self.standing.probe_dollars_per_mount
            ),
        )?;
        out.fact(
            "CloudHSM",
            format!(
                "${:.2}, if in a CloudHSM store (two hsm2m.medium at ${HSM_PER_HOUR:.2} an hour)",
                self.standing.cloudhsm_dollars_if_used
            ),
        )
    }
}

/// A time for people.
fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSUMED: Assumed =
        Assumed { dollars_per_10000: 0.03, units_per_second: 900, latency_ms: 20.0 };

    #[test]
    fn a_hundred_thousand_files() {
        let rows = of_plain(100_000, Some(1), ASSUMED);
        let shares: Vec<u32> = rows.iter().map(|row| row.files_per_data_key).collect();
        assert_eq!(shares, [1, 1, 1, 256, 256, 256]);
        assert_eq!((rows[0].calls, rows[0].units), (100_000, 300_000));
        assert!((rows[0].dollars - 0.30).abs() < 1e-9);
        assert_eq!(time(rows[0].seconds_at_quota), "5 min 33 s");
        assert_eq!(time(rows[1].seconds_in_sequence), "33 min 20 s");
        assert_eq!((rows[3].calls, rows[5].calls), (391, 391));
    }

    #[test]
    fn further_kms_keys_wrap_each_data_key_once_more() {
        let row = ASSUMED.create(10, 16, 3);
        assert_eq!((row.calls, row.units), (30, 50));
    }

    #[test]
    fn times_and_amounts_are_read_and_shown() {
        assert_eq!([time(0.04), time(59.4), time(7384.0)], ["0.0 s", "59.4 s", "2 h 03 min"]);
        assert!(amount("0.03").is_ok() && amount("0").is_ok());
        assert!(amount("-1").is_err() && amount("inf").is_err() && amount("x").is_err());
    }
}
