//! Runs CloudHSM's tools: on this host, or wherever a command of the user's takes them.
//!
//! No password is ever an argument. New ones are given where the tool asks for them: here on a terminal of
//! its own, elsewhere on the standard input.
//! The administrator's, to log in with, is in the tool's environment; since `ssh` and the like do not
//! pass an environment on, elsewhere a shell reads it from the first line of the standard input.

use crate::crypto::SecretBytes;
use crate::provision::child::{self, Ended};
use crate::provision::shell::quoted;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use zeroize::Zeroizing;

/// What the tools' own complaints mean: a part of the complaint in small letters, what to do.
const ADVICE: &[(&str, &str)] = &[
    (
        "login failed",
        "the password in the file admin-password is not the administrator's; put the right one there",
    ),
    ("incorrect", "a password is wrong; put the right one into its file"),
    ("already exists", "run the same command again to see what is there"),
    (
        "trust anchor",
        "customerCA.crt is not the certificate the cluster was initialized with; bring that one back",
    ),
    ("certificate", "compare customerCA.crt with the certificate the cluster was initialized with"),
    (
        "connect",
        "the host needs the cluster's security group, and TCP 2223 to 2225 to the HSMs' addresses",
    ),
    ("not configured", "check that configure-cli runs on the same host and as the same user"),
    ("permission denied", "run it as a user who may write CloudHSM's configuration, such as root"),
    ("credentials", "configure-cli asks AWS: give that host credentials for DescribeClusters"),
];

/// Where the tools are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// `cloudhsm-cli`.
    pub cli: String,
    /// `configure-cli`.
    pub configure: String,
}

/// Where the tools run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Local,
    /// Wherever a command line leads.
    Template {
        /// A command line for `sh -c`, with `{}` for the one to be run there: one word, quoted.
        template: String,
        /// Where the trust anchor is put there.
        anchor: String,
    },
}

/// Runs the tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executor {
    /// Where.
    pub place: Place,
    /// Their paths there.
    pub tools: Tools,
    /// Longest wait for one run of one of them.
    pub limit: Duration,
}

/// One run of a tool.
pub struct Job<'a> {
    /// Which tool.
    pub program: &'a str,
    /// Its arguments.
    pub arguments: Vec<&'a str>,
    /// The administrator's password.
    pub login: Option<&'a SecretBytes>,
    /// The passwords it asks for, in this order.
    pub answers: Vec<&'a [u8]>,
    /// The standard input, if it asks for none.
    pub input: &'a [u8],
}

impl<'a> Job<'a> {
    /// Without login or input.
    pub fn new(program: &'a str, arguments: &[&'a str]) -> Self {
        Self { program, arguments: arguments.to_vec(), login: None, answers: vec![], input: &[] }
    }

    /// For a shell; with a login this reads it from a line before the rest of the input.
    fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        let words = words.map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        match self.login {
            None => words,
            Some(_) => {
                let script = format!(
                    "IFS= read -r CLOUDHSM_PIN && CLOUDHSM_ROLE=admin && export CLOUDHSM_PIN \
                     CLOUDHSM_ROLE && exec {words}"
                );
                format!("sh -c {}", quoted(&script))
            }
        }
    }

    /// `CLOUDHSM_PIN`.
    fn pin(&self) -> Option<Zeroizing<Vec<u8>>> {
        self.login.map(|login| Zeroizing::new([b"admin:", login.expose()].concat()))
    }

    /// On this host: its arguments and its environment.
    fn prepare(&self, command: &mut Command) {
        command.args(&self.arguments);
        // One's own login is not meant for the others.
        command.env_remove("CLOUDHSM_ROLE").env_remove("CLOUDHSM_PIN");
        // The copy that the tool inherits cannot be wiped; it ends with this command.
        if let Some(mut pin) = self.pin() {
            let pin = OsString::from_vec(std::mem::take(&mut *pin));
            command.env("CLOUDHSM_ROLE", "admin").env("CLOUDHSM_PIN", pin);
        }
    }

    /// Elsewhere: all that it reads.
    fn lines(&self) -> Zeroizing<Vec<u8>> {
        let pin = self.pin();
        let lines = pin.iter().map(|pin| &pin[..]).chain(self.answers.iter().copied());
        let lines = lines.flat_map(|line| [line, b"\n"]).chain([self.input]);
        let lines: Vec<&[u8]> = lines.collect();
        Zeroizing::new(lines.concat())
    }

    /// Never shows what must not be seen.
    fn without_secrets(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let secrets = self.login.map(SecretBytes::expose);
        for secret in secrets.into_iter().chain(self.answers.iter().copied()) {
            match std::str::from_utf8(secret).map(str::trim) {
                Ok(secret) if !secret.is_empty() => text = text.replace(secret, "(secret)"),
                _ => {}
            }
        }
        text
    }
}

