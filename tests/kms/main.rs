//! Volumes whose keys are in AWS KMS, with the real programs, real mounts and a fake AWS.

#[path = "../support/aws/fake.rs"]
mod aws;
mod bed;
mod credentials;
mod economy;
mod figures;
mod headers;
mod lists;
mod many;
mod outage;
mod recipients;
mod retire;
mod revoke;
mod rewrap;
mod rolled;
mod tools;
