//! Claims a cluster with its certificate.

use super::account::{Account, Refused};
use super::certificate::check::{
    self, Checked, Hardware, PEM_MAX, Roots, check_hardware, is_anchor_of,
};
use super::certificate::{
    AskPassphrase, CertificateError, Claim, Files, check_claim, ensure_signed, keep_claim, proof,
};
use super::cluster::{self, ClusterFacts, Sought};
use super::files::read_own;
use super::{TAG_DEPLOYMENT, Teller};
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;
use aws_sdk_cloudhsmv2::types::ClusterState;
use std::time::Instant;

/// How often a claim is sent whose answers are lost.
const ATTEMPTS: u32 = 3;

/// As much of a cluster as claiming and activating it need.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// What state it is in.
    pub state: ClusterState,
    /// Why, if AWS says.
    pub reason: String,
    /// Security group of its HSMs.
    pub security_group: String,
    /// Addresses of its active HSMs.
    pub addresses: Vec<String>,
    /// The signing request of an unclaimed cluster with an HSM.
    pub csr: Option<String>,
    /// The certificate a cluster was claimed with.
    pub certificate: Option<String>,
    /// What vouches for the hardware.
    pub hardware: Hardware,
}

impl From<ClusterFacts> for Seen {
    fn from(cluster: ClusterFacts) -> Self {
        let active = cluster.hsms.iter().filter(|hsm| hsm.state == "ACTIVE");
        let addresses = active.filter_map(|hsm| hsm.ip.clone()).collect();
        Self {
            state: ClusterState::from(&cluster.state[..]),
            id: cluster.id,
            reason: cluster.state_message.unwrap_or_default(),
            security_group: cluster.security_group.unwrap_or_default(),
            addresses,
            csr: cluster.csr,
            certificate: cluster.certificates.cluster,
            hardware: Hardware {
                hsm: cluster.certificates.hsm,
                aws: cluster.certificates.aws_hardware,
                manufacturer: cluster.certificates.manufacturer_hardware,
            },
        }
    }
}

impl Seen {
    /// Nothing is left to be claimed.
    pub fn is_claimed(&self) -> bool {
        use ClusterState::{Active, Initialized};
        // A claim that was dropped may leave its certificate behind, and has to be sent again.
        let dropped = self.state == ClusterState::Uninitialized;
        matches!(self.state, Active | Initialized) || self.certificate.is_some() && !dropped
    }

    /// The state says that it is not claimed, or not yet.
    fn is_waiting(&self) -> bool {
        matches!(self.state, ClusterState::Uninitialized | ClusterState::InitializeInProgress)
    }

    /// The signing request that a cluster has from its first HSM until it is claimed.
    pub fn request(&self) -> Result<&str, Refused> {
        if self.is_lost() {
            return Err(self.lost());
        }
        self.csr.as_deref().ok_or_else(|| {
            let why = match self.is_claimed() {
                true => "it is initialized already, and has no signing request any more",
                false => {
                    "it has no signing request yet; create its first HSM first and wait until that \
                     is ACTIVE: the HSM makes the request"
                }
            };
            Refused::here(Class::Misconfigured, format!("cluster {}: {why}", self.id))
        })
    }

    /// It is beyond waiting for.
    pub fn is_lost(&self) -> bool {
        use ClusterState::{Degraded, DeleteInProgress, Deleted};
        matches!(self.state, Degraded | DeleteInProgress | Deleted)
    }

    /// A claim was sent, and it is as before.
    fn unclaimed(&self) -> Refused {
        let reason = if self.reason.is_empty() { "" } else { ": " };
        let text = format!(
            "cluster {}: CloudHSM took the certificates, and yet it is {}{reason}{}; compare \
             customerCA.crt and cluster.crt with the cluster's request, and run the same command again",
            self.id, self.state, self.reason
        );
        Refused::here(Class::Misconfigured, text)
    }

    /// Says so.
    pub fn lost(&self) -> Refused {
        let reason = if self.reason.is_empty() { "" } else { ": " };
        let (state, why) = (&self.state, &self.reason);
        let text = format!(
            "cluster {}: it is {state}{reason}{why}; look at it in the AWS console",
            self.id
        );
        Refused::here(Class::Misconfigured, text)
    }
}

