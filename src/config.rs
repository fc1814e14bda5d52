//! Settings: a command's flag comes before the environment, the environment before `anabranch.toml`, and that before
//! the default.
//!
//! In the environment a setting is called `ANABRANCH__SECTION__KEY`, and one of a table in a section
//! `ANABRANCH__SECTION__TABLE__KEY`, in `[kafka.options]` with `_` for each dot. Durations and sizes are texts with units, such as
//! `100 ms` and `64 MiB`. An unknown section or key is an error, wherever it is. A command applies its flags to what
//! [`Config::load`] returns.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anabranch_log::kafka::KafkaOptions;
use anabranch_store::storage::Location;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;
mod value;

/// What the name of every setting in the environment starts with.
const PREFIX: &str = "ANABRANCH__";

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The HTTP server.
    pub server: Server,
    /// The event log.
    pub log: Log,
    /// The Kafka cluster that the event log is on, instead of the embedded one.
    pub kafka: Kafka,
    /// What is kept elsewhere than in the data folder.
    pub storage: Storage,
    /// The speed layer.
    pub speed: Speed,
    /// The archive of events.
    pub archive: Archive,
    /// The batch layer.
    pub batch: Batch,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The address and port that it listens on.
    #[serde(deserialize_with = "value::address")]
    pub listen: String,
    /// Whether that address may be one that others reach, although nothing authenticates them.
    pub public: bool,
    /// By which names it may be called besides those of the loopback and that of `listen`, such as a proxy's. A name may have a
    /// port, and is then meant with that one only.
    #[serde(deserialize_with = "value::hosts", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// How large the body of a request may be, in bytes.
    #[serde(with = "value::bytes")]
    pub max_body: u64,
    /// How many connections may be open; half as many as files at most.
    #[serde(deserialize_with = "value::count")]
    pub max_connections: usize,
    /// How many of them may come from one address.
    #[serde(deserialize_with = "value::count")]
    pub max_connections_per_address: usize,
}

/// A Kafka cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Where it is: `host:port`, several with commas. The log is the embedded one if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brokers: Option<String>,
    /// Put before every topic's name.
    pub topic_prefix: String,
    /// What the consumer groups' names begin with: processes that share it share the work.
    pub group: String,
    /// How many brokers keep a copy of the topics that are created; as the cluster has it if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<i32>,
    /// After how long a partition that holds records and delivers none is read again from its position.
    #[serde(with = "value::duration")]
    pub stall: Duration,
    /// A process that hasn't been heard of for so long loses its partitions to others.
    #[serde(with = "value::duration")]
    pub session_timeout: Duration,
    /// More properties of librdkafka's clients, such as `security.protocol`. In the environment
    /// `ANABRANCH__KAFKA__OPTIONS__SASL_PASSWORD` is `sasl.password`.
    pub options: BTreeMap<String, String>,
}

/// What is kept elsewhere than in the data folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Where the speed layer's checkpoints are: a folder, by its path from the project's folder, or `s3://bucket/prefix`.
    /// In the data folder if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Location>,
    /// Properties of S3's client, such as `aws_endpoint`. Those that lack here are taken from the environment, where S3's
    /// tools have them as well: `AWS_ENDPOINT`.
    #[serde(deserialize_with = "value::storage_options")]
    pub options: BTreeMap<String, String>,
}

/// The event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// For how long events are kept; for ever if none. On Kafka, what its topics say if none.
    #[serde(with = "value::optional_duration", skip_serializing_if = "Option::is_none")]
    pub retention_age: Option<Duration>,
    /// How many bytes of events of a partition are kept; all if none. Not on Kafka, where the topics say.
    #[serde(with = "value::optional_bytes", skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// For how long rejects are kept.
    #[serde(with = "value::duration")]
    pub rejects_age: Duration,
    /// How many bytes of rejects are kept. Not on Kafka, where the topic `_rejects` says.
    #[serde(with = "value::bytes")]
    pub rejects_bytes: u64,
    /// The space on the disk, in bytes, below which the embedded log no longer accepts events.
    #[serde(with = "value::bytes")]
    pub reserve: u64,
}

/// The speed layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Speed {
    /// How many records a micro-batch has at most.
    #[serde(deserialize_with = "value::count")]
    pub batch_records: usize,
    /// How long a micro-batch waits for more records.
    #[serde(with = "value::duration")]
    pub batch_wait: Duration,
    /// The least time between two snapshots, by which answers take up what is new.
    #[serde(with = "value::duration")]
    pub snapshot_interval: Duration,
    /// How often state is saved.
    #[serde(with = "value::duration")]
    pub checkpoint_interval: Duration,
    /// How much time of the log one chunk of state covers.
    #[serde(with = "value::duration")]
    pub chunk_interval: Duration,
    /// After how long without records a partition no longer holds the watermark back.
    #[serde(with = "value::duration")]
    pub idle_after: Duration,
    /// How many bytes of state its views may keep together; beyond it the largest degrade.
    #[serde(with = "value::bytes")]
    pub memory: u64,
}

