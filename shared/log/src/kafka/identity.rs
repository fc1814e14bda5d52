//! What tells a topic from all others, also from one of the same name in its place: the cluster's id and its own. The latter
//! `rust-rdkafka` doesn't hand out.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use rdkafka::bindings as native;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::{RDKafka, RDKafkaRespErr};

use super::{Cluster, TIMEOUT, backend};
use crate::LogError;
use crate::lineage::Mark;

const NO_ERROR: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

impl Cluster {
    /// The mark of a topic, as the brokers say now.
    pub(super) fn mark(&self, topic: &str) -> Result<Mark, LogError> {
        let step = || format!("asking for the identity of topic `{topic}`");
        let failed = |code| backend(step(), KafkaError::AdminOp(code));
        let full = CString::new(self.full(topic)).unwrap_or_default();
        let client = self.admin.inner();
        let cluster = client.fetch_cluster_id(TIMEOUT).ok_or_else(|| failed(RDKafkaErrorCode::OperationTimedOut))?;
        let id = topic_id(client.native_ptr(), &full).map_err(failed)?;
        Ok(Mark::new(format!("kafka:{cluster}:{id}")))
    }
}

#[expect(
    unsafe_code,
    reason = "what librdkafka makes here is ours and given back once; what a result holds lives as long as it"
)]
fn topic_id(client: *mut RDKafka, topic: &CStr) -> Result<String, RDKafkaErrorCode> {
    let wait = c_int::try_from(TIMEOUT.as_millis()).unwrap_or(c_int::MAX);
    unsafe {
        let mut names = [topic.as_ptr()];
        let topics = native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = native::rd_kafka_AdminOptions_new(client, operation);
        // Out of range is all that can be wrong with it.
        native::rd_kafka_AdminOptions_set_request_timeout(options, wait, ptr::null_mut(), 0);
        let queue = native::rd_kafka_queue_new(client);
        native::rd_kafka_DescribeTopics(client, topics, options, queue);
        // The request ends by its own timeout, which is answered as well.
        let event = native::rd_kafka_queue_poll(queue, wait.saturating_mul(2));
        let id = if event.is_null() { Err(RDKafkaErrorCode::OperationTimedOut) } else { described(event) };
        if !event.is_null() {
            native::rd_kafka_event_destroy(event);
        }
        native::rd_kafka_queue_destroy(queue);
        native::rd_kafka_AdminOptions_destroy(options);
        native::rd_kafka_TopicCollection_destroy(topics);
        id
    }
}

/// The topic's id in the answer.
#[expect(unsafe_code, reason = "the caller has the event, and what it holds lives as long")]
unsafe fn described(event: *mut native::rd_kafka_event_t) -> Result<String, RDKafkaErrorCode> {
    unsafe {
        let error = native::rd_kafka_event_error(event);
        if error != NO_ERROR {
            return Err(error.into());
        }
        let mut count = 0;
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        }
        let error = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(*topics));
        if error != NO_ERROR {
            return Err(error.into());
        }
        let id = native::rd_kafka_TopicDescription_topic_id(*topics);
        text(native::rd_kafka_Uuid_base64str(id)).ok_or(RDKafkaErrorCode::UnknownTopicId)
    }
}

#[expect(unsafe_code, reason = "librdkafka's texts are C strings")]
unsafe fn text(text: *const c_char) -> Option<String> {
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Has a client say that it has failed for good.
#[cfg(test)]
#[expect(unsafe_code, reason = "librdkafka's own means of testing this; it copies the text")]
pub(super) fn fail_for_good(client: *mut RDKafka) {
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    unsafe { native::rd_kafka_test_fatal_error(client, lost, c"as a test".as_ptr()) };
}
