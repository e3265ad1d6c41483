//! `kmsfsctl provision` against a fake AWS.

#[path = "../support/aws/fake.rs"]
mod aws;
mod stores;
