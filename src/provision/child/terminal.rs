//! Answers a program that asks for passwords on its terminal: it gets one of its own.
//!
//! Programs that ask for a password throw away what was typed before they asked, so an answer waits for
//! its question: the word password, and the echo switched off.

use super::{Ended, Heard, REST, wait};
use rustix::fd::OwnedFd;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// In small letters, what every question for a password has in it.
const QUESTION: &str = "assword";
/// What is taken for a question after all if nothing more comes: one without the word, or one that does
/// not switch the echo off.
const QUIET: Duration = Duration::from_secs(2);

/// Runs a command to its end, or for as long as the limit, and answers its questions in this order. Its
/// terminal and its standard error are one; its standard output is a pipe.
pub fn converse(
    program: &str,
    prepare: impl FnOnce(&mut Command),
    answers: &[&[u8]],
    limit: Duration,
) -> std::io::Result<Ended> {
    let (master, slave) = open()?;
    // Without it the program would ask on this process's terminal.
    let mut command = Command::new("setsid");
    command.args(["-c", program]);
    prepare(&mut command);
    command.stdin(slave.try_clone()?).stderr(slave).stdout(Stdio::piped());
    let no_setsid = |e| std::io::Error::other(format!("through setsid, of util-linux: {e}"));
    let mut child = command.spawn().map_err(no_setsid)?;
    // The last copies of the program's side but its own: its end must be seen.
    drop(command);
    let mut said = Heard::of(child.stdout.take());
    let mut errors = Heard::of(Some(master.try_clone()?));
    let mut talk = Talk { master, answers, heard: (0, 0), asked: None };
    let status = wait(&mut child, limit, || talk.look(&mut said, &mut errors))?;
    let took_all = talk.answers.is_empty();
    let until = Instant::now() + REST;
    Ok(Ended { status, said: said.until(until), errors: errors.until(until), took_all })
}

/// Both sides of a terminal.
fn open() -> std::io::Result<(File, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master.into(), slave))
}

struct Talk<'a> {
    master: File,
    /// Those to come.
    answers: &'a [&'a [u8]],
    /// How much had been said on both ways when the last one was given.
    heard: (usize, usize),
    /// When it was first seen that there may be a question.
    asked: Option<Instant>,
}

impl Talk<'_> {
    /// Gives the next answer, if it is time for it.
    fn look(&mut self, said: &mut Heard, errors: &mut Heard) -> std::io::Result<()> {
        let Some((answer, rest)) = self.answers.split_first() else { return Ok(()) };
        let (said, errors) = (said.so_far(), errors.so_far());
        let asked = asks(&said[self.heard.0..]) || asks(&errors[self.heard.1..]);
        let mut modes = tcgetattr(&self.master)?;
        let hidden = !modes.local_modes.contains(LocalModes::ECHO);
        if !asked && !hidden {
            return Ok(());
        }
        let since = *self.asked.get_or_insert_with(Instant::now);
        if !(asked && hidden) && since.elapsed() < QUIET {
            return Ok(());
        }
        if !hidden {
            modes.local_modes.remove(LocalModes::ECHO);
            tcsetattr(&self.master, OptionalActions::Now, &modes)?;
        }
        self.heard = (said.len(), errors.len());
        (self.answers, self.asked) = (rest, None);
        // The key, not the character that ends lines: a program may read keys.
        self.master.write_all(answer)?;
        self.master.write_all(b"\r")
    }
}

fn asks(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).to_lowercase().contains(QUESTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(script: &str, answers: &[&[u8]]) -> Ended {
        let prepare = |command: &mut Command| {
            command.args(["-c", script]);
        };
        converse("python3", prepare, answers, Duration::from_secs(600)).unwrap()
    }

    #[test]
    fn questions_on_a_terminal_are_answered_once_each() {
        // Asks as getpass does, on /dev/tty, and throws away what comes too early.
        let script = "import getpass, time\n\
                      a = getpass.getpass('Enter password:')\n\
                      time.sleep(0.1)\n\
                      b = getpass.getpass('Confirm password:')\n\
                      print(a, b)";
        let ended = python(script, &[b"one", b"two"]);
        assert!(ended.status.unwrap().success() && ended.took_all);
        assert_eq!(ended.said, b"one two\n");
        let errors = String::from_utf8_lossy(&ended.errors).into_owned();
        assert!(errors.contains("Confirm") && !errors.contains("one"), "{errors}");
    }

    #[test]
    fn odd_questions_are_answered_too() {
        // Without the word; then without switching the echo off; then neither on the terminal nor flushed.
        for script in [
            "import getpass; print(getpass.getpass('PIN:'))",
            "import sys; print('Password:', file=sys.stderr); print(sys.stdin.readline().strip())",
            "import getpass, sys; sys.stdout.write('x'); print(getpass.getpass('', sys.stdout)[:3])",
        ] {
            let ended = python(script, &[b"one"]);
            assert!(ended.status.unwrap().success() && ended.took_all, "{script}");
            let said = String::from_utf8_lossy(&ended.said).into_owned();
            assert!(said.ends_with("one\n"), "{script}: {said:?}");
            assert!(!String::from_utf8_lossy(&ended.errors).contains("one"), "{script}");
        }
    }

    #[test]
    fn one_that_asks_for_less_or_more_does_not_hold_anybody_up() {
        let ended = python("print(1)", &[b"one"]);
        assert!(ended.status.unwrap().success() && !ended.took_all);
        let prepare = |command: &mut Command| {
            command.args(["-c", "echo Enter password:; exec sleep 60"]);
        };
        let ended = converse("sh", prepare, &[], Duration::from_secs(1)).unwrap();
        assert!(ended.status.is_none());
        assert!(ended.said.is_empty() || ended.said == b"Enter password:\n");
        let gone = python("import sys; sys.exit(3)", &[]);
        assert_eq!(gone.status.unwrap().code(), Some(3));
    }
}
