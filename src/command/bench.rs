//! `anabranch bench`: the benchmarks are a program of their own, which links what they are compared with.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::failure::Failure;

/// The program, beside this one.
const PROGRAM: &str = "anabranch-bench";

/// Becomes the benchmarks.
pub fn run(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    let error = Command::new(&program).args(arguments).exec();
    Err(Failure::new(format!("{} can't be run: {error}", program.display()))
        .meaning("`make bench` builds the benchmarks and runs them; they aren't part of a release"))
}
