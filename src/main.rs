//! The command line, and `up`, which wires every role in one process.
//!
//! Data goes to stdout, messages to stderr. Exit codes: 0 done; 1 it failed; 2 the command line or the project is
//! wrong; 3 done, but some records were rejected.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch::cli::Cli;
use anabranch::{command, failure};
use clap::Parser;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("ANABRANCH_LOG").unwrap_or_else(|_| EnvFilter::new(cli.verbosity()));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    for (variable, set) in [("ANABRANCH_CRASH_AT", crash_at as fn(&str) -> _), ("ANABRANCH_FAIL_AT", fail_at)] {
        if let Ok(place) = std::env::var(variable)
            && let Err(error) = set(&place)
        {
            eprintln!("anabranch: {variable}: {error}");
            return ExitCode::from(2);
        }
    }
    failure::run(command::run(cli))
}

/// For tests of crashes: `NAME:N` ends the process, as `kill -9` would, when it comes to the failpoint NAME for the
/// N-th time.
fn crash_at(place: &str) -> Result<(), String> {
    let (name, times) = place.rsplit_once(':').ok_or_else(|| format!("`{place}` should be NAME:N"))?;
    let times: usize = times.parse().map_err(|_| format!("`{times}` should be a number"))?;
    let met = AtomicUsize::new(0);
    fail::cfg_callback(name, move || {
        if met.fetch_add(1, Ordering::SeqCst) + 1 == times {
            std::process::abort();
        }
    })
}

/// For tests of faults: `NAME=ACTION` has the failpoint NAME do what ACTION says, such as `2*return`.
fn fail_at(place: &str) -> Result<(), String> {
    let (name, action) = place.split_once('=').ok_or_else(|| format!("`{place}` should be NAME=ACTION"))?;
    fail::cfg(name, action)
}
