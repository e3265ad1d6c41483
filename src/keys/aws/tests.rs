//! Single answers of KMS that no KMS should give, and those that only come now and then.

use super::*;
use crate::format::{DataKeyId, VolumeId};
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::error::ErrorMetadata;
use aws_sdk_kms::operation::decrypt::{DecryptError, DecryptOutput};
use aws_sdk_kms::operation::generate_data_key::GenerateDataKeyOutput;
use aws_sdk_kms::operation::re_encrypt::ReEncryptOutput;
use aws_smithy_mocks::{RuleMode, mock, mock_client};

const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/ours";
const OTHER: &str = "arn:aws:kms:us-east-1:111122223333:key/other";
const CONTEXT: WrapContext =
    WrapContext { volume: VolumeId([1; 16]), purpose: Purpose::Data(DataKeyId([2; 16])) };

fn provider(arn: &str, client: Client) -> AwsKms {
    let settings = Settings { deadline: Duration::from_secs(2), ..Settings::default() };
    let mut regions = Regions::new(settings);
    let kms = regions.provider(KeyArn::parse(arn).unwrap(), 1);
    AwsKms { connection: Arc::new(Connection::to(client).unwrap()), ..kms }
}

fn copy() -> Recipient {
    Recipient { wrapped: vec![9; 184], ..name(&KeyArn::parse(ARN).unwrap(), 1) }
}

fn decrypted(key_id: Option<&str>, len: usize) -> Result<Secret<32>, KeyError> {
    let output = DecryptOutput::builder()
        .set_key_id(key_id.map(str::to_owned))
        .plaintext(Blob::new(vec![7; len]))
        .build();
    let rule = mock!(Client::decrypt).then_output(move || output.clone());
    let client = mock_client!(aws_sdk_kms, RuleMode::MatchAny, [&rule]);
    provider(ARN, client).unwrap(&CONTEXT, &copy())
}

#[test]
fn an_answer_must_be_about_the_key_that_was_asked() {
    assert_eq!(decrypted(Some(ARN), 32).expect("the right one").expose(), &[7; 32]);
    for stranger in [Some(OTHER), None, Some("ours")] {
        let error = decrypted(stranger, 32).err().expect("refused");
        assert!(matches!(error, KeyError::Tampered(_)), "{error}");
    }
}

#[test]
fn a_key_has_thirty_two_bytes() {
    for len in [0, 16, 31, 33, 4096] {
        assert!(matches!(decrypted(Some(ARN), len), Err(KeyError::Tampered(_))), "{len}");
    }
}

fn generated(arn: &str, told: &str, blob: usize) -> Result<(Secret<32>, Recipient), KeyError> {
    let output = GenerateDataKeyOutput::builder()
        .key_id(told)
        .plaintext(Blob::new([5; 32]))
        .ciphertext_blob(Blob::new(vec![3; blob]))
        .build();
    let rule = mock!(Client::generate_data_key)
        .match_requests(|request| {
            let pairs = request.encryption_context().expect("a context");
            pairs.len() == 3 && pairs["kmsfs:purpose"] == "data"
        })
        .then_output(move || output.clone());
    provider(arn, mock_client!(aws_sdk_kms, RuleMode::MatchAny, [&rule])).generate(&CONTEXT)
}

#[test]
fn what_is_stored_is_the_key_kms_names() {
    let alias = "arn:aws:kms:us-east-1:111122223333:alias/files";
    let (key, record) = generated(alias, ARN, 184).expect("an alias stands for a key");
    assert_eq!(
        (key.expose(), &record.key_ref[..], record.wrapped.len()),
        (&[5; 32], ARN.as_bytes(), 184)
    );
    let abroad = "arn:aws:kms:eu-west-1:111122223333:key/ours";
    for (asked, told) in [(ARN, OTHER), (alias, alias), (alias, abroad), (ARN, "ours"), (ARN, "")] {
        assert!(generated(asked, told, 184).is_err(), "{asked} {told}");
    }
}

