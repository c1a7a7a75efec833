//! What Kafka says of topics: which topic it is behind a name, its partitions, and what we may do with it.
//!
//! The client library has no safe function for it. Only a topic's id tells one that was deleted and created
//! again from the one that was read.

#![allow(unsafe_code, reason = "DescribeTopics is only in the C interface")]

use std::ffi::{CStr, CString, c_char};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::bindings as c;
use rdkafka::client::Client;
use rdkafka::types::RDKafkaErrorCode;

/// How long one wait for the answer takes, after which it is looked whether it is still wanted.
const WAIT_MS: i32 = 100;

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Tells it from another topic of the same name; 0 if the broker has no ids.
    pub id: u128,
    /// Its partitions.
    pub partitions: Vec<i32>,
    /// What is not allowed of that which we need, if that was asked for and the broker knows.
    pub forbidden: Vec<&'static str>,
    /// Why there is no description.
    pub error: Option<RDKafkaErrorCode>,
}

/// What is asked of Kafka.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Topics.
    pub names: &'a [&'a str],
    /// Whether also what we may do with them.
    pub operations: bool,
    /// Who is asked; if nobody, the controller.
    pub broker: Option<i32>,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// The broker, if there is only one. The built-in one is no controller, so it must be asked by its number.
pub fn only_broker<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> Option<i32> {
    let metadata = client.fetch_metadata(Some(topic), timeout).ok()?;
    match metadata.brokers() {
        [broker] => Some(broker.id()),
        _ => None,
    }
}

/// Asks for topics by name. `wanted` ends the waiting early. Blocks; the error is why no answer came.
pub fn describe<C: ClientContext>(
    client: &Client<C>,
    question: Question,
    wanted: impl Fn() -> bool,
) -> Result<Vec<Description>, String> {
    let Question { names, operations, broker, timeout } = question;
    let names: Vec<CString> =
        names.iter().map(|name| CString::new(*name)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let deadline = Instant::now() + timeout;
    // SAFETY: `client` and `names` outlive the calls; each object made here is destroyed once, after its last
    // use. librdkafka copies the names and the options; an answer that comes after the queue is destroyed is
    // dropped by it.
    unsafe {
        let rk = client.native_ptr();
        let options =
            c::rd_kafka_AdminOptions_new(rk, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let milliseconds = timeout.as_millis().min(i32::MAX as u128) as i32;
        let mut text = [0 as c_char; 1];
        c::rd_kafka_AdminOptions_set_request_timeout(options, milliseconds, text.as_mut_ptr(), text.len());
        if let Some(broker) = broker {
            c::rd_kafka_AdminOptions_set_broker(options, broker, text.as_mut_ptr(), text.len());
        }
        if operations {
            let error = c::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !error.is_null() {
                c::rd_kafka_error_destroy(error);
            }
        }
        let topics = c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let queue = c::rd_kafka_queue_new(rk);
        c::rd_kafka_DescribeTopics(rk, topics, options, queue);
        c::rd_kafka_TopicCollection_destroy(topics);
        c::rd_kafka_AdminOptions_destroy(options);
        let mut event: *mut c::rd_kafka_event_t = std::ptr::null_mut();
        while event.is_null() && wanted() && Instant::now() < deadline {
            event = c::rd_kafka_queue_poll(queue, WAIT_MS);
        }
        let answer = match event.is_null() {
            true => Err(format!("no answer within {} s", timeout.as_secs())),
            false => read(event, operations),
        };
        if !event.is_null() {
            c::rd_kafka_event_destroy(event);
        }
        c::rd_kafka_queue_destroy(queue);
        answer
    }
}

/// SAFETY: `event` must be a live event.
unsafe fn read(event: *mut c::rd_kafka_event_t, operations: bool) -> Result<Vec<Description>, String> {
    // SAFETY: the event lives until the caller destroys it, and what is read here is owned by it.
    unsafe {
        if c::rd_kafka_event_error(event) != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(CStr::from_ptr(c::rd_kafka_event_error_string(event)).to_string_lossy().into_owned());
        }
        let result = c::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err("an answer to another question".into());
        }
        let mut count = 0;
        let topics = c::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        Ok((0..count).map(|i| description(*topics.add(i), operations)).collect())
    }
}

/// SAFETY: `topic` must be of a live event.
unsafe fn description(topic: *const c::rd_kafka_TopicDescription_t, operations: bool) -> Description {
    // SAFETY: as the caller promises; the arrays have the lengths that are told with them.
    unsafe {
        let error = c::rd_kafka_TopicDescription_error(topic);
        let code = if error.is_null() {
            c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        } else {
            c::rd_kafka_error_code(error)
        };
        let id = c::rd_kafka_TopicDescription_topic_id(topic);
        let id = match id.is_null() {
            true => 0,
            false => {
                let (high, low) =
                    (c::rd_kafka_Uuid_most_significant_bits(id), c::rd_kafka_Uuid_least_significant_bits(id));
                (u128::from(high as u64) << 64) | u128::from(low as u64)
            }
        };
        let mut count = 0;
        let partitions = c::rd_kafka_TopicDescription_partitions(topic, &mut count);
        let partitions =
            (0..count).map(|i| c::rd_kafka_TopicPartitionInfo_partition(*partitions.add(i))).collect();
        let mut forbidden = Vec::new();
        if operations {
            use c::rd_kafka_AclOperation_t as Operation;
            let mut count = 0;
            let allowed = c::rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
            let has = |operation| (0..count).any(|i| *allowed.add(i) == operation);
            // A broker that has no list of rights tells none.
            if !allowed.is_null() && count > 0 {
                let needed = [
                    ("read", Operation::RD_KAFKA_ACL_OPERATION_READ),
                    ("write", Operation::RD_KAFKA_ACL_OPERATION_WRITE),
                ];
                forbidden.extend(needed.iter().filter(|(_, o)| !has(*o)).map(|(name, _)| *name));
            }
        }
        let no_error = code == c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        Description {
            name: CStr::from_ptr(c::rd_kafka_TopicDescription_name(topic)).to_string_lossy().into_owned(),
            id,
            partitions,
            forbidden,
            error: (!no_error).then(|| code.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, Producer};

    use super::*;
    use crate::embedded::Broker;

    #[test]
    fn a_topic_tells_its_partitions_and_a_missing_one_that_it_is_missing() {
        let broker = Broker::start().unwrap();
        broker.create_topic("votes", 3).unwrap();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", broker.bootstrap_servers()).create().unwrap();
        let (client, timeout) = (producer.client(), Duration::from_secs(10));
        let broker = only_broker(client, "votes", timeout);
        assert!(broker.is_some());
        let question = Question { names: &["votes"], operations: true, broker, timeout };
        let found = describe(client, question, || true).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].partitions.len()), ("votes", 3));
        assert_eq!(found[0].error, None);
        let missing = describe(client, Question { names: &["nothing"], ..question }, || true).unwrap();
        assert_eq!(missing[0].error, Some(RDKafkaErrorCode::UnknownTopicOrPartition));
        let unwanted = describe(client, question, || false);
        assert!(unwanted.is_err(), "{unwanted:?}");
    }
}