/// The archive of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Archive {
    /// How often new events are written to it.
    #[serde(with = "value::duration")]
    pub interval: Duration,
    /// How many rows a file should have.
    #[serde(deserialize_with = "value::count")]
    pub target_rows: usize,
}

/// The batch layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// How many versions of a view are kept.
    #[serde(deserialize_with = "value::count")]
    pub keep_versions: usize,
    /// Whether the views' schedules are followed.
    pub scheduler: bool,
    /// How long a run may take before it is stopped and has failed; as long as it takes if none.
    #[serde(with = "value::optional_duration", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            public: false,
            hosts: Vec::new(),
            max_body: 16 << 20,
            max_connections: 4_096,
            max_connections_per_address: 2_048,
        }
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: None,
            topic_prefix: String::new(),
            group: "anabranch".to_owned(),
            replication: None,
            stall: Duration::from_secs(30),
            session_timeout: Duration::from_secs(6),
            options: BTreeMap::new(),
        }
    }
}

impl Kafka {
    /// How the log uses the cluster, if there is one.
    pub fn log_options(&self) -> Option<KafkaOptions> {
        let brokers = self.brokers.clone()?;
        let (topic_prefix, properties) = (self.topic_prefix.clone(), self.options.clone());
        Some(KafkaOptions { brokers, topic_prefix, replication: self.replication, properties, stall: self.stall })
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            retention_age: None,
            retention_bytes: None,
            rejects_age: Duration::from_secs(30 * 86_400),
            rejects_bytes: 256 << 20,
            reserve: 64 << 20,
        }
    }
}

impl Default for Speed {
    fn default() -> Self {
        Self {
            batch_records: 65_536,
            batch_wait: Duration::from_millis(20),
            snapshot_interval: Duration::from_millis(5),
            checkpoint_interval: Duration::from_secs(10),
            chunk_interval: Duration::from_secs(30),
            idle_after: Duration::from_secs(10),
            memory: 4 << 30,
        }
    }
}

impl Default for Archive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), target_rows: 1_000_000 }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self { keep_versions: 5, scheduler: true, timeout: None }
    }
}

/// A setting that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {file}")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A value or a key in the file or the environment is wrong.
    #[error("{place}: {message}")]
    Invalid {
        /// The file with line and column, or the variable.
        place: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    /// Reads the settings of a file, if there is one, and of the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let (name, text) = match file {
            None => (String::new(), String::new()),
            Some(path) => {
                let name = path.display().to_string();
                match std::fs::read_to_string(path) {
                    Ok(text) => (name, text),
                    Err(source) => return Err(ConfigError::Read { file: name, source }),
                }
            }
        };
        Self::parse(&name, &text, environment)
    }

    fn parse(
        file: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let in_file = |error: toml::de::Error| {
            let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
            ConfigError::Invalid { place: format!("{file}:{line}:{column}"), message: error.message().to_owned() }
        };
        let mut config: Self = toml::from_str(text).map_err(in_file)?;
        let mut table: toml::Table = toml::from_str(text).map_err(in_file)?;
        let mut variables: Vec<_> = environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        variables.sort();
        for (name, value) in variables {
            let invalid = |message: String| ConfigError::Invalid { place: name.clone(), message };
            let path = name[PREFIX.len()..].to_lowercase();
            let Some((name, key)) = path.split_once("__") else {
                return Err(invalid(format!("settings are called {PREFIX}SECTION__KEY")));
            };
            let section = table.entry(name).or_insert_with(|| toml::Table::new().into());
            if let Some(section) = section.as_table_mut() {
                match key.split_once("__") {
                    None => drop(section.insert(key.to_owned(), scalar(value))),
                    Some((inner, key)) => {
                        let inner = section.entry(inner).or_insert_with(|| toml::Table::new().into());
                        if let Some(inner) = inner.as_table_mut() {
                            let key = if name == "kafka" { key.replace('_', ".") } else { key.to_owned() };
                            inner.insert(key, value.into());
                        }
                    }
                }
            }
            config = table.clone().try_into().map_err(|error: toml::de::Error| invalid(error.message().to_owned()))?;
        }
        Ok(config)
    }

    /// All settings as a file would have them, but for secrets.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut shown = self.clone();
        for (key, value) in shown.kafka.options.iter_mut().chain(&mut shown.storage.options) {
            let secret = ["password", "secret", "key.pem", "config", "token", "customer_key", "proxy_url"];
            if secret.iter().any(|word| key.contains(word)) {
                "(not shown)".clone_into(value);
            }
        }
        toml::to_string(&shown)
    }
}

/// The environment has texts only: what looks like a number or a truth value is one.
fn scalar(text: String) -> toml::Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(truth)) => truth.into(),
        _ => text.into(),
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
