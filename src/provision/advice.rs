//! What to do about an error, by operation and code: one table.

mod keys;

use crate::keys::aws::classify::Class;

/// Operation (empty: any), code, what to do.
type Row = (&'static str, &'static str, &'static str);

/// Codes that mean the same whatever was asked, or something else for one operation; the first row
/// that fits counts.
const ADVICE: &[Row] = &[
    (
        "",
        "AccessDeniedException",
        "this caller lacks the permission named in the message: have it added to the role's IAM policy or to the key's policy",
    ),
    ("", "UnsupportedOperationException", "KMS does not do this for a key of this kind"),
    // Key stores: no key policy has a say.
    (
        "CreateCustomKeyStore",
        "AccessDeniedException",
        "the caller needs in IAM kms:CreateCustomKeyStore, cloudhsm:DescribeClusters and, for the first key store of the account, iam:CreateServiceLinkedRole; no key policy can give them",
    ),
    (
        "ConnectCustomKeyStore",
        "AccessDeniedException",
        "the caller needs kms:ConnectCustomKeyStore in IAM; no key policy can give it",
    ),
    (
        "DisconnectCustomKeyStore",
        "AccessDeniedException",
        "the caller needs kms:DisconnectCustomKeyStore in IAM; no key policy can give it",
    ),
    (
        "UpdateCustomKeyStore",
        "AccessDeniedException",
        "the caller needs kms:UpdateCustomKeyStore in IAM; no key policy can give it",
    ),
    (
        "DescribeCustomKeyStores",
        "AccessDeniedException",
        "the caller needs kms:DescribeCustomKeyStores in IAM, on all resources; no key policy can give it",
    ),
    // Clusters and key stores.
    (
        "CreateCluster",
        "CloudHsmAccessDeniedException",
        "this caller may not make clusters: it needs cloudhsm:CreateCluster and cloudhsm:TagResource, the ec2 actions for network interfaces and security groups, and iam:CreateServiceLinkedRole for the first cluster of the account",
    ),
    (
        "CreateCluster",
        "CloudHsmInternalFailureException",
        "CloudHSM failed inside; run the same command again: a cluster that was made nevertheless is found by its tag",
    ),
    (
        "CreateCluster",
        "CloudHsmInvalidRequestException",
        "check that each subnet exists in this Region, that all lie in one VPC and each in another Availability Zone, and that CloudHSM is offered in these zones",
    ),
    (
        "CreateCluster",
        "CloudHsmResourceNotFoundException",
        "a subnet or backup that was named is not in this account and Region: check the ids and --region",
    ),
    (
        "CreateCluster",
        "CloudHsmServiceException",
        "CloudHSM could not make the cluster: see that the account may use CloudHSM in this Region, and run the same command again",
    ),
    (
        "CreateCluster",
        "CloudHsmTagException",
        "correct --tag: keys are unique, have up to 128 characters (values up to 256) and do not start with aws:",
    ),
    (
        "CreateCluster",
        "CloudHsmResourceLimitExceededException",
        "the account has all the clusters it may have in this Region: name one with --cluster, delete one, or have the quota raised (Service Quotas, CloudHSM)",
    ),
    (
        "CreateHsm",
        "CloudHsmAccessDeniedException",
        "this caller may not make HSMs: it needs cloudhsm:CreateHsm and the ec2 actions for network interfaces",
    ),
    (
        "CreateHsm",
        "CloudHsmInternalFailureException",
        "CloudHSM failed inside; run the same command again: an HSM that was made nevertheless is found in its zone",
    ),
    (
        "CreateHsm",
        "CloudHsmInvalidRequestException",
        "check the cluster's state and that its subnet in this zone has a free address",
    ),
    (
        "CreateHsm",
        "CloudHsmResourceNotFoundException",
        "the cluster is gone, or in another account or Region: check --cluster, --name and --region",
    ),
    (
        "CreateHsm",
        "CloudHsmServiceException",
        "CloudHSM has no HSM to give in this zone now: wait some minutes and run the same command again",
    ),
    (
        "CreateHsm",
        "CloudHsmResourceLimitExceededException",
        "the account has all the HSMs it may have in this Region: delete one that nobody needs, or have the quota raised (Service Quotas, CloudHSM)",
    ),
    (
        "InitializeCluster",
        "CloudHsmAccessDeniedException",
        "this caller may not claim clusters: it needs cloudhsm:InitializeCluster",
    ),
    (
        "InitializeCluster",
        "CloudHsmInternalFailureException",
        "CloudHSM failed inside; look at the cluster's state (`kmsfsctl provision plan`) and run the same command again if it is still UNINITIALIZED",
    ),
    (
        "InitializeCluster",
        "CloudHsmInvalidRequestException",
        "the cluster must be UNINITIALIZED with an HSM, and the certificate must be made from its present request and signed by the trust anchor itself, without an intermediate",
    ),
    (
        "InitializeCluster",
        "CloudHsmResourceNotFoundException",
        "the cluster is gone, or in another account or Region: check --cluster, --name and --region",
    ),
    (
        "InitializeCluster",
        "CloudHsmServiceException",
        "CloudHSM could not claim the cluster now: wait a minute and run the same command again",
    ),
    (
        "DescribeClusters",
        "CloudHsmAccessDeniedException",
        "this caller may not look at clusters: it needs cloudhsm:DescribeClusters",
    ),
    (
        "DescribeClusters",
        "CloudHsmInternalFailureException",
        "CloudHSM failed inside: wait a minute and run the same command again",
    ),
    (
        "DescribeClusters",
        "CloudHsmInvalidRequestException",
        "the cluster's id is not one: it looks like cluster-abcdefghijk (--cluster)",
    ),
    (
        "DescribeClusters",
        "CloudHsmServiceException",
        "CloudHSM could not answer: see that the account may use CloudHSM in this Region, and run the same command again",
    ),
    (
        "DescribeClusters",
        "CloudHsmTagException",
        "CloudHSM could not read the tags of the account's clusters: name the cluster with --cluster instead",
    ),
    (
        "CreateCustomKeyStore",
        "CloudHsmClusterInUseException",
        "a cluster, and all that share its backups, serves one key store: use the one there is (--store), or another cluster",
    ),
    (
        "CreateCustomKeyStore",
        "CustomKeyStoreNameInUseException",
        "another key store has this name: use it with --store, or take another --name",
    ),
    (
        "CreateCustomKeyStore",
        "CloudHsmClusterNotFoundException",
        "the cluster is not in this account and Region: check --cluster and --region",
    ),
    (
        "CreateCustomKeyStore",
        "KMSInternalException",
        "KMS failed inside; run the same command again: a store that was made nevertheless is found by its name",
    ),
    (
        "CreateCustomKeyStore",
        "CloudHsmClusterNotActiveException",
        "the cluster has to be initialized and activated first: `kmsfsctl provision plan` shows what is missing",
    ),
    (
        "CreateCustomKeyStore",
        "IncorrectTrustAnchorException",
        "give the certificate that the cluster was initialized with (--trust-anchor): the same file, not the cluster's own certificate",
    ),
    (
        "CreateCustomKeyStore",
        "CloudHsmClusterInvalidConfigurationException",
        "see that HSMs work in two Availability Zones (`kmsfsctl provision cluster --hsms 2`), that the cluster's own security group still lets TCP 2223-2225 pass within itself, and that mutual TLS is off",
    ),
    (
        "CreateCustomKeyStore",
        "LimitExceededException",
        "the account has all the key stores it may have in this Region: use one (--store), delete one without keys, or have the quota raised (Service Quotas, KMS)",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyUriInUseException",
        "another key store uses this proxy with this path: give each store its own --xks-path",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyUriEndpointInUseException",
        "another key store reaches this endpoint another way: use the same connectivity, or another --xks-endpoint",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyUriUnreachableException",
        "KMS cannot reach the proxy: check --xks-endpoint and --xks-path, its name, port 443 and certificate",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyIncorrectAuthenticationCredentialException",
        "the proxy does not accept the credential: compare the file of --xks-credential-file with the one at the proxy",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyVpcEndpointServiceInUseException",
        "another key store uses this endpoint service with another endpoint: give it its own --xks-vpc-service",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyVpcEndpointServiceNotFoundException",
        "check --xks-vpc-service, and that the service allows the principal cks.kms.REGION.amazonaws.com",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyVpcEndpointServiceInvalidConfigurationException",
        "the endpoint service needs a network load balancer in two Availability Zones, a verified private DNS name that is the endpoint's, and no acceptance by hand",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyInvalidResponseException",
        "the proxy answers what KMS does not understand: have its operator test it with the XKS proxy test client",
    ),
    (
        "CreateCustomKeyStore",
        "XksProxyInvalidConfigurationException",
        "the proxy refuses to work for this store: have its operator look at its log and set it up",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyUriInUseException",
        "another key store uses this proxy with this path: give each store its own --xks-path",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyUriEndpointInUseException",
        "another key store reaches this endpoint another way: use the same connectivity, or another --xks-endpoint",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyUriUnreachableException",
        "KMS cannot reach the proxy: check --xks-endpoint and --xks-path, its name, port 443 and certificate",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyIncorrectAuthenticationCredentialException",
        "the proxy does not accept the credential: compare the file of --xks-credential-file with the one at the proxy",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyVpcEndpointServiceInUseException",
        "another key store uses this endpoint service with another endpoint: give it its own --xks-vpc-service",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyVpcEndpointServiceNotFoundException",
        "check --xks-vpc-service, and that the service allows the principal cks.kms.REGION.amazonaws.com",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyVpcEndpointServiceInvalidConfigurationException",
        "the endpoint service needs a network load balancer in two Availability Zones, a verified private DNS name that is the endpoint's, and no acceptance by hand",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyInvalidResponseException",
        "the proxy answers what KMS does not understand: have its operator test it with the XKS proxy test client",
    ),
    (
        "UpdateCustomKeyStore",
        "XksProxyInvalidConfigurationException",
        "the proxy refuses to work for this store: have its operator look at its log and set it up",
    ),
    (
        "ConnectCustomKeyStore",
        "CloudHsmClusterNotActiveException",
        "wait until the cluster is ACTIVE again (`kmsfsctl provision plan` shows its state), then run the same command again",
    ),
    (
        "ConnectCustomKeyStore",
        "CustomKeyStoreInvalidStateException",
        "a store that has FAILED is disconnected first, which --mend does; one that is DISCONNECTING takes some minutes",
    ),
    (
        "ConnectCustomKeyStore",
        "CustomKeyStoreNotFoundException",
        "the key store is gone, or in another Region: check --store and --region",
    ),
    (
        "ConnectCustomKeyStore",
        "KMSInternalException",
        "KMS failed inside: wait a minute and run the same command again",
    ),
    (
        "ConnectCustomKeyStore",
        "CloudHsmClusterInvalidConfigurationException",
        "see that at least one HSM works (`kmsfsctl provision cluster --hsms 2`), that the cluster's own security group still lets TCP 2223-2225 pass within itself, and that mutual TLS is off",
    ),
    (
        "DisconnectCustomKeyStore",
        "CustomKeyStoreInvalidStateException",
        "the store is disconnected or on its way there: look at it with `kmsfsctl provision plan`",
    ),
    (
        "DisconnectCustomKeyStore",
        "CustomKeyStoreNotFoundException",
        "the key store is gone, or in another Region: check --store and --region",
    ),
    (
        "DisconnectCustomKeyStore",
        "KMSInternalException",
        "KMS failed inside; the store may still be connected: run the same command again",
    ),
    (
        "UpdateCustomKeyStore",
        "CustomKeyStoreNotFoundException",
        "the key store is gone, or in another Region: check --store and --region",
    ),
    (
        "UpdateCustomKeyStore",
        "CustomKeyStoreNameInUseException",
        "another key store has the new name: choose another",
    ),
    (
        "UpdateCustomKeyStore",
        "CloudHsmClusterNotFoundException",
        "the cluster the store shall move to is not in this account and Region: check its id",
    ),
    (
        "UpdateCustomKeyStore",
        "CloudHsmClusterNotRelatedException",
        "a store moves only to a cluster made from a backup of its present one, because its keys lie there: make such a cluster",
    ),
    (
        "UpdateCustomKeyStore",
        "CustomKeyStoreInvalidStateException",
        "a store takes a new password, credential or cluster only while it is DISCONNECTED: wait until it is and run the same command again",
    ),
    (
        "UpdateCustomKeyStore",
        "KMSInternalException",
        "KMS failed inside: run the same command again, nothing is lost by saying it twice",
    ),
    (
        "UpdateCustomKeyStore",
        "CloudHsmClusterNotActiveException",
        "the cluster has to be ACTIVE before a store can be changed: `kmsfsctl provision plan` shows what is missing",
    ),
    (
        "UpdateCustomKeyStore",
        "CloudHsmClusterInvalidConfigurationException",
        "HSMs have to work in two Availability Zones before a store can be changed: `kmsfsctl provision cluster --hsms 2`",
    ),
    (
        "DescribeCustomKeyStores",
        "CustomKeyStoreNotFoundException",
        "there is no such key store in this Region: check --store and --region",
    ),
    (
        "DescribeCustomKeyStores",
        "KMSInternalException",
        "KMS failed inside: wait a minute and run the same command again",
    ),
];

/// What to do.
pub fn about(operation: &str, code: &str, class: Class) -> &'static str {
    row(operation, code).map_or_else(|| of_class(class), |(_, _, advice)| advice)
}

