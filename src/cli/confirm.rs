//! Questions that are answered on the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use super::exit::{FAILURE, failure};

/// Asks on the terminal, unless told not to; `otherwise` says what a no leaves.
pub fn confirm(yes: bool, question: &str, otherwise: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let text = "there is no terminal to ask on; say --yes if this is wanted";
        return Err(failure(FAILURE, format!("{text}: {question} {otherwise}")));
    }
    // A closed standard error shows in the answer that does not come.
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(failure(FAILURE, format!("not agreed; {otherwise}"))),
    }
}
