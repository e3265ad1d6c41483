//! Somebody answers who is not KMS.

use super::*;
use crate::keys::aws::name;
use aws_sdk_kms::Client;
use aws_sdk_kms::operation::decrypt::DecryptOutput;
use aws_sdk_kms::operation::generate_data_key::GenerateDataKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_smithy_mocks::{RuleMode, mock, mock_client};

const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/ours";

/// The round trip where every Decrypt, whatever its context, gives a key of these bytes.
fn round_trip(decrypted: u8) -> Vec<(Level, String)> {
    let (arn, volume) = (KeyArn::parse(ARN).unwrap(), VolumeId([1; 16]));
    let made = mock!(Client::generate_data_key).then_output(|| {
        let output = GenerateDataKeyOutput::builder().key_id(ARN).plaintext(Blob::new([5; 32]));
        output.ciphertext_blob(Blob::new([3; 184])).build()
    });
    let opened = mock!(Client::decrypt).then_output(move || {
        DecryptOutput::builder().key_id(ARN).plaintext(Blob::new([decrypted; 32])).build()
    });
    let client = mock_client!(aws_sdk_kms, RuleMode::MatchAny, [&made, &opened]);
    let connection = Connection::to(client).unwrap();
    let (recipient, settings) = (name(&arn, 1), Settings::default());
    let subject = Subject { volume, recipient: &recipient, copy: None, makes: true };
    let asking = Asking::new(&arn, &connection, Duration::from_secs(5));
    let report = Report { key: ARN.into(), findings: vec![] };
    let mut patient = Patient { subject: &subject, arn: &arn, settings: &settings, asking, report };
    patient.round_trip();
    let findings = patient.report.findings.into_iter();
    findings.map(|finding| (finding.level, finding.about)).collect()
}

#[test]
fn a_key_that_opens_anywhere_is_an_error() {
    let found = round_trip(5);
    assert_eq!(found[0], (Level::Ok, "round trip".into()));
    assert_eq!(found[1], (Level::Error, "encryption context".into()));
}

#[test]
fn a_key_that_comes_back_changed_is_an_error() {
    assert_eq!(round_trip(6)[0], (Level::Error, "round trip".into()));
}

#[test]
fn an_alias_in_a_descriptor_is_not_called() {
    let alias = KeyArn::parse("arn:aws:kms:us-east-1:111122223333:alias/x").unwrap();
    let recipient = name(&alias, 1);
    let volume = VolumeId([1; 16]);
    let subject = Subject { volume, recipient: &recipient, copy: None, makes: true };
    let (findings, key) = examine(&subject, &Settings::default());
    assert!(key.is_none() && findings.len() == 1 && findings[0].level == Level::Error);
}
