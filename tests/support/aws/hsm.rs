//! The operations of CloudHSM.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api::{Call, Fault, Outcome};
use super::clusters::{Cluster, show_tags};
use super::crypt::Subject;
use super::pki;
use super::service::Service;
use super::world::World;

/// CloudHSM.
pub const SERVICE: Service =
    Service { target: "BaldrApiService", signing: "cloudhsm", subjects, run };

/// How many tags a cluster may have.
const TAGS_MAX: usize = 50;
/// Longest certificate, by the documentation.
const CERTIFICATE_MAX: usize = 5000;
/// HSMs of one cluster.
const HSMS_PER_CLUSTER: usize = 28;

fn subjects(_: &World, call: &Call) -> Result<Vec<Subject>, Fault> {
    Ok(vec![Subject { action: call.operation.to_owned(), key: None, context: None }])
}

fn run(world: &mut World, call: &Call) -> Outcome {
    let outcome = match call.operation {
        "CreateCluster" => create_cluster(world, call),
        "DescribeClusters" => describe_clusters(world, call),
        "DeleteCluster" => delete_cluster(world, call),
        "InitializeCluster" => initialize(world, call),
        "ModifyCluster" => modify(world, call),
        "CreateHsm" => create_hsm(world, call),
        "DeleteHsm" => delete_hsm(world, call),
        "TagResource" => tag(world, call),
        "UntagResource" => untag(world, call),
        "ListTags" => list_tags(world, call),
        "DescribeBackups" => describe_backups(world, call),
        _ => Err(Fault::client("UnknownOperationException", "")),
    };
    // The service has its own name for parameters out of their limits.
    outcome.map_err(|fault| match fault.code.as_str() {
        "ValidationException" => invalid(fault.message),
        _ => fault,
    })
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::client("CloudHsmInvalidRequestException", message)
}

fn missing(id: &str) -> Fault {
    let message = format!("Resource {id} was not found.");
    Fault::client("CloudHsmResourceNotFoundException", message)
}

fn limit(what: &str, most: usize) -> Fault {
    let message = format!("The account has reached its limit of {most} {what}.");
    Fault::client("CloudHsmResourceLimitExceededException", message)
}

fn is_id(kind: &str, id: &str) -> bool {
    id.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| {
        let legal = |b: u8| b.is_ascii_alphabetic() || (b'2'..=b'7').contains(&b);
        (11..=16).contains(&rest.len()) && rest.bytes().all(legal)
    })
}

fn cluster<'a>(world: &'a mut World, call: &Call, name: &str) -> Result<&'a mut Cluster, Fault> {
    let id = call.need(name, 1..=64)?;
    if !is_id("cluster", id) {
        return Err(invalid(format!("'{id}' is not the id of a cluster.")));
    }
    world.clusters.get_mut(id).filter(|found| !found.deleted()).ok_or_else(|| missing(id))
}

/// Refuses what a cluster in its present state cannot do.
fn in_state(cluster: &Cluster, states: &[&str]) -> Result<(), Fault> {
    let (id, state) = (&cluster.id, cluster.state.state);
    match states.contains(&state) {
        true => Ok(()),
        false => Err(invalid(format!(
            "Cluster {id} is in state {state}; this needs {}.",
            states.join(" or ")
        ))),
    }
}

