//! What a command will do is said before it is done.

use std::io::{BufRead, IsTerminal, Write};

use crate::cli::Decision;
use crate::failure::Failure;

/// Says what will be done; fails unless that is agreed.
pub fn agreed(decision: &Decision, lines: &[String]) -> Result<(), Failure> {
    lines.iter().for_each(|line| eprintln!("{line}"));
    if decision.yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprint!("Do it? [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        stdin.lock().read_line(&mut answer)?;
        if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            return Ok(());
        }
    }
    Err(Failure::usage("nothing was done: add `--yes` to have it done"))
}
