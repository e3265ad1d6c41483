//! What AWS asks for keys: list prices of us-east-1, in dollars, as of 2026.

/// A KMS key, by the month.
pub const KEY_PER_MONTH: f64 = 1.0;
/// An HSM (hsm2m.medium), by the hour; a key store needs two.
pub const HSM_PER_HOUR: f64 = 1.60;
/// Hours of a month, as AWS counts them.
pub const HOURS_PER_MONTH: f64 = 730.0;