/// The cluster with this id or, without one, the only one of the deployment.
pub fn find(account: &Account, id: Option<&str>, name: &str) -> Result<Seen, Refused> {
    if let Some(id) = id {
        return describe(account, id);
    }
    let found = cluster::find(account, Sought::Name(name))?;
    found.map(Seen::from).ok_or_else(|| {
        let text = format!(
            "deployment {name}: no cluster in {} has the tag {TAG_DEPLOYMENT}={name}; name one with \
             --cluster, or make one first (`kmsfsctl provision cluster`)",
            account.region()
        );
        Refused::here(Class::Misconfigured, text)
    })
}

/// How a cluster is.
pub fn describe(account: &Account, id: &str) -> Result<Seen, Refused> {
    cluster::get(account, id).map(Seen::from)
}

/// Claims the cluster, unless that is done, and waits until it is.
pub fn ensure_initialized(
    account: &Account,
    cluster: &str,
    csr: &str,
    signed: &str,
    anchor: &str,
    teller: &dyn Teller,
) -> Result<(), Refused> {
    claim(account, cluster, csr, signed, anchor)?;
    await_initialized(account, cluster, teller)
}

/// Waits until a claim that was sent is through.
pub fn await_initialized(
    account: &Account,
    cluster: &str,
    teller: &dyn Teller,
) -> Result<(), Refused> {
    let (what, started) = (format!("cluster {cluster}"), Instant::now());
    account.wait(&format!("{what}: INITIALIZED"), teller, || {
        let seen = describe(account, cluster)?;
        match seen {
            seen if seen.is_lost() => Err(seen.lost()),
            // CloudHSM falls back to it where a claim fails; at first it may only not show yet.
            seen if seen.state == ClusterState::Uninitialized
                && started.elapsed() >= account.pace.settling =>
            {
                Err(seen.unclaimed())
            }
            // The certificate of a claim may show before, and after, the claim counts.
            seen if seen.is_claimed() && !seen.is_waiting() => Ok(Ok(())),
            seen => Ok(Err(seen.state.to_string())),
        }
    })?;
    teller.done(&format!("{what}: initialized"));
    Ok(())
}

/// Sends the claim if the cluster waits for one. What AWS shows afterwards counts, not the answer: it
/// may have been lost.
fn claim(
    account: &Account,
    cluster: &str,
    csr: &str,
    signed: &str,
    anchor: &str,
) -> Result<(), Refused> {
    let mut left = ATTEMPTS;
    loop {
        let seen = describe(account, cluster)?;
        if seen.is_lost() {
            return Err(seen.lost());
        }
        if seen.state != ClusterState::Uninitialized {
            return Ok(());
        }
        check_request(&seen, csr, signed, anchor)?;
        left -= 1;
        match send(account, cluster, signed, anchor) {
            Ok(()) => return Ok(()),
            Err(refused) => {
                let state = describe(account, cluster)?.state;
                if state != ClusterState::Uninitialized {
                    return Ok(());
                }
                if !refused.may_have_worked() || left == 0 {
                    return Err(refused);
                }
            }
        }
    }
}

/// A certificate for another request would be refused by AWS, in fewer words.
fn check_request(seen: &Seen, csr: &str, signed: &str, anchor: &str) -> Result<(), Refused> {
    let same = |own: &String| own.trim() == csr.trim();
    if !seen.csr.as_ref().is_some_and(same) {
        let text = format!(
            "cluster {}: the certificate is for another signing request than the cluster's; get \
             the present one with --csr-out",
            seen.id
        );
        return Err(Refused::here(Class::Misconfigured, text));
    }
    if signed.len() > PEM_MAX || anchor.len() > PEM_MAX {
        let text = format!("cluster {}: a certificate has more than {PEM_MAX} bytes", seen.id);
        return Err(Refused::here(Class::Misconfigured, text));
    }
    Ok(())
}

fn send(account: &Account, cluster: &str, signed: &str, anchor: &str) -> Result<(), Refused> {
    let [id, signed, anchor] = [cluster, signed, anchor].map(str::to_owned);
    account.make("InitializeCluster", &format!("cluster {cluster}"), move |clients| {
        let request = clients.cloudhsm.initialize_cluster();
        let request = request.cluster_id(&id).signed_cert(&signed).trust_anchor(&anchor);
        async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
    })
}

