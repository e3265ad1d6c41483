//! The text form of a vector.
//!
//! ```text
//! what: one sentence
//! expect: ok, or the error
//! kind: which structure
//! name: value            hexadecimal, or text in quotes, or a number
//! payload: 4096 bytes    rows of 32 bytes after their offset; zero rows left out
//!   000000 4b4d…
//! ```

use super::kit;
use std::fmt::Write;

/// One value of a vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Bytes(Vec<u8>),
    Text(String),
    Number(u64),
}

/// One vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vector {
    pub name: String,
    pub what: String,
    pub expect: String,
    pub kind: String,
    pub values: Vec<(String, Value)>,
}

impl Vector {
    pub fn new(name: &str, kind: &str, expect: &str, what: &str) -> Self {
        let [name, kind, expect, what] = [name, kind, expect, what].map(str::to_owned);
        Self { name, what, expect, kind, values: Vec::new() }
    }
    pub fn bytes(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.values.push((name.into(), Value::Bytes(value.as_ref().to_vec())));
        self
    }
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.values.push((name.into(), Value::Text(value.into())));
        self
    }
    pub fn number(mut self, name: &str, value: u64) -> Self {
        self.values.push((name.into(), Value::Number(value)));
        self
    }
    fn get(&self, name: &str) -> &Value {
        let found = self.values.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("{}: no {name}", self.name)).1
    }
    pub fn get_bytes(&self, name: &str) -> &[u8] {
        match self.get(name) {
            Value::Bytes(bytes) => bytes,
            other => panic!("{}: {name} is {other:?}", self.name),
        }
    }
    pub fn get_text(&self, name: &str) -> &str {
        match self.get(name) {
            Value::Text(text) => text,
            other => panic!("{}: {name} is {other:?}", self.name),
        }
    }
    pub fn get_number(&self, name: &str) -> u64 {
        match self.get(name) {
            Value::Number(number) => *number,
            other => panic!("{}: {name} is {other:?}", self.name),
        }
    }
    pub fn render(&self) -> String {
        let Self { what, expect, kind, .. } = self;
        let mut out = format!("what: {what}\nexpect: {expect}\nkind: {kind}\n");
        for (name, value) in &self.values {
            let value = match value {
                Value::Bytes(bytes) if bytes.len() > 64 => kit::rows(bytes),
                Value::Bytes(bytes) => format!("0x{}\n", kit::hex(bytes)),
                Value::Text(text) => format!("\"{text}\"\n"),
                Value::Number(number) => format!("{number}\n"),
            };
            write!(out, "{name}: {value}").expect("a string takes all");
        }
        out
    }
    pub fn parse(name: &str, text: &str) -> Self {
        let mut lines = text.lines().peekable();
        let mut head = |field: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(field));
            let line = line.and_then(|line| line.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("{name}: no {field}")).to_owned()
        };
        let [what, expect, kind] = ["what", "expect", "kind"].map(&mut head);
        let mut vector = Self::new(name, &kind, &expect, &what);
        while let Some(line) = lines.next() {
            let (field, value) = line.split_once(": ").expect("name and value");
            let value = if let Some(hex) = value.strip_prefix("0x") {
                Value::Bytes(kit::unhex(hex))
            } else if let Some(text) = value.strip_prefix('"') {
                Value::Text(text.strip_suffix('"').expect("a closing quote").to_owned())
            } else if value.ends_with(" bytes") {
                Value::Bytes(kit::unrows(value, &mut lines))
            } else {
                Value::Number(value.parse().expect("a number"))
            };
            vector.values.push((field.to_owned(), value));
        }
        vector
    }
}
