//! The command line's grammar.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Analytics over one event log: a fast layer and an exact layer from one SQL definition, merged at an offset.
#[derive(Debug, Parser)]
#[command(
    name = "anabranch",
    version,
    propagate_version = true,
    after_help = "Every command takes --project DIR, and `.` is the project unless said otherwise. Commands that need nothing else \
                  take DIR alone, too: `anabranch up DIR`."
)]
pub struct Cli {
    /// Say more: once for progress, twice for details.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The log filter that goes with the flags.
    pub fn verbosity(&self) -> &'static str {
        match (self.verbose, &self.command) {
            (
                0,
                Command::Up(_)
                | Command::Ingest(_)
                | Command::Speed(_)
                | Command::Archive(ArchiveCommand { command: None, .. })
                | Command::Serve(_)
                | Command::Batch(BatchCommand { command: None, .. }),
            ) => {
                "warn,anabranch=info,anabranch_log=info,anabranch_store=info,anabranch_exchange=info,anabranch_speed_layer=info,anabranch_batch_layer=info"
            }
            (0, _) => "warn",
            (1, _) => "info",
            _ => "debug",
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process: the embedded log, both layers, the API and the dashboard.
    Up(Up),
    /// Write a new project folder to edit.
    Init {
        /// The folder: new or empty.
        dir: PathBuf,
    },
    /// Send NDJSON to a topic, from a file or from standard input.
    Produce(Produce),
    /// The views of a project.
    #[command(subcommand)]
    Views(Views),
    /// The rows of a view.
    Rows(Rows),
    /// Take events in: one role in a process of its own, on Kafka.
    Ingest(Role),
    /// Fold events into views: one role in a process of its own, on Kafka.
    Speed(Role),
    /// The archive. Without a subcommand: archive events, in a process of its own, on Kafka.
    Archive(ArchiveCommand),
    /// Exact recomputation. Without a subcommand: follow schedules and run jobs, in a process of its own, on Kafka.
    Batch(BatchCommand),
    /// Answer: one role in a process of its own, on Kafka.
    Serve(Role),
    /// What to do when a table's log isn't the one that it was.
    #[command(subcommand)]
    Log(Log),
    /// Records that were refused.
    #[command(subcommand)]
    Rejects(Rejects),
    /// The settings in force.
    #[command(subcommand)]
    Config(Config),
    /// Measure this machine, each figure beside a peer or a limit. `anabranch bench help` says what can be measured.
    Bench {
        /// What to measure, and its options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCHMARK")]
        arguments: Vec<OsString>,
    },
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// Where the project is, for a command that takes nothing else: `DIR`, or `--project DIR` as of every command.
#[derive(Debug, Args)]
pub struct Folder {
    /// The project folder; its data is kept in DIR/.anabranch. `.` if absent.
    #[arg(value_name = "DIR", conflicts_with = "project")]
    dir: Option<PathBuf>,
    /// The same, as every command takes it.
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
}

impl Folder {
    /// The folder.
    pub fn path(self) -> PathBuf {
        self.dir.or(self.project).unwrap_or_else(|| PathBuf::from("."))
    }
}

/// Where the project is, for a command that says first what it will do.
#[derive(Debug, Args)]
pub struct Decision {
    /// The project folder.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub project: PathBuf,
    /// Do it. Without this it is asked for on a terminal, and elsewhere nothing is done.
    #[arg(long)]
    pub yes: bool,
}

/// `log`.
#[derive(Debug, Subcommand)]
pub enum Log {
    /// Go on with the log that is there, although it isn't the one that a table's archive is of: what is archived stays, and what
    /// the log holds comes behind it. Also from the embedded log to Kafka. Stop the server, or all roles, before.
    Adopt {
        /// The table.
        table: String,
        /// The project folder, and whether it is agreed.
        #[command(flatten)]
        decision: Decision,
    },
    /// Set a table's archive, its views' versions and its checkpoints aside, and begin anew with what the log holds. Stop the
    /// server, or all roles, before.
    Reset {
        /// The table.
        table: String,
        /// The project folder, and whether it is agreed.
        #[command(flatten)]
        decision: Decision,
    },
}

/// Where the project is, and the server that runs it.
#[derive(Debug, Args)]
pub struct Target {
    /// The project folder.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub project: PathBuf,
    /// The address of a running server, such as http://127.0.0.1:8080; found by itself if it runs this project.
    #[arg(long, env = "ANABRANCH_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// For how long a server may be silent before the command gives up.
    #[arg(long, env = "ANABRANCH_TIMEOUT", value_name = "DURATION", default_value = "60 s", value_parser = timeout)]
    pub timeout: Duration,
}

/// How long something may take.
fn timeout(text: &str) -> Result<Duration, String> {
    match anabranch_plan::unit::parse_duration(text)? {
        0 => Err("it has to be longer than nothing, such as `60 s`".to_owned()),
        micros => Ok(Duration::from_micros(micros.unsigned_abs())),
    }
}

/// `up`.
#[derive(Debug, Args)]
pub struct Up {
    /// The project folder.
    #[command(flatten)]
    pub folder: Folder,
    /// Feed a lively stream of tweets and page views. The demo brings its own views, beside those of a project in DIR.
    #[arg(long)]
    pub demo: bool,
    /// Events per second of the demo stream.
    #[arg(long, default_value_t = 300, requires = "demo", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub demo_rate: u32,
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

/// One role.
#[derive(Debug, Args)]
pub struct Role {
    /// The project folder, which all roles share.
    #[command(flatten)]
    pub folder: Folder,
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

/// The roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleKind {
    /// Takes events in.
    Ingest,
    /// Folds.
    Speed,
    /// Archives.
    Archive,
    /// Recomputes.
    Batch,
    /// Answers.
    Serve,
}

impl RoleKind {
    /// Its name, on the command line and in the names of consumer groups.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Speed => "speed",
            Self::Archive => "archive",
            Self::Batch => "batch",
            Self::Serve => "serve",
        }
    }
}

/// `batch`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BatchCommand {
    /// What the role needs.
    #[command(flatten)]
    pub role: Role,
    /// What to do; the role if absent.
    #[command(subcommand)]
    pub command: Option<Batch>,
}