#[test]
fn a_wrapped_key_must_fit_a_header() {
    assert!(generated(ARN, ARN, 6144).is_ok());
    for len in [0, 6145] {
        let error = generated(ARN, ARN, len).err().expect("refused");
        assert!(matches!(error, KeyError::Misconfigured(_)), "{error}");
    }
}

/// The two traps: a limit is no throttle, and a cluster out of reach is no revocation.
#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    for (code, message, calls) in [
        ("LimitExceededException", "", 1),
        ("DisabledException", "", 1),
        ("KMSInvalidStateException", "is pending deletion", 1),
        ("KMSInvalidStateException", "KMS cannot communicate with your CloudHSM cluster", 3),
        ("ThrottlingException", "", 3),
    ] {
        let output = DecryptOutput::builder().key_id(ARN).plaintext(Blob::new([7; 32])).build();
        let failed = move || {
            DecryptError::generic(ErrorMetadata::builder().code(code).message(message).build())
        };
        let rule = mock!(Client::decrypt)
            .sequence()
            .error(failed)
            .times(2)
            .output(move || output.clone())
            .build();
        let client = mock_client!(aws_sdk_kms, RuleMode::Sequential, [&rule], |config| config
            .retry_config(RetryConfig::disabled()));
        let outcome = provider(ARN, client).unwrap(&CONTEXT, &copy());
        assert_eq!((rule.num_calls(), outcome.is_ok()), (calls, calls == 3), "{code} {message}");
    }
}

#[test]
fn contexts_are_what_policies_can_ask_for() {
    let pairs = encryption_context(&CONTEXT);
    let expected = [("kmsfs:volume", "01"), ("kmsfs:purpose", "data"), ("kmsfs:data-key", "02")];
    for (name, start) in expected {
        assert!(pairs[name].starts_with(start), "{name}");
    }
    let volume = encryption_context(&WrapContext { purpose: Purpose::Volume, ..CONTEXT });
    assert_eq!((volume.len(), &volume["kmsfs:purpose"][..]), (2, "volume"));
}

fn reencrypted(copy: &Recipient, from: &str, told: &str) -> Option<Result<Recipient, KeyError>> {
    let output = ReEncryptOutput::builder()
        .source_key_id(from)
        .key_id(told)
        .ciphertext_blob(Blob::new(vec![4; 184]))
        .build();
    let rule = mock!(Client::re_encrypt)
        .match_requests(|request| {
            let (from, to) =
                (request.source_encryption_context(), request.destination_encryption_context());
            from == to && from.is_some_and(|pairs| pairs.len() == 3)
        })
        .then_output(move || output.clone());
    let client = mock_client!(aws_sdk_kms, RuleMode::MatchAny, [&rule]);
    provider(OTHER, client).reencrypt(&CONTEXT, copy)
}

#[test]
fn one_key_takes_over_what_another_has_wrapped_and_nothing_else() {
    let new = reencrypted(&copy(), ARN, OTHER).expect("of a kind").expect("the right keys");
    assert_eq!((&new.key_ref[..], &new.wrapped[..]), (OTHER.as_bytes(), &[4; 184][..]));
    for (from, told) in [(OTHER, OTHER), (ARN, ARN), ("", OTHER), (ARN, "")] {
        let refused = reencrypted(&copy(), from, told).expect("of a kind");
        assert!(refused.is_err(), "{from} {told}");
    }
    // Another Region is not asked, and what no KMS wrapped cannot be taken over by one.
    let abroad = Recipient { key_ref: ARN.replace("us-east-1", "eu-west-1").into(), ..copy() };
    let local = Recipient { kind: RecipientKind::LocalMaster, key_ref: vec![], ..copy() };
    assert!(reencrypted(&abroad, ARN, OTHER).is_none());
    assert!(reencrypted(&local, ARN, OTHER).is_none());
}
