//! Why key stores do not connect, and what to do about it: one table.

/// What can be done from here once the cause is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// KMS is told the credential of the proxy anew.
    Credential,
    /// It may work after a while.
    Patience,
    /// Somebody has to do something elsewhere first.
    Elsewhere,
}

/// A row of the table.
#[derive(Debug)]
pub struct Advice {
    /// The connection error code of KMS.
    pub code: &'static str,
    /// What can be done from here.
    pub remedy: Remedy,
    /// What it means; goes after "because".
    pub meaning: &'static str,
    /// What to do.
    pub action: &'static str,
}

const fn row(
    code: &'static str,
    remedy: Remedy,
    meaning: &'static str,
    action: &'static str,
) -> Advice {
    Advice { code, remedy, meaning, action }
}

/// Every connection error code: those of CloudHSM, then those of external key managers.
pub const CONNECTION_ADVICE: &[Advice] = &[
    row(
        "INVALID_CREDENTIALS",
        Remedy::Elsewhere,
        "the HSMs do not accept the password that KMS has for kmsuser",
        "set a new one in the cluster (`cloudhsm-cli user change-password --username kmsuser --role \
         crypto-user`, as its administrator), log out, put the same into the password file, and run \
         this again with --new-password",
    ),
    row(
        "CLUSTER_NOT_FOUND",
        Remedy::Elsewhere,
        "its cluster is no longer there",
        "make a new cluster from the latest backup of the old one, disconnect the store (`aws kms \
         disconnect-custom-key-store --custom-key-store-id STORE-ID`), tell it (`aws kms \
         update-custom-key-store --custom-key-store-id STORE-ID --cloud-hsm-cluster-id NEW`), and run \
         this again with --mend",
    ),
    row(
        "NETWORK_ERRORS",
        Remedy::Patience,
        "KMS cannot reach the HSMs",
        "see that the cluster's own security group still lets TCP 2223-2225 pass within itself, wait \
         some minutes, and run this again with --mend",
    ),
    row(
        "INTERNAL_ERROR",
        Remedy::Patience,
        "something failed inside KMS",
        "wait some minutes and run this again with --mend; ask AWS Support if that changes nothing",
    ),
    row(
        "INSUFFICIENT_CLOUDHSM_HSMS",
        Remedy::Elsewhere,
        "its cluster has no HSM that works",
        "add HSMs (`kmsfsctl provision cluster --hsms 2`), then run this again with --mend",
    ),
    row(
        "USER_LOCKED_OUT",
        Remedy::Elsewhere,
        "kmsuser is locked out after too many wrong passwords",
        "let the cluster's administrator give kmsuser a new password (`cloudhsm-cli user \
         change-password`) and log out, put it into the password file, and run this again with \
         --new-password",
    ),
    row(
        "USER_NOT_FOUND",
        Remedy::Elsewhere,
        "its cluster has no crypto user named kmsuser",
        "make one (`kmsfsctl provision activate` does, or shows how), see that the password file holds \
         its password, and run this again with --new-password",
    ),
    row(
        "USER_LOGGED_IN",
        Remedy::Elsewhere,
        "somebody else is logged in to the cluster as kmsuser",
        "end every session of kmsuser (`logout`) and run this again with --mend; if kmsuser was given \
         another password for that session, put that into the password file and run this again with \
         --new-password instead",
    ),
    row(
        "SUBNET_NOT_FOUND",
        Remedy::Elsewhere,
        "a subnet of its cluster was deleted",
        "the cluster cannot get another: make a new cluster from its latest backup in subnets that \
         stay, disconnect the store (`aws kms disconnect-custom-key-store --custom-key-store-id \
         STORE-ID`), tell it (`aws kms update-custom-key-store --custom-key-store-id STORE-ID \
         --cloud-hsm-cluster-id NEW`), and run this again with --mend",
    ),
    row(
        "INSUFFICIENT_FREE_ADDRESSES_IN_SUBNET",
        Remedy::Elsewhere,
        "a subnet of its cluster has no free address left",
        "free one address in each subnet of the cluster (network interfaces nobody uses) and run this \
         again with --mend; or make a new cluster from a backup in larger subnets, disconnect the \
         store (`aws kms disconnect-custom-key-store --custom-key-store-id STORE-ID`), tell it (`aws \
         kms update-custom-key-store --custom-key-store-id STORE-ID --cloud-hsm-cluster-id NEW`), and \
         run this again",
    ),
    row(
        "XKS_PROXY_ACCESS_DENIED",
        Remedy::Credential,
        "the proxy of the external key manager does not accept the credential of KMS",
        "put the credential the proxy has now into the credential file and run this again with --mend",
    ),
    row(
        "XKS_PROXY_NOT_REACHABLE",
        Remedy::Elsewhere,
        "KMS cannot reach the proxy of the external key manager",
        "see that it runs and that its name, port 443 and load balancer can be reached from AWS, then \
         run this again with --mend",
    ),
    row(
        "XKS_VPC_ENDPOINT_SERVICE_NOT_FOUND",
        Remedy::Elsewhere,
        "the VPC endpoint service of the proxy is not there, or KMS may not use it",
        "see that the service exists in this Region and allows the principal cks.kms.REGION.\
         amazonaws.com, then run this again with --mend",
    ),
    row(
        "XKS_PROXY_INVALID_RESPONSE",
        Remedy::Elsewhere,
        "the proxy answers what KMS does not understand",
        "have its operator test it with the XKS proxy test client, then run this again with --mend",
    ),
    row(
        "XKS_PROXY_INVALID_CONFIGURATION",
        Remedy::Elsewhere,
        "the external key manager behind the proxy is not set up for this store",
        "have the operator of the proxy look at its log, then run this again with --mend",
    ),
    row(
        "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION",
        Remedy::Elsewhere,
        "the VPC endpoint service of the proxy does not fulfil what KMS asks for",
        "see that it has a network load balancer in two Availability Zones, a verified private DNS \
         name and no acceptance of connections by hand, then run this again with --mend",
    ),
    row(
        "XKS_PROXY_TIMED_OUT",
        Remedy::Patience,
        "the proxy of the external key manager answers too slowly for KMS (250 ms)",
        "see to its load and to the distance to its key manager, then run this again with --mend",
    ),
    row(
        "XKS_PROXY_INVALID_TLS_CONFIGURATION",
        Remedy::Elsewhere,
        "KMS cannot agree with the proxy on TLS",
        "give it TLS 1.2 or 1.3 and a certificate of a public authority for the name of its endpoint, \
         then run this again with --mend",
    ),
];

