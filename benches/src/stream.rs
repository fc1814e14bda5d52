//! The stream that the benchmarks read: tweets of about 175 bytes over 100,000 hashtags in a Zipf distribution.

use std::sync::Arc;

use anabranch::failure::Failure;
use anabranch_log::{Append, Log, Payloads};
use anabranch_plan::sql;
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Catalog;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// The view that is measured, over its table.
pub const SQL: &str = r"
CREATE TABLE tweets (id TEXT, user_id TEXT, text TEXT, timestamp TIMESTAMP NOT NULL)
WITH (topic = 'tweets', event_time = 'timestamp', watermark = '5 seconds');
CREATE MATERIALIZED VIEW trending_hashtags WITH (allowed_lateness = '10 minutes') AS
SELECT window_start, window_end, hashtag, count(*) AS mentions
FROM HOP(tweets, timestamp, INTERVAL '1 minute', INTERVAL '5 minutes')
CROSS JOIN UNNEST(regexp_extract_all(lower(text), '#\w+')) AS h(hashtag)
GROUP BY window_start, window_end, hashtag
ORDER BY mentions DESC LIMIT 100;
";

/// 2024-01-15T00:00:00Z
const START: Micros = 1_705_276_800_000_000;
const HASHTAGS: u32 = 100_000;

/// The catalog of [`SQL`].
pub fn catalog() -> Result<Arc<Catalog>, Failure> {
    planned(SQL)
}

/// The catalog of a benchmark's tables and views.
pub fn planned(sql: &str) -> Result<Arc<Catalog>, Failure> {
    let catalog = sql::plan(&[("bench.sql".to_owned(), sql.to_owned())]);
    Ok(Arc::new(catalog.map_err(|errors| Failure::new(errors.iter().map(ToString::to_string).collect::<String>()))?))
}

/// A generator of the stream. The same seed gives the same events.
pub struct Tweets {
    random: StdRng,
    tags: Zipf<f64>,
    next: u64,
    /// Event time from one event to the next.
    step: Micros,
}

impl Tweets {
    /// `events` events over an hour of event time.
    pub fn new(events: u64) -> Self {
        let tags = Zipf::new(f64::from(HASHTAGS), 1.0).expect("a positive count and exponent");
        let step = (3_600_000_000 / events.max(1) as i64).max(1);
        Self { random: StdRng::seed_from_u64(7), tags, next: 0, step }
    }

    /// The next `count` events, one JSON object each.
    pub fn take(&mut self, count: u64) -> Payloads {
        let mut line = String::with_capacity(256);
        let lines = (0..count).map(|_| {
            self.write(&mut line);
            line.clone()
        });
        lines.collect()
    }

    fn write(&mut self, line: &mut String) {
        use std::fmt::Write;
        let (id, user) = (self.next, self.random.random_range(0..50_000));
        // Up to two seconds out of order.
        let time = START + id as i64 * self.step - self.random.random_range(0..2_000_000);
        line.clear();
        let _ = write!(
            line,
            r#"{{"event_type":"tweet","id":"{}","timestamp":"{}","user_id":"user_{user:05}","text":"#,
            901_656_910_939_770_000 + id,
            format_timestamp(time / 1_000 * 1_000),
        );
        let _ = write!(line, "\"Watching this one live #Tag{}", self.tags.sample(&mut self.random) as u32);
        if id % 3 == 0 {
            let _ = write!(line, " and #Tag{}", self.tags.sample(&mut self.random) as u32);
        }
        line.push_str(" tonight with everyone\"}");
        self.next += 1;
    }

    /// Appends `events` events to a topic, to its partitions in turn.
    pub fn fill(log: &dyn Log, topic: &str, partitions: u32, events: u64) -> Result<(), Failure> {
        let mut tweets = Self::new(events);
        let mut rest = events;
        let mut turns = (0..partitions).cycle();
        while rest > 0 {
            let count = rest.min(20_000);
            let partition = turns.next().unwrap_or(0);
            log.append(topic, Append { parts: vec![(partition, tweets.take(count))], ..Append::default() })?;
            rest -= count;
        }
        Ok(())
    }
}
