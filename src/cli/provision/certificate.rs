//! `kmsfsctl provision certificate`: signs the cluster's request and initializes the cluster.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::account::AccountOptions;
use super::screen::Screen;
use super::{ClusterOptions, refused};
use crate::cli::exit::{FAILURE, failure};
use crate::cli::output::Out;
use crate::cli::secrets;
use crate::crypto::SecretBytes;
use crate::keys::keyfile::read_passphrase_file;
use crate::provision::certificate::check::{Checked, Roots};
use crate::provision::certificate::{Claim, Files, Passphrase, check_name};
use crate::provision::files;
use crate::provision::initialize::{Certified, Seen, Source, certify, find, prove};

/// Sign the cluster's request with an own CA, or take what another CA signed, and initialize the
/// cluster
///
/// The own CA is made in the directory at the first run: customerCA.key (encrypted) and
/// customerCA.crt. Nobody needs the key afterwards, but it proves whose the cluster is: keep it
/// offline. Keep customerCA.crt at hand: activation and the key store need it.
#[derive(Args)]
pub struct CertificateArgs {
    #[command(flatten)]
    place: ClusterOptions,
    #[command(flatten)]
    signing: SigningOptions,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// Who signs, and what the hardware has to prove.
#[derive(Args)]
pub struct SigningOptions {
    /// Read the passphrase of the CA's key from FILE (one newline at its end is dropped)
    #[arg(long, value_name = "FILE")]
    ca_passphrase_file: Option<PathBuf>,
    /// Only write the cluster's signing request to FILE, for another CA
    #[arg(long, value_name = "FILE", conflicts_with_all = ["signed_cert", "trust_anchor"])]
    csr_out: Option<PathBuf>,
    /// The certificate that another CA made from the signing request, PEM; the rest of a chain in the
    /// same file is left out
    #[arg(long, value_name = "FILE", requires = "trust_anchor")]
    signed_cert: Option<PathBuf>,
    /// The self-signed certificate of that CA, PEM
    #[arg(long, value_name = "FILE", requires = "signed_cert")]
    trust_anchor: Option<PathBuf>,
    /// Check the hardware's certificate by AWS against this root, PEM; the CloudHSM User Guide says
    /// where AWS publishes it
    #[arg(long, value_name = "FILE")]
    aws_hardware_root: Option<PathBuf>,
    /// Check the hardware's certificate by its manufacturer against this root, PEM
    #[arg(long, value_name = "FILE")]
    manufacturer_root: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    cluster: String,
    region: String,
    /// Before this run.
    was_initialized: bool,
    initialized: bool,
    /// Followed to AWS's and to the manufacturer's root.
    hardware_checked: Checked,
    #[serde(skip_serializing_if = "Option::is_none")]
    csr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_anchor: Option<String>,
}

/// Runs the command.
pub fn run(args: &CertificateArgs) -> anyhow::Result<()> {
    let account = args.account.account()?;
    let name = &args.account.name;
    let files = args.place.files(name)?;
    let roots = args.signing.roots()?;
    let seen = find(&account, args.place.cluster.as_deref(), name).map_err(refused)?;
    if let Some(path) = &args.signing.csr_out {
        let hardware = request_for_others(&seen, &files, &roots, path)?;
        return print_request(args, &seen, path, account.region(), hardware);
    }
    let mut ask = |which| args.signing.passphrase(which);
    let source = match args.signing.external()? {
        Some(claim) => Source::External(claim),
        None => Source::Own { name, ask: &mut ask },
    };
    let done = certify(&account, &seen, &files, source, &roots, &Screen::new());
    let done = done.map_err(refused)?;
    print(args, &seen, account.region(), &files, &done)
}

impl SigningOptions {
    /// Where the signing request goes, if another CA shall sign and has not yet.
    pub fn csr_out(&self) -> Option<&Path> {
        self.csr_out.as_deref()
    }

    /// What the hardware is checked against.
    pub fn roots(&self) -> anyhow::Result<Roots> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        Ok(Roots {
            aws: read(&self.aws_hardware_root)?,
            manufacturer: read(&self.manufacturer_root)?,
        })
    }

    /// What another CA has signed.
    pub fn external(&self) -> anyhow::Result<Option<Claim>> {
        match (&self.signed_cert, &self.trust_anchor) {
            (Some(signed), Some(anchor)) => {
                Ok(Some(Claim { signed: read(signed)?, anchor: read(anchor)? }))
            }
            _ => Ok(None),
        }
    }

