//! Closing clients, which may take for ever.
//!
//! A consumer that is dropped is polled until librdkafka has closed it. That takes as long as a broker is away whose partitions it has,
//! and at times for ever (confluentinc/librdkafka#4884 and fede1024/rust-rdkafka#509 are of this kind). A producer waits for its threads
//! (confluentinc/librdkafka#4519). So each is closed by a thread of its own, and whoever goes on working doesn't wait for it.

use std::ops::Deref;
use std::sync::mpsc::{Receiver, sync_channel};

/// Drops what is the last to hold a client. The channel hangs up once that is done.
pub(super) fn close<T: Send + 'static>(client: T) -> Receiver<()> {
    let (done, closed) = sync_channel(1);
    let work = move || {
        fail::fail_point!("kafka::close");
        drop(client);
        drop(done);
    };
    if let Err(error) = std::thread::Builder::new().name("close-client".to_owned()).spawn(work) {
        tracing::warn!(%error, "there is no thread to close a client of Kafka with; it was closed at once");
    }
    closed
}

/// A client that is closed by a thread of its own once it is dropped.
pub(super) struct Closing<T: Send + 'static>(Option<T>);

impl<T: Send> Closing<T> {
    pub fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send> Deref for Closing<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl<T: Send> Drop for Closing<T> {
    fn drop(&mut self) {
        self.0.take().map(close);
    }
}
