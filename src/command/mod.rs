//! One module per command.

mod batch;
mod produce;
mod project;
mod rejects;
mod rows;
mod up;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::bench;
use crate::cli::{Batch, Cli, Command, Config, Rejects, Views};
use crate::failure::Failure;

/// Does what the command line says.
pub async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Up(up) => up::run(up).await,
        Command::Init { dir } => project::init(&dir),
        Command::Produce(produce) => produce::run(produce).await,
        Command::Views(Views::Check { dir }) => project::check(&dir),
        Command::Views(Views::List { dir, output }) => project::list(&dir, output),
        Command::Views(Views::Explain { view, dir }) => project::explain(&dir, &view),
        Command::Rows(rows) => rows::run(rows).await,
        Command::Batch(Batch::Run { view, full, output, target }) => batch::run(view, full, output, target).await,
        Command::Batch(Batch::History { output, target }) => batch::history(output, target).await,
        Command::Rejects(Rejects::List { topic, limit, output, target }) => {
            rejects::list(topic, limit, output, target).await
        }
        Command::Config(Config::Show { dir }) => project::show_config(&dir),
        Command::Bench(bench) => bench::run(bench.what).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "anabranch", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