/// What to do about a connection error code.
pub fn connection_advice(code: &str) -> Option<&'static Advice> {
    CONNECTION_ADVICE.iter().find(|advice| advice.code == code)
}

/// The whole sentence for people, about a key store of this name and id.
pub fn sentence(store: &str, id: &str, code: &str) -> String {
    match connection_advice(code) {
        Some(advice) => format!(
            "key store {store} does not connect because {} ({code}): {}",
            advice.meaning,
            advice.action.replace("STORE-ID", id)
        ),
        None => format!(
            "key store {store} does not connect ({code}): see what the KMS documentation says of it, mend it, and \
             run this again with --mend"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aws_sdk_kms::types::ConnectionErrorCodeType;

    use super::*;

    #[test]
    fn every_code_that_kms_knows_has_a_row_of_its_own() {
        let known: BTreeSet<&str> = ConnectionErrorCodeType::values().iter().copied().collect();
        let rows: BTreeSet<&str> = CONNECTION_ADVICE.iter().map(|row| row.code).collect();
        assert_eq!(rows, known);
        assert_eq!((rows.len(), CONNECTION_ADVICE.len()), (18, 18));
        let actions: BTreeSet<&str> = CONNECTION_ADVICE.iter().map(|row| row.action).collect();
        assert_eq!(actions.len(), 18);
    }

    #[test]
    fn the_sentence_names_store_and_code() {
        for code in ConnectionErrorCodeType::values().iter().chain(&["SOMETHING_NEW"]) {
            let said = sentence("vault", "cks-1", code);
            assert!(!said.contains("STORE-ID"), "{said}");
            assert!(said.contains("vault") && said.contains(code), "{said}");
            assert!(said.contains("--mend") || said.contains("--new-password"), "{said}");
        }
        assert_eq!(connection_advice("SOMETHING_NEW").map(|row| row.code), None);
    }
}
