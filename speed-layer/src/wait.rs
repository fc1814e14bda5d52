//! Waiting on a thread: for what others do, or for time to pass.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// How long a log that fails is left alone: at first so long, then twice as long with each failure, up to a limit. It may
/// be away for as long as it takes; the lag shows it.
const PAUSE: Duration = Duration::from_millis(10);
const DOUBLINGS: u32 = 9;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits until one of these is done, and no longer than a time.
pub(crate) fn until_any<'a>(done: impl IntoIterator<Item = Pin<Box<dyn Future<Output = ()> + 'a>>>, time: Duration) {
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut done: Vec<_> = done.into_iter().collect();
    let begun = Instant::now();
    while !done.iter_mut().any(|done| done.as_mut().poll(&mut context).is_ready()) {
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Waits, but not through a shutdown.
pub(crate) fn wait(shutdown: &CancellationToken, time: Duration) {
    until_any([Box::pin(shutdown.cancelled()) as Pin<Box<dyn Future<Output = ()>>>], time);
}

/// How long a log that has failed so often in a row is left alone.
pub(crate) fn pause(failures: u32) -> Duration {
    PAUSE * 2_u32.pow(failures.min(DOUBLINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_its_time_or_with_a_shutdown_whichever_is_first() {
        let shutdown = CancellationToken::new();
        wait(&shutdown, Duration::from_millis(1));
        assert!(!shutdown.is_cancelled());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| wait(&shutdown, Duration::MAX));
            shutdown.cancel();
            waits.join().expect("it ends");
        });
        wait(&shutdown, Duration::MAX);
    }
}
