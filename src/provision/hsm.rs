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

/// Sees to it that HSMs work in so many (1 or 2) Availability Zones, with a mark in the directory; of a
/// cluster that is not claimed yet, there is a certificate request then, too.
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
        let zones = free_zones(&facts, number)?;
        let make = || create_in_one_of(account, cluster, &zones, teller);
        intent.once(account, teller, make, || look(account, cluster, number))?;
        teller.done(&format!("HSM {number} of cluster {cluster} is being made"));
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

/// Zones without an HSM; at least one.
fn free_zones(cluster: &ClusterFacts, number: usize) -> Result<Vec<String>, Refused> {
    let occupied = occupied(cluster);
    let free = cluster.zones.keys().filter(|zone| !occupied.contains(zone.as_str()));
    let free: Vec<String> = free.cloned().collect();
    if !free.is_empty() {
        return Ok(free);
    }
    cluster.require_zones()?;
    let text = format!("cluster {} has no Availability Zone for HSM {number}", cluster.id);
    Err(Refused::here(Class::Misconfigured, text))
}

/// In the first zone that has one to give. After any other failure nobody knows enough to go on.
fn create_in_one_of(
    account: &Account,
    cluster: &str,
    zones: &[String],
    teller: &dyn Teller,
) -> Result<(), Refused> {
    let mut first = None;
    for zone in zones {
        match create_hsm(account, cluster, zone) {
            Err(refused) if is_about_the_zone(&refused) => {
                teller.waiting(
                    &format!("an HSM of cluster {cluster}"),
                    &format!("not to be had in {zone}"),
                );
                first.get_or_insert(refused);
            }
            other => return other,
        }
    }
    first.map_or(Ok(()), Err)
}

fn is_about_the_zone(refused: &Refused) -> bool {
    refused.code == "CloudHsmServiceException" && !refused.may_have_worked()
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
        let zones =
            |zones: &[&str], taken: &[&str], number| free_zones(&cluster(zones, taken), number);
        assert_eq!(zones(&["a", "b"], &[], 1).unwrap(), ["a", "b"]);
        assert_eq!(zones(&["a", "b"], &["a"], 2).unwrap(), ["b"]);
        assert_eq!(zones(&["a", "b"], &["b", "b"], 2).unwrap(), ["a"]);
        let refused = zones(&["a"], &["a"], 2).unwrap_err();
        assert!(refused.sentence.contains("subnets in a only"), "{refused}");
    }

    #[test]
    fn what_aws_says_of_an_hsm_is_passed_on() {
        let mut hsm = cluster(&["a", "b"], &["a"]).hsms.remove(0);
        hsm.state_message = Some("tampered with".to_owned());
        assert!(degraded("cluster-a", &hsm).sentence.contains("(tampered with)"));
    }
}