/// `archive`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ArchiveCommand {
    /// What the role needs.
    #[command(flatten)]
    pub role: Role,
    /// What to do; the role if absent.
    #[command(subcommand)]
    pub command: Option<Archive>,
}

/// `archive`.
#[derive(Debug, Subcommand)]
pub enum Archive {
    /// Archive anew, by the table's definition as it is, what the log still holds, and recompute its views in full. Stop the
    /// server, or on Kafka the roles archive, batch and speed, before.
    Rebuild {
        /// The table.
        table: String,
        /// The project folder.
        #[arg(long, default_value = ".", value_name = "DIR")]
        project: PathBuf,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Look through what is archived, and what was computed from it, for files that are missing or aren't what was written. Changes
    /// nothing, and may run beside the server.
    Check {
        /// The table; all if absent.
        table: Option<String>,
        /// The project folder.
        #[arg(long, default_value = ".", value_name = "DIR")]
        project: PathBuf,
    },
}

/// `produce`.
#[derive(Debug, Args)]
pub struct Produce {
    /// The topic.
    pub topic: String,
    /// A file of NDJSON; standard input if absent or `-`. What is stored of a file is not stored again if it is sent a second time
    /// within a day, so the same command goes on where it was cut off.
    pub file: Option<PathBuf>,
    /// Store a file's events once more although they were stored before.
    #[arg(long)]
    pub again: bool,
    /// The project and its server.
    #[command(flatten)]
    pub target: Target,
    /// How the outcome is printed.
    #[arg(long, default_value = "table")]
    pub output: Format,
}

/// `views`.
#[derive(Debug, Subcommand)]
pub enum Views {
    /// Check the project's SQL; every mistake is shown with its place.
    Check {
        /// The project folder.
        #[command(flatten)]
        folder: Folder,
    },
    /// List the views.
    List {
        /// The project folder.
        #[command(flatten)]
        folder: Folder,
        /// How the list is printed.
        #[arg(long, default_value = "table")]
        output: Format,
    },
    /// List the functions that views may call.
    Functions {
        /// How the list is printed.
        #[arg(long, default_value = "table")]
        output: Format,
    },
    /// Raise how many partitions a table's topic has. What that does to keys is said first. Stop the server before, if the log is
    /// the embedded one.
    Partitions {
        /// The table.
        table: String,
        /// How many partitions its topic is to have.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// The project folder, and whether it is agreed.
        #[command(flatten)]
        decision: Decision,
    },
    /// Show how a view is computed: its plan, and what it reads of each event.
    Explain {
        /// The view.
        view: String,
        /// The project folder.
        #[arg(long, default_value = ".", value_name = "DIR")]
        project: PathBuf,
    },
}

/// `rows`.
#[derive(Debug, Args)]
pub struct Rows {
    /// The view.
    pub view: String,
    /// `latest`, `closed`, or the end of a window (RFC 3339).
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub window: Option<String>,
    /// All windows wholly inside FROM..TO (RFC 3339).
    #[arg(long, requires = "to")]
    pub from: Option<String>,
    /// The end of the range.
    #[arg(long, requires = "from")]
    pub to: Option<String>,
    /// Only rows with this key, COLUMN=VALUE; may be repeated.
    #[arg(long = "key", value_name = "COLUMN=VALUE")]
    pub keys: Vec<String>,
    /// Only rows without a value in this key column; may be repeated.
    #[arg(long = "null-key", value_name = "COLUMN")]
    pub null_keys: Vec<String>,
    /// How many rows at most; 0 for all. A table shows 20 unless asked, JSON and CSV hold all.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Rank by a column: COLUMN or COLUMN:desc. The view's own order if absent.
    #[arg(long, value_name = "COLUMN[:desc]")]
    pub order: Option<String>,
    /// Which layer answers.
    #[arg(long, default_value = "merged")]
    pub mode: Mode,
    /// How the rows are printed.
    #[arg(long, default_value = "table")]
    pub output: Format,
    /// The project and its server.
    #[command(flatten)]
    pub target: Target,
}

/// Which layer answers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Mode {
    /// Both, joined at the frontier.
    Merged,
    /// The newest batch version alone.
    Batch,
    /// What came after the frontier alone.
    Speed,
}

/// `batch`.
#[derive(Debug, Subcommand)]
pub enum Batch {
    /// Recompute a view, or all of them, and wait for the new version.
    Run {
        /// The view; all of them if absent.
        view: Option<String>,
        /// Recompute everything, not only what new events touch.
        #[arg(long)]
        full: bool,
        /// How the outcome is printed.
        #[arg(long, default_value = "table")]
        output: Format,
        /// The project and its server.
        #[command(flatten)]
        target: Target,
    },
    /// The runs so far, newest first.
    History {
        /// How the list is printed.
        #[arg(long, default_value = "table")]
        output: Format,
        /// The project and its server.
        #[command(flatten)]
        target: Target,
    },
}

/// `rejects`.
#[derive(Debug, Subcommand)]
pub enum Rejects {
    /// List them, newest first.
    List {
        /// Only those of this topic.
        #[arg(long)]
        topic: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// How the list is printed.
        #[arg(long, default_value = "table")]
        output: Format,
        /// The project and its server.
        #[command(flatten)]
        target: Target,
    },
}

/// `config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Show each setting's value, from flags, environment and anabranch.toml.
    Show {
        /// The project folder.
        #[command(flatten)]
        folder: Folder,
    },
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// Comma-separated values with a header.
    Csv,
}
