//! Names of KMS keys: key ARNs and alias ARNs.

use crate::keys::KeyError;
use crate::keys::rotation::id_in;

/// `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` or `…:alias/NAME`. The Region is taken from here, never
/// guessed from the surroundings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyArn {
    text: String,
    region: String,
    account: String,
    alias: bool,
}

impl KeyArn {
    /// Checks the form only; whether the key exists is KMS's to say.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let bad = |why: &str| {
            Err(KeyError::Misconfigured(format!(
                "{text:?} is not the ARN of a KMS key: {why}; write \
                 arn:aws:kms:REGION:ACCOUNT:key/KEY-ID or …:alias/NAME"
            )))
        };
        if text.len() > 2048 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("it holds characters an ARN cannot have");
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let [arn, partition, service, region, account, resource] = parts[..] else {
            return bad("it has too few parts");
        };
        if arn != "arn" || !partition.starts_with("aws") || service != "kms" {
            return bad("it does not begin with arn:aws:kms:");
        }
        let word =
            |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if region.is_empty() || !word(region) {
            return bad("the Region is missing");
        }
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return bad("the account is not twelve digits");
        }
        let alias = match resource.split_once('/') {
            Some(("key", id)) if !id.is_empty() && !id.contains('/') => false,
            Some(("alias", name)) if !name.is_empty() => true,
            _ => return bad("it names neither key/ID nor alias/NAME"),
        };
        let (region, account) = (region.to_owned(), account.to_owned());
        Ok(Self { text: text.to_owned(), region, account, alias })
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The Region whose endpoint answers for the key.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The account that owns the key.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// What stands behind the last slash: of a key its id, which its successor does not share.
    pub fn id(&self) -> &str {
        id_in(&self.text)
    }

    /// An alias can be pointed at another key at any time; what is stored is always the key.
    pub fn is_alias(&self) -> bool {
        self.alias
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_where_aws_puts_them() {
        let key =
            KeyArn::parse("arn:aws-cn:kms:cn-north-1:111122223333:key/1234abcd-12ab").unwrap();
        assert_eq!(
            (key.region(), key.account(), key.id(), key.is_alias()),
            ("cn-north-1", "111122223333", "1234abcd-12ab", false)
        );
        let alias = KeyArn::parse("arn:aws:kms:us-east-1:111122223333:alias/team/files").unwrap();
        assert!(alias.is_alias());
        assert!(KeyArn::parse("arn:aws:kms:us-east-1:111122223333:key/mrk-12").is_ok());
    }

    #[test]
    fn what_is_no_arn_is_refused_with_its_text() {
        for text in [
            "",
            "alias/x",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms::111122223333:key/a",
            "arn:aws:kms:us-east-1:1111:key/a",
            "arn:aws:kms:us-east-1:111122223333:key/",
            "arn:aws:kms:us-east-1:111122223333:key/a/b",
            "arn:aws:kms:us-east-1:111122223333:grant/a",
            "arn:aws:s3:us-east-1:111122223333:key/a",
            "arn:aws:kms:us east:111122223333:key/a",
            "arn:aws:kms:us/../x:111122223333:key/a",
        ] {
            let Err(KeyError::Misconfigured(sentence)) = KeyArn::parse(text) else {
                panic!("{text:?} was accepted");
            };
            assert!(sentence.contains("arn:aws:kms:REGION:ACCOUNT"), "{sentence}");
        }
    }
}