fn row(operation: &str, code: &str) -> Option<&'static Row> {
    let of = |operation: &str| {
        keys::ADVICE.iter().chain(ADVICE).find(|row| (row.0, row.1) == (operation, code))
    };
    of(operation).or_else(|| of(""))
}

fn of_class(class: Class) -> &'static str {
    match class {
        Class::Revoked => "enable the key, or connect its key store, and try again",
        Class::Denied => "check the name and Region, and this caller's permissions",
        Class::Throttled => "wait a minute and run the same command again",
        Class::Transient | Class::Unreachable => {
            "check the network and the endpoint, and run the same command again: it goes on where it \
             stopped"
        }
        Class::Credentials => "renew the AWS credentials (environment, profile, role or SSO login)",
        Class::Tampered => "nothing was changed",
        Class::Misconfigured => "correct what the message names and run the same command again",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::keys::aws::Fault;
    use crate::provision::account::refused;

    /// Operations of CloudHSM and the errors they are documented with, without `CloudHsm` and
    /// `Exception`.
    const CLOUDHSM: &[(&str, &str)] = &[
        (
            "CreateCluster",
            "AccessDenied InternalFailure InvalidRequest ResourceNotFound Service Tag ResourceLimitExceeded",
        ),
        (
            "CreateHsm",
            "AccessDenied InternalFailure InvalidRequest ResourceNotFound Service ResourceLimitExceeded",
        ),
        (
            "InitializeCluster",
            "AccessDenied InternalFailure InvalidRequest ResourceNotFound Service",
        ),
        ("DescribeClusters", "AccessDenied InternalFailure InvalidRequest Service Tag"),
    ];
    /// Operations on key stores, likewise, without `Exception`.
    const STORES: &[(&str, &str)] = &[
        (
            "CreateCustomKeyStore",
            "CloudHsmClusterInUse CustomKeyStoreNameInUse CloudHsmClusterNotFound KMSInternal \
             CloudHsmClusterNotActive IncorrectTrustAnchor CloudHsmClusterInvalidConfiguration \
             LimitExceeded",
        ),
        (
            "ConnectCustomKeyStore",
            "CloudHsmClusterNotActive CustomKeyStoreInvalidState CustomKeyStoreNotFound KMSInternal \
             CloudHsmClusterInvalidConfiguration",
        ),
        (
            "DisconnectCustomKeyStore",
            "CustomKeyStoreInvalidState CustomKeyStoreNotFound KMSInternal",
        ),
        (
            "UpdateCustomKeyStore",
            "CustomKeyStoreNotFound CustomKeyStoreNameInUse CloudHsmClusterNotFound \
             CloudHsmClusterNotRelated CustomKeyStoreInvalidState KMSInternal \
             CloudHsmClusterNotActive CloudHsmClusterInvalidConfiguration",
        ),
        ("DescribeCustomKeyStores", "CustomKeyStoreNotFound KMSInternal"),
    ];
    /// Of both operations that name an external key manager, without `XksProxy` and `Exception`.
    const EXTERNAL: &str = "UriInUse UriEndpointInUse UriUnreachable IncorrectAuthenticationCredential \
                            VpcEndpointServiceInUse VpcEndpointServiceNotFound \
                            VpcEndpointServiceInvalidConfiguration InvalidResponse \
                            InvalidConfiguration";

    fn documented() -> Vec<(&'static str, String)> {
        let codes = |prefix: &'static str, rows: &[(&'static str, &'static str)]| -> Vec<_> {
            let code = |name: &str| format!("{prefix}{name}Exception");
            rows.iter().flat_map(|(o, c)| c.split(' ').map(move |c| (*o, code(c)))).collect()
        };
        let external = [("CreateCustomKeyStore", EXTERNAL), ("UpdateCustomKeyStore", EXTERNAL)];
        [codes("CloudHsm", CLOUDHSM), codes("", STORES), codes("XksProxy", &external)].concat()
    }

    #[test]
    fn every_documented_error_has_a_row_of_its_own() {
        let row = |operation: &str, code: &str| {
            ADVICE.iter().any(|row| (row.0, row.1) == (operation, code) && !row.2.is_empty())
        };
        let lacking: Vec<_> = documented().into_iter().filter(|(o, c)| !row(o, c)).collect();
        assert!(lacking.is_empty(), "no advice about {lacking:?}");
        assert!(documented().len() > 60);
    }

    #[test]
    fn people_are_told_what_to_what_and_what_to_do() {
        for (operation, code) in documented() {
            let (class, text) = (Class::Misconfigured, format!("{code}: said by AWS"));
            let refused = refused(operation, "thing", Fault { class, text, code: code.clone() });
            let start = format!("thing: {operation} failed: {code}: said by AWS; ");
            let advice = refused.sentence.strip_prefix(&start);
            assert_eq!(advice, Some(about(operation, &code, class)), "{refused}");
            assert_ne!(advice, Some(of_class(class)), "{refused}");
        }
    }

    #[test]
    fn no_row_hides_another() {
        let pairs: BTreeSet<_> = ADVICE.iter().map(|row| (row.0, row.1)).collect();
        assert_eq!(pairs.len(), ADVICE.len());
        for (operation, code, advice) in ADVICE {
            let found = about(operation, code, Class::Misconfigured);
            assert_eq!(found, *advice, "{operation} {code}");
        }
    }
}
