//! A key after it was made: rotated by KMS itself, disabled, scheduled for deletion.

use super::account::{Account, Refused};
use crate::keys::aws::fault;
use aws_sdk_kms::primitives::{DateTime, DateTimeFormat};
use serde::Serialize;

/// How KMS rotates a key whose material it made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NativeRotation {
    /// Rotated by itself.
    pub automatic: bool,
    /// Days between two automatic rotations.
    pub period_days: Option<u32>,
    /// Date of the next automatic one.
    pub next: Option<String>,
    /// Date at which a rotation on demand began that is not finished yet.
    pub on_demand_since: Option<String>,
}

/// What KMS says of its rotation of a key.
pub fn rotation(account: &Account, arn: &str) -> Result<NativeRotation, Refused> {
    let id = arn.to_owned();
    let answer = account.ask("GetKeyRotationStatus", arn, move |clients| {
        let request = clients.kms.get_key_rotation_status().key_id(&id);
        async move { request.send().await.map_err(|e| fault(&e)) }
    })?;
    Ok(NativeRotation {
        automatic: answer.key_rotation_enabled,
        period_days: answer.rotation_period_in_days.and_then(|days| u32::try_from(days).ok()),
        next: answer.next_rotation_date.as_ref().and_then(date),
        on_demand_since: answer.on_demand_rotation_start_date.as_ref().and_then(date),
    })
}

/// Has KMS rotate a key now. Each time counts against a small lifetime limit, so it is asked for once.
pub fn rotate_now(account: &Account, arn: &str) -> Result<(), Refused> {
    let id = arn.to_owned();
    account.make("RotateKeyOnDemand", arn, move |clients| {
        let request = clients.kms.rotate_key_on_demand().key_id(&id);
        async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
    })
}

/// A key's id. Only its own account may switch it off or delete it, so the ARN says no more, and not
/// every emulator understands it there.
fn id(arn: &str) -> String {
    arn.rsplit('/').next().unwrap_or(arn).to_owned()
}

/// Switches a key off. Enabling it undoes that.
pub fn disable(account: &Account, arn: &str) -> Result<(), Refused> {
    let id = id(arn);
    account.ask("DisableKey", arn, move |clients| {
        let request = clients.kms.disable_key().key_id(&id);
        async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
    })
}

/// Has KMS delete a key after so many days (7 to 30); the date. Until then the deletion can be cancelled.
pub fn schedule_deletion(account: &Account, arn: &str, days: u32) -> Result<String, Refused> {
    let (id, days) = (id(arn), i32::try_from(days).unwrap_or(30));
    let answer = account.ask("ScheduleKeyDeletion", arn, move |clients| {
        let request = clients.kms.schedule_key_deletion().key_id(&id);
        let request = request.pending_window_in_days(days);
        async move { request.send().await.map_err(|e| fault(&e)) }
    })?;
    Ok(answer.deletion_date.as_ref().and_then(date).unwrap_or_default())
}

/// When KMS last used a key for anybody, as far as it keeps track; `None`: never, or it does not say.
pub fn last_used(account: &Account, arn: &str) -> Result<Option<String>, Refused> {
    let id = arn.to_owned();
    // Only good to know, so nobody waits for a second attempt.
    let answer = account.make("GetKeyLastUsage", arn, move |clients| {
        let request = clients.kms.get_key_last_usage().key_id(&id);
        async move { request.send().await.map_err(|e| fault(&e)) }
    })?;
    Ok(answer.key_last_usage.and_then(|usage| usage.timestamp.as_ref().and_then(date)))
}

fn date(time: &DateTime) -> Option<String> {
    DateTime::from_secs(time.secs()).fmt(DateTimeFormat::DateTime).ok()
}