/// Who signs.
pub enum Source<'a, 'b> {
    /// The deployment's own CA, made if need be.
    Own {
        /// The deployment.
        name: &'a str,
        /// Asks for the passphrase of the CA's key.
        ask: &'a mut AskPassphrase<'b>,
    },
    /// Somebody else has.
    External(Claim),
}

/// What came of [`certify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The cluster was claimed before.
    pub was_claimed: bool,
    /// Whose root the hardware's certificates were followed to, now or before.
    pub hardware: Checked,
}

/// From a cluster with its first HSM to an initialized one. The hardware is checked before anything is
/// signed: afterwards it is too late.
pub fn certify(
    account: &Account,
    seen: &Seen,
    files: &Files,
    source: Source<'_, '_>,
    roots: &Roots,
    teller: &dyn Teller,
) -> Result<Certified, Refused> {
    let wrong = |e: CertificateError| {
        Refused::here(Class::Misconfigured, format!("cluster {}: {e}", seen.id))
    };
    let (mut was_claimed, mut external) = (true, None);
    // Of one that is being made there is no request yet, and that is said below.
    if seen.is_claimed() || seen.state == ClusterState::InitializeInProgress {
        await_initialized(account, &seen.id, teller)?;
        if let Source::External(claim) = source {
            external = Some(claim);
        }
    } else {
        was_claimed = false;
        prove(seen, files, roots)?;
        let csr = seen.request()?;
        let claim = match source {
            Source::Own { name, ask } => ensure_signed(files, name, csr, ask).map_err(wrong)?,
            Source::External(claim) => {
                external.insert(check_claim(files, csr, claim).map_err(wrong)?).clone()
            }
        };
        ensure_initialized(account, &seen.id, csr, &claim.signed, &claim.anchor, teller)?;
    }
    let seen = describe(account, &seen.id)?;
    if let Some(claim) = external {
        keep_taken(&seen, files, claim).map_err(wrong)?;
    }
    check_anchor(&seen, files).map_err(wrong)?;
    let hardware = proof::recorded(files, None, seen.certificate.as_deref()).map_err(wrong)?;
    Ok(Certified { was_claimed, hardware })
}

/// Follows the hardware's chains to the roots that are given, and keeps which; all that were ever.
pub fn prove(seen: &Seen, files: &Files, roots: &Roots) -> Result<Checked, Refused> {
    let csr = seen.request()?;
    let now = check_hardware(csr, &seen.hardware, roots).map_err(|e| {
        let text = format!(
            "cluster {}: its hardware does not prove itself: {e}; nothing was initialized. Check \
             the root certificates, and do not use this cluster otherwise",
            seen.id
        );
        Refused::here(Class::Tampered, text)
    })?;
    proof::record(files, csr, now)
        .map_err(|e| Refused::here(Class::Misconfigured, format!("cluster {}: {e}", seen.id)))
}

/// Keeps another CA's claim if it is what the cluster was claimed with; the run that sent it may have
/// been killed before it could.
fn keep_taken(seen: &Seen, files: &Files, mut claim: Claim) -> Result<(), CertificateError> {
    if let Some(taken) = &seen.certificate {
        claim =
            claim.of_key(&check::Certificate::parse("the cluster's certificate", taken)?.key()?)?;
        if !check::is_same(taken, &claim.signed)? {
            let text = "it was initialized with another certificate than --signed-cert; name that \
                        one, or leave --signed-cert and --trust-anchor out";
            return Err(CertificateError::Other(text.to_owned()));
        }
        is_anchor_of(taken, &claim.anchor)?;
    }
    keep_claim(files, &claim)
}

/// The trust anchor in the directory, if there is one, must be the cluster's: activation and the key
/// store will be given it.
fn check_anchor(seen: &Seen, files: &Files) -> Result<(), CertificateError> {
    let anchor = read_own(&files.anchor())?;
    match (&seen.certificate, anchor) {
        (Some(certificate), Some(anchor)) => is_anchor_of(certificate, &anchor).map_err(|e| {
            let path = files.anchor();
            CertificateError::Other(format!(
                "{} is not what it was initialized with: {e}; bring the right one back",
                path.display()
            ))
        }),
        _ => Ok(()),
    }
}
