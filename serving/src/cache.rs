//! Finished answers, kept while what they were made of stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashlink::LinkedHashMap;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// What a value takes at least.
const LEAST_WEIGHT: usize = 64;

/// Kept values by question. A value is answered as long as its stamp, which says what it was made of, is the one asked
/// for. Of identical questions that miss at once, one computes and the others wait for it.
#[derive(Debug)]
pub struct Cache<S, V> {
    inner: Mutex<Inner<S, V>>,
    max_weight: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
struct Inner<S, V> {
    /// What was used longest ago comes first.
    slots: LinkedHashMap<String, Slot<S, V>>,
    weight: usize,
}

#[derive(Debug)]
struct Slot<S, V> {
    stamp: S,
    value: Arc<OnceCell<Arc<V>>>,
    weight: usize,
}

impl<S: Copy + Eq, V> Cache<S, V> {
    /// Keeps values up to a total weight.
    pub fn new(max_weight: usize) -> Self {
        let inner = Inner { slots: LinkedHashMap::new(), weight: 0 };
        Self { inner: Mutex::new(inner), max_weight, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// The kept value, if it is there and finished.
    pub fn get(&self, question: &str, stamp: S) -> Option<Arc<V>> {
        let mut inner = self.inner.lock();
        let slot = inner.slots.to_back(question).filter(|slot| slot.stamp == stamp)?;
        let value = slot.value.get()?.clone();
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(value)
    }

    /// The kept value, or else what `compute` makes, kept. A failure is not kept. `weigh` says how much of the bound a
    /// value takes.
    pub async fn get_or_compute<E, F: Future<Output = Result<V, E>>>(
        &self,
        question: String,
        stamp: S,
        weigh: impl FnOnce(&V) -> usize,
        compute: impl FnOnce() -> F,
    ) -> Result<Arc<V>, E> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let cell = self.cell(&question, stamp);
        let mut computed = false;
        let value = cell
            .get_or_try_init(|| async {
                computed = true;
                compute().await.map(Arc::new)
            })
            .await?
            .clone();
        if computed {
            self.settle(&question, stamp, weigh(&value));
        }
        Ok(value)
    }

    /// Keeps a value, if it isn't most of what may be kept.
    pub fn keep(&self, question: &str, stamp: S, value: Arc<V>, weight: usize) {
        if weight > self.max_weight / 2 {
            return;
        }
        let cell = self.cell(question, stamp);
        if cell.set(value).is_ok() {
            self.settle(question, stamp, weight);
        }
    }

    fn cell(&self, question: &str, stamp: S) -> Arc<OnceCell<Arc<V>>> {
        let mut inner = self.inner.lock();
        if let Some(slot) = inner.slots.get(question).filter(|slot| slot.stamp == stamp) {
            return slot.value.clone();
        }
        let value = Arc::new(OnceCell::new());
        // Until it is settled it weighs what its question does, so unfinished ones are bounded as well.
        let slot = Slot { stamp, value: value.clone(), weight: question.len() + LEAST_WEIGHT };
        inner.weight += slot.weight;
        if let Some(old) = inner.slots.insert(question.to_owned(), slot) {
            inner.weight -= old.weight;
        }
        inner.evict(self.max_weight);
        value
    }

    fn settle(&self, question: &str, stamp: S, weight: usize) {
        let mut inner = self.inner.lock();
        let weight = question.len() + weight.max(LEAST_WEIGHT);
        let Some(slot) = inner.slots.get_mut(question).filter(|slot| slot.stamp == stamp) else { return };
        let before = std::mem::replace(&mut slot.weight, weight);
        inner.weight = inner.weight - before + weight;
        if weight > self.max_weight {
            // It would drop all others before it goes.
            inner.slots.remove(question);
            inner.weight -= weight;
        }
        inner.evict(self.max_weight);
    }

    /// How often a kept value was answered, and how often not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

impl<S, V> Inner<S, V> {
    /// Drops what was used longest ago until the bound holds.
    fn evict(&mut self, max_weight: usize) {
        while self.weight > max_weight
            && let Some((_, slot)) = self.slots.pop_front()
        {
            self.weight -= slot.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test]
    async fn identical_questions_compute_once_until_the_stamp_changes() {
        let cache: Cache<u64, u64> = Cache::new(10_000);
        let computed = AtomicUsize::new(0);
        let ask = |stamp| {
            cache.get_or_compute(
                "q".into(),
                stamp,
                |_| 1,
                || async {
                    computed.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    Ok::<_, ()>(7)
                },
            )
        };
        let (a, b, c) = tokio::join!(ask(1), ask(1), ask(1));
        assert_eq!((a, b, c), (Ok(Arc::new(7)), Ok(Arc::new(7)), Ok(Arc::new(7))));
        assert_eq!(computed.load(Ordering::SeqCst), 1);
        assert!(cache.get("q", 1).is_some());
        assert!(cache.get("q", 2).is_none());
        ask(2).await.expect("computes");
        assert_eq!(computed.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_was_used_longest_ago_is_dropped_first() {
        let cache: Cache<u64, u64> = Cache::new(1_000);
        for question in ["a", "b", "c"] {
            cache.get_or_compute(question.into(), 0, |_| 400, || async { Ok::<_, ()>(1) }).await.expect("computes");
            cache.get("a", 0);
        }
        assert!(cache.get("a", 0).is_some());
        assert!(cache.get("b", 0).is_none());
        assert!(cache.get("c", 0).is_some());
        let failed = cache.get_or_compute("d".into(), 0, |_| 1, || async { Err::<u64, _>("no") }).await;
        assert_eq!(failed, Err("no"));
        assert!(cache.get("d", 0).is_none());
    }

    #[test]
    fn however_much_is_asked_the_bound_holds_and_what_is_asked_again_stays() {
        let cache: Cache<u64, usize> = Cache::new(50_000);
        for i in 0..20_000 {
            cache.keep(&i.to_string(), 0, Arc::new(i), 100);
            cache.get("0", 0);
        }
        let held = |inner: &Inner<u64, usize>| (inner.weight, inner.slots.len());
        let (weight, kept) = held(&cache.inner.lock());
        assert!((49_000..=50_000).contains(&weight) && kept > 400, "{weight} of {kept}");
        assert!(cache.get("0", 0).is_some() && cache.get("1", 0).is_none());
        // What alone would take most of the room isn't kept, and drops nothing.
        cache.keep("large", 0, Arc::new(0), 30_000);
        assert!(cache.get("large", 0).is_none() && cache.inner.lock().slots.len() == kept);
    }

    #[tokio::test]
    async fn a_value_above_the_bound_is_answered_and_drops_no_other() {
        let cache: Cache<u64, u64> = Cache::new(1_000);
        cache.get_or_compute("small".into(), 0, |_| 400, || async { Ok::<_, ()>(1) }).await.expect("computes");
        let large = cache.get_or_compute("large".into(), 0, |_| 2_000, || async { Ok::<_, ()>(2) }).await;
        assert_eq!(large, Ok(Arc::new(2)));
        assert!(cache.get("large", 0).is_none() && cache.get("small", 0).is_some());
    }
}