    /// Refuses, before anything is paid for, what would stop the own CA of a deployment, if it is that
    /// which signs.
    pub fn check_own(&self, name: &str) -> anyhow::Result<()> {
        if self.csr_out.is_some() || self.signed_cert.is_some() {
            return Ok(());
        }
        let refused = |text: String| failure(FAILURE, text);
        check_name(name).map_err(|error| refused(error.to_string()))?;
        match &self.ca_passphrase_file {
            // A pipe gives what it has only once.
            Some(path) if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) => Ok(()),
            Some(_) => self.passphrase(Passphrase::Existing).map(drop).map_err(refused),
            None => match std::fs::File::open("/dev/tty") {
                Ok(_) => Ok(()),
                Err(_) => Err(refused(no_passphrase(std::io::ErrorKind::NotFound.into()))),
            },
        }
    }

    /// The passphrase of the own CA's key.
    pub fn passphrase(&self, which: Passphrase) -> Result<SecretBytes, String> {
        let passphrase = match (&self.ca_passphrase_file, which) {
            (Some(path), _) => read_passphrase_file(path).map_err(|e| e.to_string())?,
            (None, Passphrase::New) => {
                secrets::ask_twice("New passphrase for the key of the certificate authority: ")
                    .map_err(no_passphrase)?
            }
            (None, Passphrase::Existing) => {
                secrets::ask("Passphrase of customerCA.key: ").map_err(no_passphrase)?
            }
        };
        match passphrase.expose().is_empty() {
            true => Err("an empty passphrase protects nothing; choose another".to_owned()),
            false => Ok(passphrase),
        }
    }
}

fn no_passphrase(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no terminal to ask for the passphrase of the CA's key on; use \
             --ca-passphrase-file FILE"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = files::read_text(path).and_then(|text| {
        text.ok_or_else(|| format!("{} does not exist; check its name", path.display()))
    });
    text.map_err(|text| failure(FAILURE, text))
}

/// Checks the hardware, as far as roots are given, and writes the cluster's signing request; one that is
/// there must be the same.
pub fn request_for_others(
    seen: &Seen,
    files: &Files,
    roots: &Roots,
    path: &Path,
) -> anyhow::Result<Checked> {
    let hardware = prove(seen, files, roots).map_err(refused)?;
    let csr = seen.request().map_err(refused)?;
    let there = files::read_text(path).map_err(|text| failure(FAILURE, text))?;
    if there.as_deref().map(str::trim) != Some(csr.trim()) {
        let written = files::write_new(path, csr.as_bytes(), files::PUBLIC);
        written.map_err(|text| failure(FAILURE, text))?;
    }
    Ok(hardware)
}

/// What another CA has to know.
pub const FOR_OTHERS: &str = "Have a root CA with an RSA key of 2048 or 4096 bits sign it, its subject unchanged. Then run the \
     same command with --signed-cert FILE and --trust-anchor FILE (the root's own certificate) instead \
     of --csr-out.";

fn print_request(
    args: &CertificateArgs,
    seen: &Seen,
    path: &Path,
    region: &str,
    hardware: Checked,
) -> anyhow::Result<()> {
    let report = Report {
        cluster: seen.id.clone(),
        region: region.to_owned(),
        was_initialized: false,
        initialized: false,
        hardware_checked: hardware,
        csr: Some(path.display().to_string()),
        trust_anchor: None,
    };
    let mut out = Out::new();
    if args.json {
        out.json(&report)?;
        return out.finish();
    }
    out.fact("signing request", path.display().to_string())?;
    out.fact("hardware", hardware_words(false, hardware))?;
    out.line(FOR_OTHERS)?;
    out.finish()
}

fn print(
    args: &CertificateArgs,
    seen: &Seen,
    region: &str,
    files: &Files,
    done: &Certified,
) -> anyhow::Result<()> {
    let anchor = files.anchor();
    let report = Report {
        cluster: seen.id.clone(),
        region: region.to_owned(),
        was_initialized: done.was_claimed,
        initialized: true,
        hardware_checked: done.hardware,
        csr: None,
        trust_anchor: anchor.exists().then(|| anchor.display().to_string()),
    };
    let mut out = Out::new();
    if args.json {
        out.json(&report)?;
        return out.finish();
    }
    out.fact("cluster", &report.cluster)?;
    out.fact("initialized", if done.was_claimed { "before" } else { "now" })?;
    match &report.trust_anchor {
        Some(anchor) => out.fact("trust anchor", anchor)?,
        None => out.fact("trust anchor", format!("not in {}", files.dir().display()))?,
    }
    out.fact("hardware", hardware_words(done.was_claimed, done.hardware))?;
    if !done.was_claimed && files.ca_key().exists() {
        let key = files.ca_key();
        out.line(format!(
            "{} is needed no more: move it to where it stays offline.",
            key.display()
        ))?;
    }
    out.finish()
}

/// How far the hardware has proved itself.
pub fn hardware_words(was_claimed: bool, hardware: Checked) -> &'static str {
    match (hardware.aws, hardware.manufacturer, was_claimed) {
        (true, true, _) => "checked: AWS and the manufacturer vouch for it",
        (true, false, _) => "AWS vouches for it; not checked against the manufacturer's root",
        (false, true, _) => "the manufacturer vouches for it; not checked against AWS's root",
        (false, false, true) => {
            "not checked: that is possible only before a cluster is initialized"
        }
        (false, false, false) => "not checked: no root certificate was given",
    }
}
