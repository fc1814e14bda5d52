//! Closing consumers, which may take for ever.
//!
//! A consumer that is dropped is polled until librdkafka has closed it. That takes as long as a broker is away whose partitions it has,
//! and at times for ever (confluentinc/librdkafka#4884 and fede1024/rust-rdkafka#509 are of this kind). So each is closed by a thread
//! of its own, and whoever goes on working doesn't wait for it.

use std::sync::mpsc::{Receiver, sync_channel};

/// Drops what is the last to hold a consumer. The channel hangs up once that is done.
pub(super) fn close<T: Send + 'static>(consumer: T) -> Receiver<()> {
    let (done, closed) = sync_channel(1);
    let work = move || {
        fail::fail_point!("kafka::close");
        drop(consumer);
        drop(done);
    };
    if let Err(error) = std::thread::Builder::new().name("close-consumer".to_owned()).spawn(work) {
        tracing::warn!(%error, "there is no thread to close a consumer with; it was closed at once");
    }
    closed
}
