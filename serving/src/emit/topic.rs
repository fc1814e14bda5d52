//! The topic that a view's rows are written to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_log::kafka::outlet::{Commit, Keys, Outlet, Outlets, Parts, Stream};
use anabranch_log::key::by_key;
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Append, Extras, Log, LogError, LogReader, Payloads, ReadLimit};
use anabranch_plan::sink::Emission;
use anabranch_plan::view::Kept;
use tokio::sync::watch;

use super::rows::Change;

/// How much of a topic is read at once.
const LIMIT: ReadLimit = ReadLimit { records: 10_000, bytes: 8 << 20 };

/// How many of a partition's last offsets are looked through for a record, before more are.
const TAIL: u64 = 1_000;

/// How long it is waited for the next records, before it is asked again.
const WAIT: Duration = Duration::from_secs(1);

/// A topic that this process writes, alone.
pub struct Topic {
    log: Arc<dyn Log>,
    /// On Kafka: whoever opened it last is the only one who can write.
    outlet: Option<Outlet>,
    name: String,
    partitions: u32,
    /// Whether the process is to end.
    shutdown: watch::Receiver<bool>,
}

impl Topic {
    /// Takes the topic over. What whoever had it before has written is there from then on, or never will be.
    pub fn open(
        log: &Arc<dyn Log>,
        outlets: Option<&Outlets>,
        view: &Kept,
        emission: &Emission,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Self, LogError> {
        let (from, to) = (view.table().topic.clone(), emission.topic.clone());
        // Whatever the view is called, one process at a time writes the topic.
        let name = format!("rows.{to}");
        let stream = Arc::new(Stream { name, from, to, commit: Commit::WithRecords });
        let outlet = outlets.map(|outlets| outlets.take_over(&stream, 0)).transpose()?;
        let partitions = log.bounds(&emission.topic)?.len() as u32;
        Ok(Self { log: Arc::clone(log), outlet, name: emission.topic.clone(), partitions, shutdown })
    }

    /// Stores changes: all of them, or none.
    pub fn write(&self, changes: &[Change]) -> Result<(), LogError> {
        let mut chosen = BTreeMap::<Partition, Vec<&Change>>::new();
        for change in changes {
            chosen.entry(by_key(&change.key, self.partitions)).or_default().push(change);
        }
        // An empty record with a key is a deletion.
        let row = |change: &&Change| change.row.clone().unwrap_or_default();
        let parts: Parts = chosen.iter().map(|(&p, changes)| (p, changes.iter().map(row).collect())).collect();
        let keys = |changes: &Vec<&Change>| changes.iter().map(|change| &change.key).collect::<Payloads>();
        let keys: Keys = chosen.iter().map(|(&p, changes)| (p, keys(changes))).collect();
        match &self.outlet {
            Some(outlet) => outlet.write_records(&parts, &keys),
            None => self.log.append(&self.name, Append { parts, keys, idempotency: None }).map(drop),
        }
    }

    /// Reads all that there is: of each record the key, and the value unless it is a deletion.
    pub fn read(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) -> Result<(), LogError> {
        let bounds = self.log.bounds(&self.name)?;
        let from = bounds.iter().map(|(&partition, held)| (partition, held.start)).collect();
        let ends = bounds.into_iter().map(|(partition, held)| (partition, held.end)).collect();
        self.read_to(&from, &ends, &mut each)
    }

    /// Reads the last records of each partition, back to one with a value, and says whether some were deleted.
    pub fn read_last(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) -> Result<bool, LogError> {
        let bounds = self.log.bounds(&self.name)?;
        for (&partition, held) in &bounds {
            let (mut tail, mut end, mut found) = (TAIL, held.end, false);
            while !found && end > held.start {
                let start = end.saturating_sub(tail).max(held.start);
                let (from, to) = (Positions::from([(partition, start)]), Positions::from([(partition, end)]));
                self.read_to(&from, &to, &mut |key, value| {
                    found |= value.is_some();
                    each(key, value);
                })?;
                (end, tail) = (start, tail * 8);
            }
        }
        Ok(bounds.values().any(|held| held.start > 0))
    }

    fn read_to(
        &self,
        from: &Positions,
        ends: &Positions,
        each: &mut impl FnMut(&[u8], Option<&[u8]>),
    ) -> Result<(), LogError> {
        let mut reader = self.log.reader(&self.name, from)?;
        reader.bring(Extras { keys: true, headers: false });
        let is_behind = |reader: &dyn LogReader| {
            let at = reader.positions();
            let next = |partition: &Partition| -> Offset { at.get(partition).copied().unwrap_or(0) };
            ends.iter().any(|(partition, &end)| next(partition) < end)
        };
        while is_behind(&*reader) {
            if *self.shutdown.borrow() {
                return Err(LogError::Closed);
            }
            // A broker may be away: it is waited for.
            let Some(batch) = reader.poll(LIMIT, WAIT)? else { continue };
            for (i, row) in batch.payloads.iter().enumerate() {
                let key = batch.keys.as_ref().map_or(&[][..], |keys| keys.get(i));
                each(key, Some(row).filter(|row| !row.is_empty()));
            }
        }
        Ok(())
    }
}