fn create_cluster(world: &mut World, call: &Call) -> Outcome {
    match call.need("HsmType", 1..=32)? {
        "hsm2m.medium" => {}
        "hsm1.medium" => {
            let text = "HSM type hsm1.medium can no longer be used for new clusters; use \
                        hsm2m.medium.";
            return Err(invalid(text));
        }
        other => return Err(invalid(format!("HSM type {other} is not known."))),
    }
    let mode = call.word("Mode", &["FIPS", "NON_FIPS"])?;
    let mode = mode.ok_or_else(|| invalid("Mode is required for this HSM type."))?;
    let network = call.word("NetworkType", &["IPV4", "DUALSTACK"])?.unwrap_or("IPV4");
    let retention = retention(call)?;
    let subnets = subnets(world, call)?;
    let tags = tags(call)?;
    let source = call.text("SourceBackupId", 1..=256)?;
    let history = source.map(|backup| history(world, backup, mode)).transpose()?;
    let most = world.switches.clusters_max;
    if world.clusters.values().filter(|cluster| !cluster.deleted()).count() >= most {
        return Err(limit("clusters", most));
    }
    let time = world.switches.cluster;
    let cluster = world.add_cluster(mode, subnets);
    cluster.network = network.to_owned();
    cluster.tags.extend(tags);
    if let Some(days) = retention {
        cluster.retention = days;
    }
    if let Some((lineage, claim, users)) = history {
        cluster.source = source.map(str::to_owned);
        (cluster.lineage, cluster.claim, cluster.users) = (lineage, claim, users);
        // What a backup holds needs no second claim.
        cluster.state.go("CREATE_IN_PROGRESS", "INITIALIZED", time);
    }
    Ok(json!({ "Cluster": cluster.show() }))
}

type History = (String, Option<(String, String)>, BTreeMap<String, super::clusters::User>);

fn history(world: &World, backup: &str, mode: &str) -> Result<History, Fault> {
    let name = backup.rsplit('/').next().unwrap_or_default();
    let mut clusters = world.clusters.values();
    let from = clusters.find(|cluster| cluster.backup().as_deref() == Some(name));
    let from = from.ok_or_else(|| missing(backup))?;
    if from.mode != mode {
        let text = format!("A backup of a {} cluster needs a cluster of that mode.", from.mode);
        return Err(invalid(text));
    }
    Ok((from.lineage.clone(), from.claim.clone(), from.users.clone()))
}

fn retention(call: &Call) -> Result<Option<String>, Fault> {
    let Some(policy) = call.body.get("BackupRetentionPolicy").filter(|value| !value.is_null())
    else {
        return Ok(None);
    };
    let value = policy["Value"].as_str().unwrap_or_default();
    let days = value.parse().ok().filter(|days| (7..=379).contains(days));
    match (policy["Type"].as_str(), days) {
        (Some("DAYS"), Some::<u32>(days)) => Ok(Some(days.to_string())),
        _ => Err(invalid("A backup retention policy has the type DAYS and a value of 7 to 379.")),
    }
}

fn subnets(world: &World, call: &Call) -> Result<BTreeMap<String, String>, Fault> {
    let ids = call.list("SubnetIds")?;
    if ids.is_empty() || ids.len() > 10 {
        return Err(invalid("A cluster has 1 to 10 subnets."));
    }
    let (mut found, mut network) = (BTreeMap::new(), None);
    for id in ids {
        let id = id.as_str().unwrap_or_default();
        let (zone, vpc) = world
            .subnets
            .get(id)
            .ok_or_else(|| invalid(format!("The subnet ID '{id}' does not exist")))?;
        if *network.get_or_insert(vpc) != vpc {
            return Err(invalid("All subnets must lie in one VPC."));
        }
        if found.insert(zone.clone(), id.to_owned()).is_some() {
            return Err(invalid(format!("There is more than one subnet in {zone}.")));
        }
    }
    Ok(found)
}

fn tags(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let bad = |text: &str| Fault::client("CloudHsmTagException", text);
    let mut tags: Vec<(String, String)> = Vec::new();
    for tag in call.list("TagList")? {
        let name = tag["Key"].as_str().unwrap_or_default();
        let value = tag["Value"].as_str().ok_or_else(|| invalid("A tag needs a value."))?;
        if name.is_empty() || name.chars().count() > 128 || value.chars().count() > 256 {
            return Err(bad("A tag key has 1 to 128 characters, a value up to 256."));
        }
        if name.starts_with("aws:") || tags.iter().any(|(have, _)| have == name) {
            return Err(bad("Tag keys are unique and do not start with aws:."));
        }
        tags.push((name.to_owned(), value.to_owned()));
    }
    match tags.len() > TAGS_MAX {
        true => Err(bad("A resource has at most 50 tags.")),
        false => Ok(tags),
    }
}

