//! What the tests of the fake share: requests, and reading its answers.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The code a call was refused with, or `OK`.
pub fn code(result: Result<Value, String>) -> String {
    result.err().unwrap_or_else(|| "OK".to_owned())
}

/// Waits until something holds; not for ever.
pub fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < end, "it never came true");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A subnet of the first VPC.
pub fn subnet(number: usize) -> String {
    format!("subnet-0a{number:015x}")
}

/// For CreateCluster.
pub fn cluster_request() -> Value {
    json!({ "HsmType": "hsm2m.medium", "Mode": "FIPS", "SubnetIds": [subnet(1), subnet(2)] })
}

/// A request with one member changed, or taken away.
pub fn with(request: &Value, name: &str, value: Value) -> Value {
    let mut request = request.clone();
    request[name] = value;
    request
}
