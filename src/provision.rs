//! Makes and looks after the keys of volumes in AWS: CloudHSM clusters, custom key stores, KMS keys,
//! their policies and aliases. The only user of the calls that change an account.
//!
//! What exists is read from AWS each time, by tags and ids; nothing is remembered here but what was asked
//! for and not seen yet. So whatever is interrupted is continued by being run again. Nothing is ever
//! deleted.

pub mod account;
pub mod activate;
pub mod advice;
pub mod canary;
pub mod certificate;
mod child;
pub mod cluster;
pub mod connection;
pub mod files;
pub mod hsm;
pub mod initialize;
pub mod intent;
pub mod key;
pub mod key_store;
pub mod lifecycle;
pub mod lint;
pub mod once;
pub mod plan;
pub mod policy;
pub mod settling;
mod shell;
pub mod survey;
pub mod teardown;

/// Which deployment a cluster, key store or key belongs to.
pub const TAG_DEPLOYMENT: &str = "kmsfs:deployment";
/// Which volume a key is for.
pub const TAG_VOLUME: &str = "kmsfs:volume";

/// Hears how long work goes on.
pub trait Teller: Sync {
    /// Waiting for something to come about; called at each look. `state` is what AWS says.
    fn waiting(&self, what: &str, state: &str);
    /// Something is done, or was found done.
    fn done(&self, what: &str);
    /// Another program is run, which may have the terminal.
    fn running(&self, what: &str);
}

/// Tells nobody.
pub struct Silent;

impl Teller for Silent {
    fn waiting(&self, _what: &str, _state: &str) {}
    fn done(&self, _what: &str) {}
    fn running(&self, _what: &str) {}
}
