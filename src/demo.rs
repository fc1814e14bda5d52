//! A lively stream for a newcomer: hashtags that rise and fall in a Zipf distribution, and page views of which some
//! come late.

use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::ingest::{Form, Ingest};
use anabranch_log::clock::Clock;
use anabranch_plan::time::{Micros, format_timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const SECOND: Micros = 1_000_000;
const TICK: Duration = Duration::from_millis(50);

const HASHTAGS: [&str; 48] = [
    "#rust",
    "#sunrise",
    "#worldcup",
    "#coffee",
    "#music",
    "#opensource",
    "#climate",
    "#football",
    "#cinema",
    "#travel",
    "#gardening",
    "#startup",
    "#photography",
    "#space",
    "#election",
    "#books",
    "#marathon",
    "#recipes",
    "#chess",
    "#gaming",
    "#fashion",
    "#cycling",
    "#astronomy",
    "#jazz",
    "#hiking",
    "#startrek",
    "#tennis",
    "#painting",
    "#kafka",
    "#streaming",
    "#weekend",
    "#monday",
    "#cats",
    "#dogs",
    "#sailing",
    "#poetry",
    "#robotics",
    "#history",
    "#vegan",
    "#knitting",
    "#surfing",
    "#volcano",
    "#aurora",
    "#festival",
    "#theatre",
    "#biology",
    "#trains",
    "#architecture",
];

const PAGES: [&str; 14] = [
    "/",
    "/products",
    "/products/laptop",
    "/products/phone",
    "/products/headphones",
    "/cart",
    "/checkout",
    "/search",
    "/blog",
    "/blog/launch",
    "/about",
    "/help",
    "/account",
    "/api/status",
];

/// The stream's generator. The same seed and times give the same events.
pub struct Demo {
    random: StdRng,
    tags: Zipf<f64>,
    pages: Zipf<f64>,
    sequence: u64,
}

impl Demo {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        let zipf = |n: usize| Zipf::new(n as f64, 1.1).expect("a positive count and exponent");
        Self { random: StdRng::seed_from_u64(seed), tags: zipf(HASHTAGS.len()), pages: zipf(PAGES.len()), sequence: 0 }
    }

    /// The hashtag at a rank just now. Every 20 seconds another hashtag enters at the top and pushes the rest down.
    fn hashtag(&mut self, now: Micros) -> &'static str {
        let rank = self.tags.sample(&mut self.random) as usize - 1;
        let era = now.div_euclid(20 * SECOND) as usize;
        // A stride that shares no factor with the number of hashtags visits them all before any comes again.
        let newest = era.wrapping_mul(11) % HASHTAGS.len();
        HASHTAGS[(newest + HASHTAGS.len() - (rank * 11) % HASHTAGS.len()) % HASHTAGS.len()]
    }

    /// A tweet as one line of JSON.
    pub fn tweet(&mut self, now: Micros) -> String {
        self.sequence += 1;
        let first = self.hashtag(now);
        let text = match self.random.random_range(0..10) {
            0..=5 => format!("watching {first} right now"),
            6..=8 => format!("{first} meets {}", self.hashtag(now)),
            _ => "nothing to see here".to_owned(),
        };
        let time = now - self.random.random_range(0..2 * SECOND);
        json!({
            "event_type": "tweet",
            "id": self.sequence.to_string(),
            "timestamp": format_timestamp(time),
            "user_id": format!("user_{:04x}", self.random.random_range(0..5_000)),
            "text": text,
        })
        .to_string()
    }

    /// A page view as one line of JSON. One in fifty comes up to two minutes late, one in five hundred a quarter of an
    /// hour.
    pub fn page_view(&mut self, now: Micros) -> String {
        let delay = match self.random.random_range(0..500) {
            0 => 15 * 60 * SECOND,
            1..=10 => self.random.random_range(0..120 * SECOND),
            _ => self.random.random_range(0..3 * SECOND),
        };
        let page = PAGES[self.pages.sample(&mut self.random) as usize - 1];
        let status = match self.random.random_range(0..40) {
            0 => 500,
            1 | 2 => 404,
            _ => 200,
        };
        json!({
            "event_type": "page_view",
            "user_id": format!("user_{:04x}", self.random.random_range(0..800)),
            "method": "GET",
            "url": page,
            "status": status,
            "bytes": self.random.random_range(400..60_000),
            "referrer": null,
            "user_agent": "demo",
            "timestamp": format_timestamp(now - delay),
        })
        .to_string()
    }
}

/// Feeds `tweets` and `page_views` at about `rate` events a second until told to stop. A topic that the project doesn't
/// have is left out.
pub async fn run(ingest: Arc<Ingest>, topics: Vec<String>, rate: u32, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let mut demo = Demo::new(clock.now() as u64);
    let mut ticks = tokio::time::interval(TICK);
    let mut owed = 0.0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        // The rate breathes, so that a chart of it is worth looking at.
        let wave = 1.0 + 0.5 * (clock.now() as f64 / 17e6).sin();
        owed += f64::from(rate) * wave * TICK.as_secs_f64();
        let count = owed as usize;
        owed -= count as f64;
        for (i, topic) in topics.iter().enumerate() {
            // Two thirds tweets, one third page views.
            let share = if topics.len() == 1 {
                count
            } else if i == 0 {
                count - count / 3
            } else {
                count / 3
            };
            let now = clock.now();
            let lines = (0..share).map(|_| if topic == "tweets" { demo.tweet(now) } else { demo.page_view(now) });
            let body = lines.collect::<Vec<_>>().join("\n");
            let (ingest, topic) = (Arc::clone(&ingest), topic.clone());
            let outcome =
                tokio::task::spawn_blocking(move || ingest.ingest(&topic, body.as_bytes(), Form::Any, None)).await;
            if let Ok(Err(error)) = outcome {
                tracing::warn!(%error, "the demo stream pauses");
            }
        }
    }
}
