//! Transcripts with the real programs: what they print, and the exit codes README promises.

mod crash;
mod damage;
mod hostile;
mod journals;
mod keys;
mod live;
mod support;
mod times;
mod volumes;
