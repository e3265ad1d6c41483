//! Transcripts with the real programs: what they print, and the exit codes README promises.

mod damage;
mod hostile;
mod keys;
mod live;
mod support;
mod volumes;
