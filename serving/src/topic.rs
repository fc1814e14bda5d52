//! What topics hold, each asked for once in a request, however many views read it.

use std::collections::BTreeMap;
use std::ops::Range;

use anabranch_exchange::reject::RejectLog;
use anabranch_log::position::{Offset, Partition, Positions, TopicPartition, named};
use anabranch_log::{Log, LogError};
use anabranch_plan::view::Kept;

use crate::problem::{Problem, log_problem};
use crate::source::Layers;

/// What the partitions of a topic hold.
pub(crate) type Bounds = BTreeMap<Partition, Range<Offset>>;

/// The topics of one request.
pub(crate) struct Topics<'a> {
    log: &'a dyn Log,
    asked: BTreeMap<String, Asked>,
}

/// What a topic was found to be.
#[derive(Default)]
pub(crate) struct Asked {
    held: Bounds,
    /// Why it isn't the one that its table has read.
    other_log: Option<String>,
}

impl Asked {
    /// By what the log answered.
    pub fn of(bounds: Result<Bounds, LogError>) -> Result<Self, Problem> {
        match bounds {
            Ok(held) => Ok(Self { held, other_log: None }),
            Err(error @ LogError::OtherLog { .. }) => {
                Ok(Self { other_log: Some(error.to_string()), ..Self::default() })
            }
            Err(error) => Err(log_problem(&error)),
        }
    }

    /// Where the partitions of that topic end. That it is another one than that which the layers have read is told to them.
    pub fn ends(&self, topic: &str, layers: &mut Layers) -> Positions<TopicPartition> {
        if self.other_log.is_some() {
            layers.other_log.clone_from(&self.other_log);
        }
        named(topic, self.held.iter().map(|(&partition, held)| (partition, held.end)).collect())
    }
}

impl<'a> Topics<'a> {
    /// To be asked after how far layers and outputs are: so a lag may be overstated by what came between,
    /// never understated.
    pub fn new(log: &'a dyn Log) -> Self {
        Self { log, asked: BTreeMap::new() }
    }

    /// What the partitions of a topic hold: of another one than its table has read, nothing.
    pub fn bounds(&mut self, topic: &str) -> Result<&Bounds, Problem> {
        self.ask(topic).map(|asked| &asked.held)
    }

    /// Where the partitions of a view's topics end, as [`Asked::ends`] has it.
    pub fn ends(&mut self, view: &Kept, layers: &mut Layers) -> Result<Positions<TopicPartition>, Problem> {
        let mut ends = Positions::new();
        for table in view.tables() {
            ends.extend(self.ask(&table.topic)?.ends(&table.topic, layers));
        }
        Ok(ends)
    }

    fn ask(&mut self, topic: &str) -> Result<&Asked, Problem> {
        if !self.asked.contains_key(topic) {
            let asked = Asked::of(self.log.bounds(topic))?;
            self.asked.insert(topic.to_owned(), asked);
        }
        Ok(&self.asked[topic])
    }
}

/// How many records of a topic were rejected.
pub(crate) fn rejected(rejects: &RejectLog, topic: &str) -> Result<u64, Problem> {
    rejects.count(Some(topic)).map_err(|error| log_problem(&error))
}

/// How many records were rejected of the topics that a view reads.
pub(crate) fn rejected_of(rejects: &RejectLog, view: &Kept) -> Result<u64, Problem> {
    view.tables().into_iter().map(|table| rejected(rejects, &table.topic)).sum()
}
