//! Which account, and how it is reached, as `provision` commands say it.

use std::time::Duration;

use clap::Args;

use crate::cli::exit::{FAILURE, failure};
use crate::cli::kms::{KmsOptions, duration};
use crate::keys::aws::Endpoint;
use crate::provision::account::{Account, Pace, Places};

/// The options of every `provision` command.
#[derive(Args)]
pub struct AccountOptions {
    /// The Region; without it AWS_REGION or AWS_DEFAULT_REGION
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Name of the deployment: what belongs together is tagged and named with it
    #[arg(long, value_name = "NAME", default_value = "kmsfs")]
    pub name: String,
    /// Call CloudHSM at this endpoint instead of AWS's own
    #[arg(long, value_name = "URL", value_parser = one_endpoint)]
    pub cloudhsm_endpoint: Option<String>,
    /// Call the security token service at this endpoint instead of AWS's own
    #[arg(long, value_name = "URL", value_parser = one_endpoint)]
    pub sts_endpoint: Option<String>,
    /// Time between two looks at what takes minutes
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    pub poll: Duration,
    /// Longest wait for a cluster, an HSM or a connection
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "45m")]
    pub patience: Duration,
    /// Longest wait until all of AWS knows of a change, or until it is certain that a call without an
    /// answer did nothing
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2m")]
    pub settling: Duration,
    #[command(flatten)]
    pub kms: KmsOptions,
}

impl AccountOptions {
    /// The account; nothing is asked yet.
    pub fn account(&self) -> anyhow::Result<Account> {
        let environment = || {
            let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
            set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION"))
        };
        let region = self.region.clone().or_else(environment).ok_or_else(|| {
            failure(FAILURE, "no Region is named: use --region, or set AWS_REGION".to_owned())
        })?;
        let parsed = |place: &Option<String>| place.as_ref().and_then(|place| place.parse().ok());
        let places = Places {
            kms: self.kms.settings().route,
            cloudhsm: parsed(&self.cloudhsm_endpoint),
            sts: parsed(&self.sts_endpoint),
        };
        let (poll, patience, settling) = (self.poll, self.patience, self.settling);
        Ok(Account::new(&region, places, Pace { poll, patience, settling }))
    }
}

/// An endpoint of the only Region there is here.
fn one_endpoint(text: &str) -> Result<String, String> {
    match text.parse::<Endpoint>()?.region() {
        Some(_) => Err("the Region is that of --region: leave out REGION=".to_owned()),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::one_endpoint;

    #[test]
    fn an_endpoint_of_one_service_names_no_region() {
        assert!(one_endpoint("https://localhost:4566").is_ok());
        assert!(one_endpoint("https://localhost/?a=b").is_ok());
        assert!(one_endpoint("us-east-1=https://localhost").unwrap_err().contains("--region"));
        assert!(one_endpoint("nonsense").is_err());
    }
}