/// Part of a list, as `MaxResults` and `NextToken` ask for it.
fn page(call: &Call, name: &str, items: Vec<Value>, most: usize) -> Outcome {
    let count = call.number("MaxResults", 1..=most as i64)?.map_or(most, |count| count as usize);
    let from = match call.text("NextToken", 0..=256)? {
        None => 0,
        Some(token) => token
            .strip_prefix("from-")
            .and_then(|from| from.parse().ok())
            .filter(|from| *from <= items.len())
            .ok_or_else(|| invalid("The token is not one of ours."))?,
    };
    let more = items.len() > from + count;
    let part: Vec<Value> = items.into_iter().skip(from).take(count).collect();
    let mut answer = json!({ name: part });
    if more {
        answer["NextToken"] = json!(format!("from-{}", from + count));
    }
    Ok(answer)
}

/// Whether a filter lets a word pass; one that is not there lets all pass.
fn passes(filters: &Value, name: &str, word: &str) -> bool {
    let Some(words) = filters[name].as_array() else { return true };
    words.iter().any(|wanted| wanted == word)
}

fn filters(call: &Call, known: &[&str]) -> Result<Value, Fault> {
    let filters = call.body.get("Filters").cloned().unwrap_or(json!({}));
    let names = filters.as_object().into_iter().flat_map(|filters| filters.keys());
    match names.into_iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(invalid(format!("{name} is not a filter."))),
        None => Ok(filters),
    }
}

fn describe_clusters(world: &mut World, call: &Call) -> Outcome {
    let filters = filters(call, &["clusterIds", "vpcIds", "states"])?;
    let wanted = world.clusters.values().filter(|cluster| {
        !cluster.unseen
            && passes(&filters, "clusterIds", &cluster.id)
            && passes(&filters, "vpcIds", &cluster.vpc)
            && passes(&filters, "states", cluster.state.state)
    });
    let show = |cluster: &Cluster| {
        let seen = cluster.hsms.iter().filter(|hsm| !hsm.unseen);
        let mut shown = cluster.show();
        shown["Hsms"] = seen.map(|hsm| cluster.show_hsm(hsm)).collect();
        shown
    };
    page(call, "Clusters", wanted.map(show).collect(), 25)
}

fn describe_backups(world: &mut World, call: &Call) -> Outcome {
    let known = ["backupIds", "sourceBackupIds", "clusterIds", "states", "neverExpires"];
    let filters = filters(call, &known)?;
    let wanted = world.clusters.values().filter_map(|cluster| {
        let id = cluster.backup()?;
        let pass = passes(&filters, "backupIds", &id)
            && passes(&filters, "clusterIds", &cluster.id)
            && passes(&filters, "states", "READY");
        let arn = format!("arn:aws:cloudhsm:{}:{}:backup/{id}", world.region, world.account);
        pass.then(|| {
            json!({
                "BackupId": id, "BackupArn": arn, "BackupState": "READY",
                "ClusterId": cluster.id, "CreateTimestamp": cluster.created,
                "NeverExpires": false, "HsmType": "hsm2m.medium", "Mode": cluster.mode,
            })
        })
    });
    page(call, "Backups", wanted.collect(), 50)
}

fn delete_cluster(world: &mut World, call: &Call) -> Outcome {
    let time = world.switches.cluster;
    let cluster = cluster(world, call, "ClusterId")?;
    if !cluster.hsms.is_empty() {
        return Err(invalid(format!("Cluster {} still has HSMs.", cluster.id)));
    }
    let states = ["UNINITIALIZED", "INITIALIZED", "ACTIVE", "DEGRADED"];
    in_state(cluster, &states)?;
    cluster.state.go("DELETE_IN_PROGRESS", "DELETED", time);
    Ok(json!({ "Cluster": cluster.show() }))
}

