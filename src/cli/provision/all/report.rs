//! What came of each step of `provision all`.

use serde::Serialize;
use serde_json::Value;

use crate::cli::output::Out;
use crate::cli::provision::activate::print_steps;
use crate::cli::provision::key::Outcome;
use crate::provision::activate::Step;

/// One document, whether all of it came about or not.
#[derive(Serialize)]
pub struct Report {
    deployment: String,
    region: String,
    /// Everything is there, and the key works as far as this caller may try it.
    complete: bool,
    steps: Vec<Done>,
    /// What people have to run before the same command goes on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Value>,
    /// Why it is not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
    #[serde(skip)]
    outcome: Option<Outcome>,
}

#[derive(Serialize)]
struct Done {
    step: &'static str,
    /// `made` by this run, `there` before it, or `waiting` for people.
    outcome: &'static str,
    detail: String,
}

impl Report {
    /// Nothing came about yet.
    pub fn new(deployment: &str, region: &str) -> Self {
        Self {
            deployment: deployment.to_owned(),
            region: region.to_owned(),
            complete: false,
            steps: vec![],
            commands: vec![],
            key: None,
            stopped: None,
            outcome: None,
        }
    }

    /// A step is done: just now, or it was before.
    pub fn done(&mut self, step: &'static str, made: bool, detail: &str) {
        let outcome = if made { "made" } else { "there" };
        self.steps.push(Done { step, outcome, detail: detail.to_owned() });
    }

    /// A step waits for people.
    pub fn waits(&mut self, step: &'static str, detail: String) {
        self.steps.push(Done { step, outcome: "waiting", detail });
    }

    /// A step waits for people who run commands.
    pub fn by_hand(&mut self, step: &'static str, commands: Vec<Step>) {
        self.waits(step, format!("{} things to do by hand", commands.len()));
        self.commands = commands;
    }

    /// The last step.
    pub fn key(&mut self, outcome: Outcome) {
        self.done("key", outcome.created, &outcome.key);
        self.key = serde_json::to_value(outcome.facts()).ok();
        self.outcome = Some(outcome);
    }

    /// Prints it.
    pub fn print(&mut self, result: &anyhow::Result<()>, json: bool) -> anyhow::Result<()> {
        self.complete = result.is_ok();
        self.stopped = result.as_ref().err().map(|error| format!("{error:#}"));
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        for step in &self.steps {
            out.fact(step.step, format!("{}: {}", step.outcome, step.detail))?;
        }
        print_steps(&mut out, &self.commands)?;
        if let Some(outcome) = &self.outcome {
            outcome.print_on(&mut out)?;
        }
        out.finish()
    }
}
