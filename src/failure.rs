//! What a command can fail with.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// A failed command: a message for a person, with the causes behind it.
#[derive(Debug)]
pub struct Failure {
    message: String,
    usage: bool,
}

impl Failure {
    /// The command did not succeed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), usage: false }
    }

    /// The command line or the project is wrong: trying again won't help.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), usage: true }
    }

    /// The same with where it happened before it.
    pub fn at(self, place: &str) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }

    /// The same with what it means on a line behind it.
    pub fn meaning(self, meaning: &str) -> Self {
        Self { message: format!("{}\n{meaning}", self.message), ..self }
    }

    /// 1, or 2 where the user has to change something.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self::new(message)
    }
}

/// Does a program's work, and says on stderr why it failed, if it did.
pub fn run(work: impl Future<Output = Result<ExitCode, Failure>>) -> ExitCode {
    let outcome = tokio::runtime::Runtime::new().map(|runtime| {
        let outcome = runtime.block_on(work);
        // A blocking task that nobody waits for any more must not keep the process.
        runtime.shutdown_background();
        outcome
    });
    let failed = |error| Err(Failure::from(error).at("the runtime can't start"));
    outcome.unwrap_or_else(failed).unwrap_or_else(|failure| {
        eprintln!("anabranch: {failure}");
        failure.exit_code()
    })
}
