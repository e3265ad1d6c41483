//! What `kmsfsctl provision` makes, in a fake AWS.

#[path = "../support/aws/fake.rs"]
mod aws;
mod key;
