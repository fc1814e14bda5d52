//! What topics hold, each asked for once in a request, however many views read it.

use std::collections::BTreeMap;
use std::ops::Range;

use anabranch_shared::log::LogError;
use anabranch_shared::position::{Offset, Partition, Positions};

use crate::app::{Server, log_problem};
use crate::problem::Problem;

/// What the partitions of a topic hold.
pub(crate) type Bounds = BTreeMap<Partition, Range<Offset>>;

/// The topics of one request.
pub(crate) struct Topics<'a> {
    server: &'a Server,
    bounds: BTreeMap<String, Bounds>,
}

impl<'a> Topics<'a> {
    /// To be asked after how far layers and outputs are: so a lag may be overstated by what came between,
    /// never understated.
    pub fn new(server: &'a Server) -> Self {
        Self { server, bounds: BTreeMap::new() }
    }

    /// What the partitions of a topic hold.
    pub fn bounds(&mut self, topic: &str) -> Result<&Bounds, LogError> {
        if !self.bounds.contains_key(topic) {
            self.bounds.insert(topic.to_owned(), self.server.app.log.bounds(topic)?);
        }
        Ok(&self.bounds[topic])
    }

    /// Where the partitions of a topic end.
    pub fn ends(&mut self, topic: &str) -> Result<Positions, Problem> {
        let bounds = self.bounds(topic).map_err(|error| log_problem(&error))?;
        Ok(bounds.iter().map(|(&partition, held)| (partition, held.end)).collect())
    }
}
