//! Which records Kafka will never take, why, and what to do about it.

use rdkafka::error::RDKafkaErrorCode as Code;

/// What to do about a record that Kafka will never take; none if it may take it later.
pub(super) fn remedy(code: Code) -> Option<String> {
    Some(match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => format!(
            "{code}: it is larger than the topic takes; raise the topic's max.message.bytes and restart, or let \
             the view's rows be smaller"
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            format!("{code}: there is no such topic; `tally topics` creates it")
        }
        Code::TopicAuthorizationFailed => {
            format!("{code}: writing to the topic is not allowed; grant it in Kafka's ACLs")
        }
        Code::InvalidTopic => format!("{code}: no topic can have this name"),
        Code::InvalidRecord => {
            format!("{code}: the broker refuses it; a compacted topic takes no record without a key")
        }
        Code::InvalidMessage | Code::InvalidTimestamp | Code::PolicyViolation => {
            format!("{code}: the broker's or the topic's settings refuse it")
        }
        Code::UnsupportedForMessageFormat | Code::UnsupportedCompressionType => {
            format!("{code}: the broker does not support what the `[kafka]` settings ask for")
        }
        _ => return None,
    })
}

/// Whether a refusal may be of another record of the same batch.
pub(super) fn is_of_one_record(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidMessage
            | Code::InvalidTimestamp
            | Code::PolicyViolation
    )
}

/// Whether a failure is of the connection or the cluster, not of the record.
pub(super) fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::MessageTimedOut
            | Code::RequestTimedOut
            | Code::OperationTimedOut
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::NetworkException
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::BrokerNotAvailable
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::KafkaStorageError
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            | Code::ProducerFenced
            | Code::Fenced
            | Code::State
            | Code::InvalidTransactionalState
            | Code::ConcurrentTransactions
            | Code::TransactionCoordinatorFenced
    )
}
