//! Runs a command with a limit: what it reads, what it said, and an end to the wait for it.
//!
//! It stays in this process's group and keeps the terminal: `ssh` asks for its own passwords there.

mod terminal;

pub use terminal::converse;

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long its pipes are listened to after its end: whatever it started may hold them open for ever.
const REST: Duration = Duration::from_secs(2);
/// What is kept of each pipe; what comes after is read and dropped.
const MOST: usize = 1 << 20;

/// What a command did.
pub struct Ended {
    /// How it ended; `None`: it was stopped when its time was over.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub said: Vec<u8>,
    /// Its standard error.
    pub errors: Vec<u8>,
    /// It took all of the input.
    pub took_all: bool,
}

/// Runs a command to its end, or for as long as the limit. It gets the input, then the end of it. Of its
/// outputs those are kept that are pipes.
pub fn run(
    command: &mut Command,
    input: Zeroizing<Vec<u8>>,
    limit: Duration,
) -> std::io::Result<Ended> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let (mut said, mut errors) = (Heard::of(child.stdout.take()), Heard::of(child.stderr.take()));
    let (tell, took) = mpsc::channel();
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing must not hold this process up.
        std::thread::spawn(move || tell.send(stdin.write_all(&input).is_ok()));
    }
    let status = wait(&mut child, limit, || Ok(()))?;
    let until = Instant::now() + REST;
    let took_all = took.recv_timeout(until.saturating_duration_since(Instant::now()));
    let (said, errors) = (said.until(until), errors.until(until));
    let took_all = took_all.unwrap_or(false);
    Ok(Ended { status, said, errors, took_all })
}

/// `None`: the limit was reached, and it was stopped. `meanwhile` is called again and again.
fn wait(
    child: &mut Child,
    limit: Duration,
    mut meanwhile: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        meanwhile()?;
        std::thread::sleep(LOOK);
    }
}

/// What comes out of a pipe, read by a thread of its own.
struct Heard {
    pieces: mpsc::Receiver<Vec<u8>>,
    /// What was taken out of them.
    so_far: Vec<u8>,
}

impl Heard {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let (tell, pieces) = mpsc::channel();
        if let Some(pipe) = pipe {
            std::thread::spawn(move || listen(pipe, &tell));
        }
        Self { pieces, so_far: Vec::new() }
    }

    /// What was said until its end, or until this moment.
    fn until(&mut self, moment: Instant) -> Vec<u8> {
        let left = || moment.saturating_duration_since(Instant::now());
        while let Ok(piece) = self.pieces.recv_timeout(left()) {
            self.so_far.extend_from_slice(&piece);
        }
        std::mem::take(&mut self.so_far)
    }

    /// What was said until now.
    fn so_far(&mut self) -> &[u8] {
        self.pieces.try_iter().for_each(|piece| self.so_far.extend_from_slice(&piece));
        &self.so_far
    }
}

fn listen(mut pipe: impl Read, tell: &mpsc::Sender<Vec<u8>>) {
    let (mut piece, mut left) = ([0u8; 4096], MOST);
    loop {
        match pipe.read(&mut piece) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(len) => {
                let kept = len.min(left);
                left -= kept;
                if kept > 0 {
                    // Though nobody listens any more it is read, so that nobody waits for that.
                    let _ = tell.send(piece[..kept].to_vec());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn shell(script: &str, input: &[u8], limit: Duration) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        run(&mut command, Zeroizing::new(input.to_vec()), limit).unwrap()
    }

    #[test]
    fn a_command_reads_and_says() {
        let ended = shell("cat; echo no >&2; exit 3", b"input", LONG);
        assert_eq!(ended.status.unwrap().code(), Some(3));
        assert_eq!((&ended.said[..], &ended.errors[..]), (&b"input"[..], &b"no\n"[..]));
        assert!(ended.took_all);
    }

    #[test]
    fn one_that_does_not_end_is_stopped() {
        // What it said is kept; what it started holds the pipes open and is not waited for.
        let ended = shell("echo 'Enter password:'; sleep 60 & wait", b"", LOOK);
        assert!(ended.status.is_none());
        let ended = shell("echo done; sleep 60 & exit 0", b"", LONG);
        assert_eq!((ended.status.unwrap().code(), &ended.said[..]), (Some(0), &b"done\n"[..]));
    }

    #[test]
    fn one_that_reads_nothing_holds_nobody_up() {
        let ended = shell("exit 0", &vec![0; 1 << 20], LONG);
        assert!(ended.status.unwrap().success() && !ended.took_all);
        let ended = shell("sleep 60 < /dev/null", &vec![0; 1 << 20], LOOK);
        assert!(ended.status.is_none() && !ended.took_all);
        let ended = shell("yes | head -c 3000000", b"", LONG);
        assert_eq!(ended.said.len(), MOST);
    }
}
