//! What keys in a KMS cost: `cargo bench --bench kms`.
//!
//! Real mounts through the real programs, on a fake KMS in this process that answers after a fixed
//! time and holds a CloudHSM key store to its quota. Prints a Markdown table: calls, units and wall
//! time of making files, of reading them cold and warm one after another in the order of their names,
//! and of bringing all of them to another KMS key; then three ratios.
//!
//! `FILES` (10000) says how many files the table is of, `ROUNDS` (3) how many runs a ratio is the
//! median of; 0 leaves it out. The volumes lie below `TMPDIR`.

#![allow(missing_docs)]

#[path = "../tests/support/aws/fake.rs"]
mod aws;
#[allow(dead_code)]
#[path = "../tests/kms/bed.rs"]
mod bed;

use bed::{Bed, ctl, said, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Units a second of a whole CloudHSM key store: what AWS grants, and what the client may use here.
const QUOTA: u32 = 1800;
/// Answers of the fake take so long, in milliseconds.
const LATENCIES: [u64; 3] = [0, 5, 50];
/// Files that share a data key.
const SHARING: [usize; 3] = [1, 16, 256];
const STEPS: [&str; 4] = ["create", "cold read", "warm read", "rewrap"];
/// Files and latency of the ratios.
const RATIO_FILES: usize = 2000;
/// How often so many files are made on either side of a comparison: the machine's moods last longer
/// than one turn.
const TURNS: usize = 15;
const RATIO_LATENCY: Duration = Duration::from_millis(20);

/// What a step took.
#[derive(Clone, Copy, Default)]
struct Cost {
    calls: u64,
    units: u64,
    wall: Duration,
}

/// A volume on the fake's own key store.
fn volume(files_per_key: usize, latency: Duration) -> Bed {
    let bed = Bed::with(&["--files-per-data-key", &files_per_key.to_string()]);
    bed.fake.set_quota(Some(f64::from(QUOTA)));
    bed.fake.set_latency(latency);
    bed
}

fn mount(bed: &mut Bed, options: &str) {
    bed.mount(&format!("{options}kms-rate={QUOTA}"));
    // Mounted a while ago: the first key for new files is there, and so is the quota.
    if options.is_empty() {
        until("the supply", || bed.keys()["supply_ready"].as_u64() >= Some(1));
    }
    std::thread::sleep(Duration::from_secs(1));
    bed.fake.reset_counters();
}

fn measured(bed: &Bed, act: impl FnOnce()) -> Cost {
    bed.fake.reset_counters();
    let wall = timed(act);
    let throttled = bed.fake.calls_total()
        - bed.fake.calls_ok("GenerateDataKey")
        - bed.fake.calls_ok("Encrypt")
        - bed.fake.calls_ok("Decrypt")
        - bed.fake.calls_ok("ReEncrypt");
    if throttled > 0 {
        eprintln!("{throttled} calls were refused");
    }
    Cost { calls: bed.fake.calls_total(), units: bed.fake.units(), wall }
}

fn timed(act: impl FnOnce()) -> Duration {
    let started = Instant::now();
    act();
    started.elapsed()
}

fn create(dir: &Path, files: usize) {
    for i in 0..files {
        fs::write(dir.join(format!("file-{i:06}")), format!("content of file {i}")).unwrap();
    }
}

/// As `cat *` does.
fn read_in_order(dir: &Path, files: usize) {
    let mut names: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert_eq!(names.len(), files);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(fs::read(name).unwrap(), format!("content of file {i}").as_bytes());
    }
}

/// The four steps on one volume.
fn steps(files_per_key: usize, latency: Duration, files: usize) -> [Cost; 4] {
    let mut bed = volume(files_per_key, latency);
    mount(&mut bed, "");
    let made = measured(&bed, || create(&bed.point(), files));
    bed.unmount();
    mount(&mut bed, "ro,");
    let cold = measured(&bed, || read_in_order(&bed.point(), files));
    let warm = measured(&bed, || read_in_order(&bed.point(), files));
    bed.unmount();
    std::thread::sleep(Duration::from_secs(1));
    let second = bed.fake.create_key_in(&bed.fake.store_of(&bed.key).unwrap());
    let rewrapped = measured(&bed, || {
        let rate = QUOTA.to_string();
        let (to, list) = (format!("aws-kms:{second}"), bed.path("list"));
        let list = list.to_str().unwrap();
        said(bed.ctl("key rewrap", &["--to", &to, "--kms-rate", &rate, "--list", list]));
    });
    assert_eq!(bed.fake.bad_contexts(), 0);
    [made, cold, warm, rewrapped]
}

