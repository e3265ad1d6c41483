//! Splitting off a daemon that reports back whether it came up.

use super::SessionError;
use crate::sys::{logging, process};
use rustix::process::{Pid, WaitOptions};
use std::fs::File;
use std::io::{Read, Write};

/// First byte of the report.
const READY: u8 = 0;
const FAILED: u8 = 1;

/// Which side of the split the caller is on.
pub enum Side {
    /// The starter, with what the daemon reported.
    Parent(Result<(), SessionError>),
    /// The daemon to be.
    Child(Reporter),
}

/// Where the daemon tells its starter how it went. Dropped without a word it means a crash.
pub struct Reporter(File);

impl Reporter {
    /// The mount answers.
    pub fn ready(mut self) {
        self.write(&[READY]);
    }

    /// It did not come up.
    pub fn failed(mut self, e: &SessionError) {
        let mut report = vec![FAILED];
        report.extend(e.exit_code.to_le_bytes());
        report.extend(e.message.as_bytes());
        self.write(&report);
    }

    fn write(&mut self, report: &[u8]) {
        // A starter that is gone does not need to know.
        let _ = self.0.write_all(report);
    }
}

/// Forks; in the parent, waits for the report.
pub fn split() -> Result<Side, SessionError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SessionError::other("pipe", &e))?;
    match process::fork().map_err(|e| SessionError::other("fork", &e))? {
        process::Fork::Child => {
            drop(read);
            Ok(Side::Child(Reporter(write.into())))
        }
        process::Fork::Parent(child) => {
            drop(write);
            Ok(Side::Parent(outcome(read.into(), child)))
        }
    }
}

fn outcome(mut report: File, child: Pid) -> Result<(), SessionError> {
    let mut text = Vec::new();
    report.read_to_end(&mut text).map_err(|e| SessionError::other("reading the report", &e))?;
    match decode(&text) {
        Some(outcome) => outcome,
        None => Err(crashed(child)),
    }
}

/// A report, or none if it is not complete.
fn decode(text: &[u8]) -> Option<Result<(), SessionError>> {
    match text.split_first()? {
        (&READY, _) => Some(Ok(())),
        (&FAILED, rest) => {
            let (code, message) = rest.split_first_chunk()?;
            let message = String::from_utf8_lossy(message).into_owned();
            Some(Err(SessionError { message, exit_code: i32::from_le_bytes(*code) }))
        }
        _ => None,
    }
}

fn crashed(child: Pid) -> SessionError {
    let ended = rustix::process::waitpid(Some(child), WaitOptions::empty());
    let how = match ended {
        Ok(Some((_, status))) => match status.terminating_signal() {
            Some(signal) => format!("killed by signal {signal}"),
            None => format!("exit code {}", status.exit_status().unwrap_or_default()),
        },
        _ => "unknown".into(),
    };
    SessionError::other("the daemon ended before the mount answered", &how)
}

/// Gives up the terminal: own session, root directory, no standard streams, log to syslog.
pub fn detach() {
    if let Err(e) = rustix::process::setsid() {
        log::debug!("setsid: {e}");
    }
    leave_directory();
    logging::to_syslog();
    match File::options().read(true).write(true).open("/dev/null") {
        Ok(null) => {
            let streams = [
                rustix::stdio::dup2_stdin(&null),
                rustix::stdio::dup2_stdout(&null),
                rustix::stdio::dup2_stderr(&null),
            ];
            if streams.iter().any(Result::is_err) {
                log::warn!("standard streams stay open");
            }
        }
        Err(e) => log::warn!("/dev/null: {e}; standard streams stay open"),
    }
}

/// A daemon that keeps a working directory keeps a file system busy, perhaps its own.
pub fn leave_directory() {
    if let Err(e) = rustix::process::chdir("/") {
        log::debug!("chdir: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(send: impl FnOnce(Reporter)) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        send(Reporter(file.try_clone().unwrap()));
        std::io::Seek::rewind(&mut file).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn reports_arrive_with_sentence_and_exit_code() {
        assert!(matches!(decode(&report(Reporter::ready)), Some(Ok(()))));
        let error = SessionError { message: "no such key: ä".into(), exit_code: 12 };
        match decode(&report(|r| r.failed(&error))) {
            Some(Err(e)) => assert_eq!((e.message.as_str(), e.exit_code), ("no such key: ä", 12)),
            _ => panic!("a failure"),
        }
    }

    #[test]
    fn half_a_report_is_none() {
        assert!(decode(b"").is_none());
        assert!(decode(&[FAILED, 12, 0]).is_none());
        assert!(decode(&[7]).is_none());
    }
}
