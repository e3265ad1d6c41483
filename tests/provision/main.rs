//! `kmsfsctl provision` against a fake of AWS.

#[path = "../support/aws/fake.rs"]
mod aws;

mod activate;
mod adopt;
mod all;
#[allow(dead_code)]
#[path = "../kms/bed.rs"]
mod bed;
mod certificate;
mod existing;
mod followed;
mod ground;
mod key;
mod marks;
mod plans;
mod rotation;
mod sentences;
mod stores;
mod story;
