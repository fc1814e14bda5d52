//! What topics hold, each asked for once in a request, however many views read it.

use std::collections::BTreeMap;
use std::ops::Range;

use anabranch_shared::log::LogError;
use anabranch_shared::position::{Offset, Partition, Positions};
use anabranch_shared::view::View;

use crate::app::{Server, log_problem};
use crate::problem::Problem;
use crate::source::Layers;

/// What the partitions of a topic hold.
pub(crate) type Bounds = BTreeMap<Partition, Range<Offset>>;

/// The topics of one request.
pub(crate) struct Topics<'a> {
    server: &'a Server,
    asked: BTreeMap<String, Asked>,
}

/// What a topic was found to be.
#[derive(Default)]
struct Asked {
    held: Bounds,
    /// Why it isn't the one that its table has read.
    other_log: Option<String>,
}

impl<'a> Topics<'a> {
    /// To be asked after how far layers and outputs are: so a lag may be overstated by what came between,
    /// never understated.
    pub fn new(server: &'a Server) -> Self {
        Self { server, asked: BTreeMap::new() }
    }

    /// What the partitions of a topic hold: of another one than its table has read, nothing.
    pub fn bounds(&mut self, topic: &str) -> Result<&Bounds, Problem> {
        self.ask(topic).map(|asked| &asked.held)
    }

    /// Where the partitions of a view's topic end. That it is another one than that which the layers have read is told to
    /// them.
    pub fn ends(&mut self, view: &View, layers: &mut Layers) -> Result<Positions, Problem> {
        let Asked { held, other_log } = self.ask(&view.table.topic)?;
        if other_log.is_some() {
            layers.other_log.clone_from(other_log);
        }
        Ok(held.iter().map(|(&partition, held)| (partition, held.end)).collect())
    }

    fn ask(&mut self, topic: &str) -> Result<&Asked, Problem> {
        if !self.asked.contains_key(topic) {
            let asked = match self.server.app.log.bounds(topic) {
                Ok(held) => Asked { held, other_log: None },
                Err(error @ LogError::OtherLog { .. }) => {
                    Asked { other_log: Some(error.to_string()), ..Asked::default() }
                }
                Err(error) => return Err(log_problem(&error)),
            };
            self.asked.insert(topic.to_owned(), asked);
        }
        Ok(&self.asked[topic])
    }
}