impl Executor {
    /// Where the trust anchor has to be put, unless the tools can read it where it is.
    pub fn anchor_path(&self) -> Option<&str> {
        match &self.place {
            Place::Local => None,
            Place::Template { anchor, .. } => Some(anchor),
        }
    }

    /// Runs a tool to its end; what it said, or why it failed.
    pub fn run(&self, job: &Job<'_>) -> Result<String, String> {
        let ended = match &self.place {
            Place::Local if job.answers.is_empty() => {
                let mut command = Command::new(job.program);
                job.prepare(&mut command);
                command.stderr(Stdio::piped()).stdout(Stdio::piped());
                child::run(&mut command, Zeroizing::new(job.input.to_vec()), self.limit)
            }
            Place::Local => {
                let prepare = |command: &mut Command| job.prepare(command);
                child::converse(job.program, prepare, &job.answers, self.limit)
            }
            Place::Template { template, .. } => {
                let mut command = Command::new("sh");
                command.args(["-c", &template.replace("{}", &quoted(&job.line()))]);
                command.stderr(Stdio::piped()).stdout(Stdio::piped());
                child::run(&mut command, job.lines(), self.limit)
            }
        };
        let ended = ended.map_err(|e| format!("cannot be run ({e}); is its path right?"))?;
        match ended.status {
            Some(status) => judge(job, status, &ended),
            None => Err(self.too_long(job, &ended)),
        }
    }

    fn too_long(&self, job: &Job<'_>, ended: &Ended) -> String {
        let said = last_lines(&ended.errors, &ended.said);
        let said = said.map_or_else(String::new, |said| {
            format!("; the last it said was {:?}", job.without_secrets(&said))
        });
        let left = match self.place {
            Place::Local => "",
            Place::Template { .. } => {
                "; what it started there may still be at work: make sure that it has ended before you run \
                 this again"
            }
        };
        format!(
            "it did not end within {} seconds and was stopped{said}{left}; see whether the host answers and \
             whether something waits for input there, such as a prompt that reads from a terminal only: \
             then run the commands by hand, which this command prints without --exec and \
             --exec-template. --tool-timeout waits longer",
            self.limit.as_secs_f64()
        )
    }
}

/// Success is an exit code of 0 and, in what is JSON, an `error_code` of 0.
fn judge(job: &Job<'_>, status: ExitStatus, ended: &Ended) -> Result<String, String> {
    let said = String::from_utf8_lossy(&ended.said).into_owned();
    let answer = json(&said);
    let code = answer.as_ref().and_then(|answer| answer["error_code"].as_i64());
    if status.success() && code.is_none_or(|code| code == 0) {
        return Ok(said);
    }
    let complaint = match answer.filter(|_| code.is_some()) {
        Some(answer) => {
            let data = &answer["data"];
            data.as_str().map_or_else(|| data.to_string(), str::to_owned)
        }
        None => last_lines(&ended.errors, &ended.said)
            .unwrap_or_else(|| "it failed and said nothing".to_owned()),
    };
    let complaint = job.without_secrets(&complaint);
    let small = complaint.to_lowercase();
    let advice = ADVICE.iter().find(|(part, _)| small.contains(part)).map(|(_, advice)| *advice);
    let advice = advice.unwrap_or("run it by hand on that host to see more");
    let status = match code {
        Some(code) => format!("error_code {code}"),
        None => status.to_string(),
    };
    Err(format!("{complaint} ({status}); {advice}"))
}

