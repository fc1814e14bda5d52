//! How the records of tables are read that one pipeline folds.

use std::sync::Arc;

use anabranch_engine::edition::{Editions, Reading};
use anabranch_exchange::reading;
use anabranch_plan::schema::Table;
use tokio::sync::watch;

/// How the records of each table are read, by a pipeline and by now.
#[derive(Clone)]
pub(crate) struct Readings(Vec<OfTable>);

#[derive(Clone)]
struct OfTable {
    table: Arc<Table>,
    own: Reading,
    now: watch::Receiver<Reading>,
}

impl OfTable {
    /// Whether what is folded by the own reading isn't what would be folded by now. A definition that is in force elsewhere is no reason:
    /// the one that was in force here is folded by as long as the process lives.
    fn is_outdated(&mut self) -> bool {
        let (own, now) = (&self.own, self.now.borrow_and_update());
        let is_other = || now.editions.refusal(&self.table).is_none() && !own.editions.folds_as(&now.editions);
        own.rebuilds != now.rebuilds || is_other()
    }
}

impl Readings {
    /// How tables are read now.
    pub fn of(tables: &[Arc<Table>], readings: &reading::Readings) -> Self {
        let of_table = |table: &Arc<Table>| {
            let mut now = readings.of(&table.name);
            let own = now.borrow_and_update().clone();
            OfTable { table: table.clone(), own, now }
        };
        Self(tables.iter().map(of_table).collect())
    }

    /// Why one of the tables isn't read, if there is a reason.
    pub fn refusal(&self) -> Option<String> {
        self.0.iter().find_map(|it| it.own.editions.refusal(&it.table))
    }

    /// Whether a table is read otherwise by now, in whatever way.
    pub fn have_changed(&self) -> bool {
        self.0.iter().any(|it| *it.now.borrow() != it.own)
    }

    /// Whether a table is read otherwise by now, so that what was folded can't stay.
    pub fn are_outdated(&mut self) -> bool {
        self.0.iter_mut().any(|it| it.now.has_changed().unwrap_or(false) && it.is_outdated())
    }

    /// How often the tables' archives have been rebuilt, in sum.
    pub fn rebuilds(&self) -> u64 {
        self.0.iter().map(|it| it.own.rebuilds).sum()
    }

    /// The tables, each with the definitions that its records are read by.
    pub fn tables(&self) -> Vec<(Arc<Table>, Editions)> {
        self.0.iter().map(|it| (it.table.clone(), it.own.editions.clone())).collect()
    }
}
