//! What an examination found: plain facts, to be printed by whoever asked.

use serde::Serialize;

/// How good or bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Works, and may not tomorrow.
    Warning,
    /// Does not work.
    Error,
}

impl Level {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The machine.
    Host,
    /// The backing directory and its descriptor.
    Volume,
    /// Key files, passphrases, identities.
    LocalKey,
    /// A key of a KMS, and the way to it.
    Kms,
}

/// One line of an examination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How it is.
    pub level: Level,
    /// Where.
    pub area: Area,
    /// Which key, if it is about one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What was looked at, in a word or three.
    pub about: String,
    /// What was seen.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// About the machine.
    pub fn host(level: Level, about: &str, found: impl Into<String>) -> Self {
        Self::new(level, Area::Host, about, found)
    }

    /// About anything.
    pub fn new(level: Level, area: Area, about: &str, found: impl Into<String>) -> Self {
        let (about, found) = (about.to_owned(), found.into());
        Self { level, area, key: None, about, found, advice: None }
    }

    /// With what to do about it.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}