fn table(files: usize) {
    println!("{files} files, {QUOTA} units a second\n");
    print!("| Files per data key | Step | Calls | Units | The quota alone |");
    LATENCIES.iter().for_each(|ms| print!(" {ms} ms |"));
    println!("\n|---|---|---|---|---|{}", "---|".repeat(LATENCIES.len()));
    for files_per_key in SHARING {
        let by_latency: Vec<[Cost; 4]> = LATENCIES
            .iter()
            .map(|ms| {
                eprintln!("{files_per_key} files per data key, {ms} ms ...");
                steps(files_per_key, Duration::from_millis(*ms), files)
            })
            .collect();
        for (step, name) in STEPS.iter().enumerate() {
            let costs: Vec<Cost> = by_latency.iter().map(|steps| steps[step]).collect();
            let units = span(costs.iter().map(|cost| cost.units));
            let calls = span(costs.iter().map(|cost| cost.calls));
            let least = costs.iter().map(|cost| cost.units).min().unwrap_or_default();
            let quota = least as f64 / f64::from(QUOTA);
            print!("| {files_per_key} | {name} | {calls} | {units} | {quota:.1} s |");
            costs.iter().for_each(|cost| print!(" {:.1} s |", cost.wall.as_secs_f64()));
            println!();
        }
    }
}

/// One number, or the least and the most.
fn span(values: impl Iterator<Item = u64> + Clone) -> String {
    let (least, most) = (values.clone().min().unwrap_or(0), values.max().unwrap_or(0));
    if least == most { least.to_string() } else { format!("{least}-{most}") }
}

/// Strict mode: how near to the quota one process comes.
fn strict_create() -> f64 {
    let mut bed = volume(1, RATIO_LATENCY);
    mount(&mut bed, "");
    let cost = measured(&bed, || create(&bed.point(), RATIO_FILES));
    let quota = (RATIO_FILES * 3) as f64 / f64::from(QUOTA);
    cost.wall.as_secs_f64() / quota
}

/// Default mode against a volume with a key file: the median of the turns.
fn shared_create() -> f64 {
    let mut bed = volume(256, RATIO_LATENCY);
    mount(&mut bed, "");
    let (source, point) = (bed.path("local-source"), bed.path("local-point"));
    fs::create_dir(&point).unwrap();
    let key = bed.path("key");
    said(ctl(&["init"]).arg(&source).args(["--key", &format!("keyfile:{}", key.display())]));
    said(
        Command::new(env!("CARGO_BIN_EXE_kmsfs"))
            .args([&source, &point])
            .args(["-o", &format!("keyfile={}", key.display())]),
    );
    // In turns, now one first and now the other, so that what else the machine does meets both.
    let mut turns: Vec<f64> = (0..TURNS)
        .map(|turn| {
            let name = format!("turn-{turn}");
            let at = |point: &Path| {
                let dir = point.join(&name);
                fs::create_dir(&dir).unwrap();
                timed(|| create(&dir, RATIO_FILES)).as_secs_f64()
            };
            if turn % 2 == 0 {
                let local = at(&point);
                at(&bed.point()) / local
            } else {
                at(&bed.point()) / at(&point)
            }
        })
        .collect();
    said(ctl(&["umount"]).arg(&point));
    turns.sort_by(f64::total_cmp);
    turns[TURNS / 2]
}

/// Strict mode read cold: what looking ahead gains.
fn strict_cat() -> f64 {
    let mut bed = volume(1, Duration::ZERO);
    mount(&mut bed, "");
    create(&bed.point(), RATIO_FILES);
    bed.unmount();
    bed.fake.set_latency(RATIO_LATENCY);
    mount(&mut bed, "ro,");
    let cost = measured(&bed, || read_in_order(&bed.point(), RATIO_FILES));
    (RATIO_LATENCY * RATIO_FILES as u32).as_secs_f64() / cost.wall.as_secs_f64()
}

fn ratios(rounds: usize) {
    let ms = RATIO_LATENCY.as_millis();
    println!("\n{RATIO_FILES} files, {ms} ms, medians of {rounds} runs\n");
    println!("| Ratio | Median | Runs |\n|---|---|---|");
    type Run = fn() -> f64;
    let cases: [(&str, Run); 3] = [
        ("strict create: wall / what the quota takes", strict_create),
        ("default create: wall / the same with a key file", shared_create),
        ("strict cold `cat *`: one call after another / wall", strict_cat),
    ];
    for (name, run) in cases {
        let runs: Vec<f64> = (0..rounds).map(|_| run()).collect();
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let runs: Vec<String> = runs.iter().map(|run| format!("{run:.2}")).collect();
        println!("| {name} | {:.2} | {} |", sorted[rounds / 2], runs.join(", "));
    }
}

/// A number from the environment.
fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}?")))
}

fn main() {
    let (files, rounds) = (number("FILES", 10_000), number("ROUNDS", 3));
    if files > 0 {
        table(files);
    }
    if rounds > 0 {
        ratios(rounds);
    }
}
