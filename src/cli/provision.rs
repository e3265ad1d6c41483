//! `kmsfsctl provision`: what a volume's keys need in AWS.

pub mod account;
