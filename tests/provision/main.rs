//! `kmsfsctl provision` against a fake of AWS.

#[path = "../support/aws/fake.rs"]
mod aws;

mod activate;
mod all;
#[allow(dead_code)]
#[path = "../kms/bed.rs"]
mod bed;
mod certificate;
mod followed;
mod ground;
mod key;
mod plans;
mod stores;
mod story;
