//! The consumer's queue, in batches: `rust-rdkafka` hands out one message at a time, and doesn't say at which offset a
//! partition ends.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

use super::closing::Closing;
use crate::clock::Micros;
use crate::position::{Offset, Partition};

const NO_ERROR: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A message that librdkafka has fetched, or what it has to say of a partition.
pub(crate) struct Message(NonNull<native::rd_kafka_message_t>);

#[expect(unsafe_code, reason = "a message is used by one thread at a time, whichever that is")]
unsafe impl Send for Message {}

impl Drop for Message {
    #[expect(unsafe_code, reason = "the message is ours, and given back once")]
    fn drop(&mut self) {
        unsafe { native::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl Message {
    #[expect(unsafe_code, reason = "the message lives as long as `self`")]
    fn get(&self) -> &native::rd_kafka_message_t {
        unsafe { self.0.as_ref() }
    }

    /// What is wrong with the partition, or that it has no more: then the offset is its end.
    pub fn error(&self) -> Option<RDKafkaErrorCode> {
        let error = self.get().err;
        (error != NO_ERROR).then(|| error.into())
    }

    pub fn partition(&self) -> Partition {
        self.get().partition.unsigned_abs()
    }

    pub fn offset(&self) -> Offset {
        self.get().offset.unsigned_abs()
    }

    /// The record's bytes; none of a tombstone.
    #[expect(unsafe_code, reason = "librdkafka says where the payload is and how long")]
    pub fn payload(&self) -> &[u8] {
        let message = self.get();
        if message.payload.is_null() {
            return &[];
        }
        unsafe { std::slice::from_raw_parts(message.payload.cast::<u8>(), message.len) }
    }

    /// The record's key; empty if it has none.
    #[expect(unsafe_code, reason = "librdkafka says where the key is and how long")]
    pub fn key(&self) -> &[u8] {
        let message = self.get();
        if message.key.is_null() {
            return &[];
        }
        unsafe { std::slice::from_raw_parts(message.key.cast::<u8>(), message.key_len) }
    }

    /// The record's headers as the text of a JSON object; empty if it has none. Of a name that comes twice the last value
    /// counts. A value that isn't UTF-8 is written in base64.
    #[expect(unsafe_code, reason = "librdkafka's headers live as long as the message, names are C strings")]
    pub fn headers(&self) -> String {
        let mut headers = std::ptr::null_mut();
        if unsafe { native::rd_kafka_message_headers(self.0.as_ptr(), &raw mut headers) } != NO_ERROR {
            return String::new();
        }
        let mut object = serde_json::Map::new();
        for i in 0.. {
            let (mut name, mut value, mut length) = (std::ptr::null(), std::ptr::null(), 0);
            let got =
                unsafe { native::rd_kafka_header_get_all(headers, i, &raw mut name, &raw mut value, &raw mut length) };
            if got != NO_ERROR {
                break;
            }
            let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned();
            let value = (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length) });
            let text = |value: &[u8]| std::str::from_utf8(value).map_or_else(|_| BASE64.encode(value), str::to_owned);
            object.insert(name, value.map(text).into());
        }
        serde_json::Value::Object(object).to_string()
    }

    /// Whether its time is its producer's, or it has none.
    #[expect(unsafe_code, reason = "the function reads the message and writes the kind of time")]
    pub fn has_own_time(&self) -> bool {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        unsafe { native::rd_kafka_message_timestamp(self.0.as_ptr(), &raw mut kind) };
        kind != native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME
    }

    /// The record's time; 0 if it has none.
    #[expect(unsafe_code, reason = "the function only reads the message")]
    pub fn time(&self) -> Micros {
        let millis = unsafe { native::rd_kafka_message_timestamp(self.0.as_ptr(), std::ptr::null_mut()) };
        millis.max(0).saturating_mul(1_000)
    }
}

/// The queue of all partitions assigned to a consumer.
pub(crate) struct Queue {
    queue: NonNull<native::rd_kafka_queue_t>,
    /// The queue is the consumer's, so it has to live as long.
    consumer: Closing<Arc<BaseConsumer>>,
}

#[expect(unsafe_code, reason = "librdkafka's queues may be used by any thread")]
unsafe impl Send for Queue {}

impl Drop for Queue {
    #[expect(unsafe_code, reason = "the reference was ours")]
    fn drop(&mut self) {
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

impl Queue {
    /// The queue of a consumer with a group's name.
    #[expect(unsafe_code, reason = "a reference of our own, given back by `drop`")]
    pub fn of(consumer: Arc<BaseConsumer>) -> Option<Self> {
        let queue = unsafe { native::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Some(Self { queue: NonNull::new(queue)?, consumer: Closing::new(consumer) })
    }

    /// Takes up to `most` messages, waiting for the first. `None` if there is none after that.
    #[expect(unsafe_code, reason = "librdkafka fills as many pointers as it says")]
    pub fn take(&self, most: usize, wait: Duration) -> Vec<Message> {
        let mut taken: Vec<*mut native::rd_kafka_message_t> = Vec::with_capacity(most);
        let count = |into: &mut Vec<_>, most: usize, wait: i32| {
            let free: &mut [std::mem::MaybeUninit<*mut native::rd_kafka_message_t>] = into.spare_capacity_mut();
            let count = unsafe {
                native::rd_kafka_consume_batch_queue(self.queue.as_ptr(), wait, free.as_mut_ptr().cast(), most)
            };
            let count = usize::try_from(count).unwrap_or(0);
            unsafe { into.set_len(into.len() + count) };
            count
        };
        // With a time to wait, librdkafka would wait for all of them.
        if count(&mut taken, most, 0) == 0 && !wait.is_zero() && most > 0 {
            let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1);
            if count(&mut taken, 1, wait) == 1 && most > 1 {
                count(&mut taken, most - 1, 0);
            }
        }
        taken.into_iter().filter_map(NonNull::new).map(Message).collect()
    }

    /// The consumer whose queue it is.
    pub fn consumer(&self) -> &BaseConsumer {
        &self.consumer
    }

    /// The end of a partition as the broker last said with what it delivered.
    #[expect(unsafe_code, reason = "librdkafka writes two numbers")]
    pub fn end(&self, topic: &std::ffi::CStr, partition: Partition) -> Option<Offset> {
        let (mut low, mut high) = (-1, -1);
        let error = unsafe {
            native::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                topic.as_ptr(),
                super::numbered(partition),
                &raw mut low,
                &raw mut high,
            )
        };
        let known = error == NO_ERROR && high >= 0;
        known.then(|| high.unsigned_abs())
    }
}