fn initialize(world: &mut World, call: &Call) -> Outcome {
    let time = world.switches.cluster;
    let signed = call.need("SignedCert", 1..=CERTIFICATE_MAX)?;
    let anchor = call.need("TrustAnchor", 1..=CERTIFICATE_MAX)?;
    let cluster = cluster(world, call, "ClusterId")?;
    in_state(cluster, &["UNINITIALIZED"])?;
    let identity = cluster.identity.as_ref();
    let identity = identity.ok_or_else(|| invalid("The cluster has no HSM and so no CSR."))?;
    pki::check_claim(&identity.csr, signed, anchor).map_err(invalid)?;
    cluster.claim = Some((signed.to_owned(), anchor.to_owned()));
    cluster.state.go("INITIALIZE_IN_PROGRESS", "INITIALIZED", time);
    let text = "Cluster is initializing. State will change to INITIALIZED upon completion.";
    Ok(json!({ "State": cluster.state.state, "StateMessage": text }))
}

fn modify(world: &mut World, call: &Call) -> Outcome {
    let retention = retention(call)?;
    if call.text("HsmType", 1..=32)?.is_some_and(|kind| kind != "hsm2m.medium") {
        return Err(invalid("A cluster of hsm2m.medium cannot become another type."));
    }
    let cluster = cluster(world, call, "ClusterId")?;
    if let Some(days) = retention {
        cluster.retention = days;
    }
    Ok(json!({ "Cluster": cluster.show() }))
}

fn create_hsm(world: &mut World, call: &Call) -> Outcome {
    let most = world.switches.hsms_max;
    let (zone, ip) = (call.need("AvailabilityZone", 1..=32)?, call.text("IpAddress", 7..=15)?);
    let all: usize = world.clusters.values().map(|cluster| cluster.hsms.len()).sum();
    let cluster = cluster(world, call, "ClusterId")?;
    in_state(cluster, &["UNINITIALIZED", "INITIALIZED", "ACTIVE", "DEGRADED"])?;
    if !cluster.subnets.contains_key(zone) {
        return Err(invalid(format!("Cluster {} has no subnet in {zone}.", cluster.id)));
    }
    if cluster.hsms.iter().any(|hsm| Some(hsm.ip.as_str()) == ip) {
        return Err(invalid("The address is in use."));
    }
    if all >= most || cluster.hsms.len() >= HSMS_PER_CLUSTER {
        return Err(limit("HSMs", most));
    }
    let id = cluster.id.clone();
    Ok(json!({ "Hsm": world.add_hsm(&id, zone, ip) }))
}

fn delete_hsm(world: &mut World, call: &Call) -> Outcome {
    let time = world.switches.hsm;
    let names = ["HsmId", "EniId", "EniIp"];
    let given: Vec<&str> = names
        .iter()
        .filter_map(|name| call.text(name, 1..=64).transpose())
        .collect::<Result<_, _>>()?;
    let [name] = given[..] else {
        return Err(invalid("Exactly one of HsmId, EniId and EniIp names the HSM."));
    };
    let cluster = cluster(world, call, "ClusterId")?;
    let mut hsms = cluster.hsms.iter_mut();
    let hsm = hsms.find(|hsm| [&hsm.id, &hsm.eni, &hsm.ip].iter().any(|have| *have == name));
    let hsm = hsm.ok_or_else(|| missing(name))?;
    hsm.state.go("DELETE_IN_PROGRESS", "DELETED", time);
    Ok(json!({ "HsmId": hsm.id }))
}

fn tag(world: &mut World, call: &Call) -> Outcome {
    let tags = tags(call)?;
    let cluster = cluster(world, call, "ResourceId")?;
    let mut all = cluster.tags.clone();
    all.extend(tags);
    if all.len() > TAGS_MAX {
        return Err(Fault::client("CloudHsmTagException", "A resource has at most 50 tags."));
    }
    cluster.tags = all;
    Ok(json!({}))
}

fn untag(world: &mut World, call: &Call) -> Outcome {
    let names = call.list("TagKeyList")?;
    let cluster = cluster(world, call, "ResourceId")?;
    cluster.tags.retain(|name, _| !names.iter().any(|gone| gone == name));
    Ok(json!({}))
}

fn list_tags(world: &mut World, call: &Call) -> Outcome {
    let tags = show_tags(&cluster(world, call, "ResourceId")?.tags);
    page(call, "TagList", tags.as_array().cloned().unwrap_or_default(), 100)
}
