//! The HSMs of a cluster, each in a zone of its own.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use super::Teller;
use super::account::{Account, Refused};
use super::cluster::{ClusterFacts, HsmFacts, because, get};
use super::intent::Intent;
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;

/// Sees to it that HSMs work in so many (1 or 2) Availability Zones, with a mark in the directory; of a cluster that is not claimed
/// yet, there is a certificate request then, too.
pub fn ensure_hsm(
    account: &Account,
    cluster: &str,
    number: usize,
    dir: &Path,
    teller: &dyn Teller,
) -> Result<ClusterFacts, Refused> {
    let intent = Intent::of(dir, &format!("HSM {number} of {cluster}"));
    // While a cluster changes, it takes no HSM.
    let what = format!("cluster {cluster}");
    let facts = account.wait(&what, teller, || {
        let facts = get(account, cluster)?;
        facts.require_healthy()?;
        let busy = facts.state.ends_with("_IN_PROGRESS") && occupied(&facts).len() < number;
        Ok(if busy { Err(facts.state) } else { Ok(facts) })
    })?;
    if occupied(&facts).len() < number {
        let zone = free_zone(&facts, number)?;
        let make = || create_hsm(account, cluster, &zone);
        intent.once(account, teller, make, || look(account, cluster, number))?;
        teller.done(&format!("HSM {number} of cluster {cluster} is being made in {zone}"));
    }
    let facts = await_hsms(account, cluster, number, teller)?;
    intent.end();
    teller.done(&format!("cluster {cluster} has HSMs in {} zones", facts.active_zones().len()));
    Ok(facts)
}

/// Zones with an HSM, whatever its state.
fn occupied(cluster: &ClusterFacts) -> BTreeSet<&str> {
    cluster.hsms.iter().map(|hsm| hsm.zone.as_str()).collect()
}

fn free_zone(cluster: &ClusterFacts, number: usize) -> Result<String, Refused> {
    let occupied = occupied(cluster);
    let mut free = cluster.zones.keys().filter(|zone| !occupied.contains(zone.as_str()));
    free.next().cloned().ok_or_else(|| match cluster.require_zones() {
        Err(refused) => refused,
        Ok(()) => {
            let text = format!("cluster {} has no Availability Zone for HSM {number}", cluster.id);
            Refused::here(Class::Misconfigured, text)
        }
    })
}

fn look(account: &Account, cluster: &str, number: usize) -> Result<Option<()>, Refused> {
    let facts = get(account, cluster)?;
    Ok((occupied(&facts).len() >= number).then_some(()))
}

fn create_hsm(account: &Account, cluster: &str, zone: &str) -> Result<(), Refused> {
    let subject = format!("an HSM of cluster {cluster} in {zone}");
    let (cluster, zone) = (cluster.to_owned(), zone.to_owned());
    account.make("CreateHsm", &subject, move |clients| {
        let request = clients.cloudhsm.create_hsm().cluster_id(&cluster).availability_zone(&zone);
        async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
    })
}

/// Waits until HSMs work in so many zones.
fn await_hsms(
    account: &Account,
    cluster: &str,
    number: usize,
    teller: &dyn Teller,
) -> Result<ClusterFacts, Refused> {
    let started = Instant::now();
    let what = match number {
        1 => format!("an HSM of cluster {cluster}"),
        _ => format!("HSMs of cluster {cluster} in {number} zones"),
    };
    account.wait(&what, teller, || {
        let facts = get(account, cluster)?;
        facts.require_healthy()?;
        if facts.active_zones().len() < number {
            if let Some(hsm) = facts.hsms.iter().find(|hsm| hsm.state == "DEGRADED") {
                return Err(degraded(cluster, hsm));
            }
            if occupied(&facts).len() < number && started.elapsed() >= account.pace.settling {
                return Err(vanished(&facts));
            }
            let coming = facts.hsms.iter().find(|hsm| hsm.state != "ACTIVE");
            return Ok(Err(coming.map_or_else(|| "new".to_owned(), |hsm| hsm.state.clone())));
        }
        let lacks_request = facts.state == "UNINITIALIZED" && facts.csr.is_none();
        Ok(if lacks_request { Err("without certificate request".to_owned()) } else { Ok(facts) })
    })
}

fn degraded(cluster: &str, hsm: &HsmFacts) -> Refused {
    let (id, why) = (&hsm.id, because(hsm.state_message.as_deref()));
    let text = format!(
        "HSM {id} of cluster {cluster} is DEGRADED{why}; if AWS does not replace it by itself, delete \
         it (`aws cloudhsmv2 delete-hsm --cluster-id {cluster} --hsm-id {id}`) while another one \
         works, and run the same command again"
    );
    Refused::here(Class::Misconfigured, text)
}

fn vanished(cluster: &ClusterFacts) -> Refused {
    let why = because(cluster.state_message.as_deref());
    let text = format!(
        "an HSM of cluster {} was asked for and is not there{why}; see that its subnets have free \
         addresses, and run the same command again",
        cluster.id
    );
    Refused::here(Class::Misconfigured, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::cluster::tests::cluster;

    #[test]
    fn the_second_hsm_goes_into_another_zone() {
        assert_eq!(free_zone(&cluster(&["a", "b"], &[]), 1).as_deref(), Ok("a"));
        assert_eq!(free_zone(&cluster(&["a", "b"], &["a"]), 2).as_deref(), Ok("b"));
        assert_eq!(free_zone(&cluster(&["a", "b"], &["b", "b"]), 2).as_deref(), Ok("a"));
        let refused = free_zone(&cluster(&["a"], &["a"]), 2).unwrap_err();
        assert!(refused.sentence.contains("subnets in a only"), "{refused}");
    }

    #[test]
    fn what_aws_says_of_an_hsm_is_passed_on() {
        let mut hsm = cluster(&["a", "b"], &["a"]).hsms.remove(0);
        hsm.state_message = Some("tampered with".to_owned());
        assert!(degraded("cluster-a", &hsm).sentence.contains("(tampered with)"));
    }
}