/// Enough of what was said to see why.
fn last_lines(errors: &[u8], said: &[u8]) -> Option<String> {
    let text = if errors.trim_ascii().is_empty() { said } else { errors };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    (!last.is_empty()).then(|| last.join(" / "))
}

/// The JSON in an answer, which prompts may go before.
pub fn json(text: &str) -> Option<Value> {
    let (from, until) = (text.find('{')?, text.rfind('}')?);
    serde_json::from_str(text.get(from..=until)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executor(place: Place) -> Executor {
        let tools = Tools { cli: "cloudhsm-cli".to_owned(), configure: "configure-cli".to_owned() };
        Executor { place, tools, limit: Duration::from_secs(600) }
    }

    fn local() -> Executor {
        executor(Place::Local)
    }

    fn template(template: &str) -> Executor {
        let (template, anchor) = (template.to_owned(), "anchor".to_owned());
        executor(Place::Template { template, anchor })
    }

    #[test]
    fn words_stay_words() {
        for word in ["plain", "", "two words", "it's", "a\"b$c`d\\e", "{}", "x\ny"] {
            let job = Job::new("printf", &["%s", word]);
            for executor in [local(), template("sh -c {}"), template("eval {}")] {
                assert_eq!(executor.run(&job).unwrap(), word, "{executor:?}");
            }
        }
    }

    #[test]
    fn logins_travel_unseen() {
        let login = SecretBytes::new(b"pass word".to_vec());
        let show = "echo \"$CLOUDHSM_ROLE $CLOUDHSM_PIN\"; cat; tr '\\0' ' ' < /proc/$$/cmdline";
        let job = Job { login: Some(&login), input: b"a\nb\n", ..Job::new("sh", &["-c", show]) };
        for executor in [local(), template("sh -c {}")] {
            let said = executor.run(&job).unwrap();
            let rest = said.strip_prefix("admin admin:pass word\na\nb\n").unwrap();
            assert!(rest.starts_with("sh -c") && !rest.contains("pass word"), "{rest}");
        }
        assert!(!job.line().contains("pass word"));
    }

    #[test]
    fn failures_say_what_to_do_but_no_secret() {
        let login = SecretBytes::new(b"sesame-1".to_vec());
        let fail = |script: &str| {
            let job = Job {
                login: Some(&login),
                answers: vec![b"sesame-2"],
                ..Job::new("sh", &["-c", script])
            };
            local().run(&job).unwrap_err()
        };
        let error = fail("echo 'Enter password: {\"error_code\": 1, \"data\": \"Login failed\"}'");
        assert!(error.starts_with("Login failed (error_code 1); the password in"), "{error}");
        let error = fail("echo password?; read -r a; echo \"$CLOUDHSM_PIN $a\" >&2; exit 9");
        assert!(error.starts_with("admin:(secret) (secret) (exit status: 9)"), "{error}");
        let error = fail("exit 1");
        assert!(error.contains("said nothing"), "{error}");
        let missing = local().run(&Job::new("/nonexistent/tool", &[]));
        assert!(missing.unwrap_err().contains("is its path right?"));
    }

    #[test]
    fn a_tool_that_does_not_end_is_stopped_and_what_it_waits_for_is_told() {
        let login = SecretBytes::new(b"sesame-1".to_vec());
        let script = "echo \"$CLOUDHSM_PIN\"; echo 'Enter password:'; exec sleep 60";
        let job = Job { login: Some(&login), ..Job::new("sh", &["-c", script]) };
        // Long enough for a shell to come to its second line.
        let hurried = Executor { limit: Duration::from_secs(3), ..local() };
        let error = hurried.run(&job).unwrap_err();
        assert!(error.starts_with("it did not end within 3 seconds and was stopped"), "{error}");
        assert!(error.contains("\"admin:(secret) / Enter password:\""), "{error}");
    }
}
