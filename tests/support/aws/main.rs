//! The fake AWS as a program: `cargo run --example fake-aws`.

#[path = "fake.rs"]
mod fake;

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use clap::Parser;
use fake::{ACCESS_KEY, FakeAws, Origin, REGION, SECRET_KEY};

/// A fake of AWS KMS, CloudHSM and STS on a loopback port, with two keys and some subnets, for trying
/// things without an account.
#[derive(Parser)]
#[command(name = "fake-aws")]
struct Options {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The Region it pretends to be in.
    #[arg(long, default_value = REGION)]
    region: String,
    /// How long every call takes at least.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Units per second of each custom key store (GenerateDataKey counts 3, all else 1).
    #[arg(long)]
    quota_units: Option<f64>,
    /// How long clusters, HSMs and connections of key stores take to get anywhere.
    #[arg(long, default_value_t = 0)]
    wait_ms: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let fake = FakeAws::start_on(options.port, &options.region)?;
    let key = fake.create_key(Origin::Kms);
    let hsm = fake.create_key(Origin::CloudHsm);
    fake.set_alias("alias/kmsfs", &key);
    fake.set_latency(Duration::from_millis(options.latency_ms));
    fake.set_quota(options.quota_units);
    let wait = Duration::from_millis(options.wait_ms);
    fake.set_cluster_times(wait, wait);
    fake.set_connect_time(wait);
    let store = fake.store_of(&hsm).unwrap_or_default();
    let (endpoint, region) = (fake.endpoint(), fake.region());
    let text = format!(
        "endpoint      {endpoint}
AWS_KMS       {key} (alias/kmsfs)
AWS_CLOUDHSM  {hsm}
key store     {store}

In another terminal:

    export AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}
    export AWS_REGION={region} AWS_DEFAULT_REGION={region}
    export AWS_ENDPOINT_URL={endpoint}
    unset AWS_SESSION_TOKEN AWS_PROFILE
    aws kms generate-data-key --key-id {key} --key-spec AES_256

    curl {endpoint}/_control                                    # state and counters
    curl -d '{{\"latency_ms\": 200}}' {endpoint}/_control
    curl -d '{{\"throttle\": true}}' {endpoint}/_control            # false ends it
    curl -d '{{\"key\": {{\"id\": \"{key}\", \"state\": \"Disabled\"}}}}' {endpoint}/_control
    curl -d '{{\"store\": {{\"id\": \"{store}\", \"state\": \"DISCONNECTED\"}}}}' {endpoint}/_control
    curl -d '{{\"fault\": {{\"effect\": \"internal\", \"operation\": \"Decrypt\", \"times\": 3}}}}' {endpoint}/_control
    curl -d '{{\"clear\": true}}' {endpoint}/_control               # all faults end

CloudHSM, with subnets subnet-0a000000000000001 to 6 in {region}a to f:

    aws cloudhsmv2 create-cluster --hsm-type hsm2m.medium --mode FIPS \\
        --subnet-ids subnet-0a000000000000001 subnet-0a000000000000002
    export KMSFS_FAKE_AWS={endpoint} KMSFS_FAKE_CLI_CONFIG=cloudhsm-cli.cfg
    tests/support/aws/cloudhsm-cli.py configure-cli --cluster-id CLUSTER
    tests/support/aws/cloudhsm-cli.py cluster activate
    curl -d '{{\"create_cluster\": {{}}}}' {endpoint}/_control      # one that is ready at once

All switches: tests/support/aws/fake.rs. It runs until it is killed; nothing is kept.
"
    );
    std::io::stdout().write_all(text.as_bytes())?;
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
