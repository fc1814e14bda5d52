//! How often something took how long.

use parking_lot::Mutex;

/// Counts values by size.
#[derive(Debug)]
pub struct Histogram(Mutex<Counts>);

/// What a histogram has counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// How many values were at most so large, and above the bound before. The last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// A histogram with these upper bounds, which rise, and an infinite one behind them.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let bounds = bounds.into_iter().chain([f64::INFINITY]);
        Self(Mutex::new(Counts { buckets: bounds.map(|bound| (bound, 0)).collect(), sum: 0.0 }))
    }

    /// Counts a value so many times.
    pub fn observe(&self, value: f64, times: u64) {
        let mut counts = self.0.lock();
        counts.sum += value * times as f64;
        if let Some((_, count)) = counts.buckets.iter_mut().find(|(bound, _)| value <= *bound) {
            *count += times;
        }
    }

    /// What was counted so far.
    pub fn read(&self) -> Counts {
        self.0.lock().clone()
    }
}

impl Counts {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_below_the_first_bound_that_it_does_not_exceed() {
        let histogram = Histogram::new([0.1, 1.0]);
        for (value, times) in [(0.0, 1), (0.1, 2), (0.2, 4), (1.5, 8)] {
            histogram.observe(value, times);
        }
        let counts = histogram.read();
        assert_eq!(counts.buckets, [(0.1, 3), (1.0, 4), (f64::INFINITY, 8)]);
        assert!((counts.sum - 13.0).abs() < 1e-9, "{}", counts.sum);
        assert_eq!(counts.count(), 15);
    }
}
