//! One module per command.

mod archive;
mod batch;
mod bench;
mod check;
mod decision;
mod log;
mod partitions;
mod produce;
mod project;
mod rejects;
mod rows;
mod up;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{ArchiveCommand, Batch, BatchCommand, Cli, Command, Config, Log, Rejects, RoleKind, Views};
use crate::failure::Failure;
use crate::roles;

/// Does what the command line says.
pub async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Up(up) => up::run(up).await,
        Command::Init { dir } => project::init(&dir),
        Command::Produce(produce) => produce::run(produce).await,
        Command::Views(Views::Check { folder }) => check::check(&folder.path()).await,
        Command::Views(Views::List { folder, output }) => project::list(&folder.path(), output),
        Command::Views(Views::Explain { view, project }) => project::explain(&project, &view),
        Command::Views(Views::Functions { output }) => project::functions(output),
        Command::Views(Views::Partitions { table, partitions, decision }) => {
            partitions::raise(&table, partitions, &decision).await
        }
        Command::Log(Log::Adopt { table, decision }) => log::adopt(&table, &decision).await,
        Command::Log(Log::Reset { table, decision }) => log::reset(&table, &decision).await,
        Command::Rows(rows) => rows::run(rows).await,
        Command::Ingest(role) => roles::run(RoleKind::Ingest, role).await,
        Command::Speed(role) => roles::run(RoleKind::Speed, role).await,
        Command::Archive(ArchiveCommand { command: Some(command), .. }) => archive::run(command).await,
        Command::Archive(ArchiveCommand { role, command: None }) => roles::run(RoleKind::Archive, role).await,
        Command::Serve(role) => roles::run(RoleKind::Serve, role).await,
        Command::Batch(BatchCommand { role, command: None }) => roles::run(RoleKind::Batch, role).await,
        Command::Batch(BatchCommand { command: Some(command), .. }) => match command {
            Batch::Run { view, full, output, target } => batch::run(view, full, output, target).await,
            Batch::History { output, target } => batch::history(output, target).await,
        },
        Command::Rejects(Rejects::List { topic, limit, output, target }) => {
            rejects::list(topic, limit, output, target).await
        }
        Command::Config(Config::Show { folder }) => project::show_config(&folder.path()),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "anabranch", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
