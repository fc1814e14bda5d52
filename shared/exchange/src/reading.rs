//! How tables are read, as the batch layer tells the others.

use std::collections::BTreeMap;

use anabranch_engine::edition::Reading;
use tokio::sync::watch;

/// How the records of each table are read, now and later, by the table's name. A table that isn't named has had one definition.
#[derive(Debug, Clone, Default)]
pub struct Readings(pub BTreeMap<String, watch::Receiver<Reading>>);

impl Readings {
    /// What tells of each change in how a table is read.
    pub fn of(&self, table: &str) -> watch::Receiver<Reading> {
        self.0.get(table).cloned().unwrap_or_else(|| watch::channel(Reading::default()).1)
    }
}
