//! What changed and what was rejected, as records. Pure: nothing here knows where they go.

use std::sync::Arc;

use super::{Header, Record, json};
use crate::decode::Reject;
use crate::engine::{Op, ViewChange};
use crate::error::Result;
use crate::source::RawBatch;

/// A header that says how many bytes the value of a cut dead letter had.
const CUT: &str = "cut_from_bytes";
/// Names of our own headers; an original header of such a name is kept under `original.NAME`.
const OWN: [&str; 8] = ["rule", "reason", "topic", "partition", "offset", "timestamp", "epoch", CUT];
/// Longest reason that is written whole.
const REASON_CHARS_MAX: usize = 1000;
/// Longest header that is written whole once something must be cut.
const HEADER_BYTES_MAX: usize = 1024;

/// A view's changed rows, keyed by the view's key, for its topic; none if it has no topic. A deleted row is a
/// tombstone; without a key it is the row, and the header `op` says that it was deleted.
pub fn changelog(change: &ViewChange, epoch: u64) -> Result<Vec<Record>> {
    let Some(topic) = change.info.topic.as_deref().filter(|_| !change.changelog.ops.is_empty()) else {
        return Ok(Vec::new());
    };
    let topic: Arc<str> = topic.into();
    let keys = json::keys(&change.changelog.rows, &change.info.key)?;
    let values = json::rows(&change.changelog.rows)?;
    // All rows of an operation share their headers.
    let headers = [Op::Insert, Op::Update, Op::Delete].map(|op| (op, op_headers(op, epoch)));
    let of = |op: &Op| -> Arc<[Header]> {
        let found = headers.iter().find(|(known, _)| known == op);
        found.map_or_else(|| Arc::from([]), |(_, headers)| Arc::clone(headers))
    };
    let rows = change.changelog.ops.iter().zip(keys).zip(values);
    let record = |((op, key), value): ((&Op, Option<Vec<u8>>), Vec<u8>)| Record {
        topic: Arc::clone(&topic),
        partition: None,
        value: (*op != Op::Delete || key.is_none()).then_some(value),
        key,
        headers: of(op),
        may_be_cut: false,
    };
    Ok(rows.map(record).collect())
}

/// The headers of a changed row.
pub fn op_headers(op: Op, epoch: u64) -> Arc<[Header]> {
    [Header::new("op", op.as_str()), Header::new("epoch", epoch.to_string())].into()
}

/// A message of topic `from` that broke a rule, for the dead-letter topic `to`: as it was received, with its own
/// headers, and before them ours, which say why and where it stood.
pub fn dead_letter(to: &Arc<str>, from: &str, batch: &RawBatch, reject: &Reject, epoch: u64) -> Record {
    let message = batch.get(reject.message);
    let mut headers = vec![
        Header::new("rule", reject.rule.as_str()),
        Header::new("reason", shortened(&reject.reason)),
        Header::new("topic", from),
        Header::new("partition", message.partition.to_string()),
        Header::new("offset", message.offset.to_string()),
        Header { name: "timestamp".into(), value: message.timestamp_ms.map(|ms| ms.to_string().into()) },
        Header::new("epoch", epoch.to_string()),
    ];
    for (name, value) in batch.headers(reject.message) {
        let name = if OWN.contains(&name) { format!("original.{name}") } else { name.into() };
        headers.push(Header { name: name.into(), value: value.map(Into::into) });
    }
    Record {
        topic: Arc::clone(to),
        partition: None,
        key: message.key.map(Into::into),
        value: message.payload.map(Into::into),
        headers: headers.into(),
        may_be_cut: true,
    }
}

/// A reason may tell a value, and a value may be a megabyte.
fn shortened(reason: &str) -> String {
    match reason.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.into(),
    }
}

/// A dead letter cut to about `bytes_max` bytes: its value's first bytes, and a header with the number that it
/// had. The whole message is where `topic`, `partition` and `offset` say.
pub fn cut(record: Record, bytes_max: usize) -> Record {
    if record.bytes() <= bytes_max {
        return record;
    }
    let whole = record.value.as_ref().map_or(0, Vec::len);
    let is_own = |header: &&Header| OWN.contains(&&*header.name) && header.name != CUT;
    let mut headers: Vec<Header> = record.headers.iter().filter(is_own).cloned().collect();
    headers.push(match record.headers.iter().find(|header| header.name == CUT) {
        Some(cut_before) => cut_before.clone(),
        None => Header::new(CUT, whole.to_string()),
    });
    for header in &mut headers {
        truncate(&mut header.value, HEADER_BYTES_MAX);
    }
    // The original headers are kept where they leave at least half of the room to the value.
    let originals = record.headers.iter().filter(|header| !OWN.contains(&&*header.name));
    let size = |header: &Header| header.name.len() + header.value.as_ref().map_or(0, Vec::len);
    let mut taken: usize = headers.iter().map(size).sum();
    for header in originals {
        if taken + size(header) <= bytes_max / 2 {
            taken += size(header);
            headers.push(header.clone());
        }
    }
    let (mut key, mut value) = (record.key, record.value);
    truncate(&mut key, bytes_max.saturating_sub(taken) / 2);
    taken += key.as_ref().map_or(0, Vec::len);
    truncate(&mut value, bytes_max.saturating_sub(taken));
    Record { key, value, headers: headers.into(), ..record }
}

fn truncate(bytes: &mut Option<Vec<u8>>, most: usize) {
    if let Some(bytes) = bytes {
        bytes.truncate(most);
        bytes.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

    use super::*;
    use crate::engine::{Changelog, ViewInfo};
    use crate::source::MessageRef;

    fn letter(payload: &[u8], headers: &[(&str, &str)]) -> Record {
        let mut batch = RawBatch::default();
        let message = MessageRef {
            partition: 3,
            offset: 41,
            timestamp_ms: Some(7),
            key: Some(b"voter"),
            payload: Some(payload),
        };
        batch.push(message);
        for (name, value) in headers {
            batch.push_header(name, Some(value.as_bytes()));
        }
        let reject = Reject::of_rule(0, "json", "no JSON".into());
        dead_letter(&"rejected".into(), "votes", &batch, &reject, 5)
    }

    fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
        header_of(&record.headers, name)
    }

    fn header_of<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
        let found = headers.iter().find(|header| header.name == name)?;
        std::str::from_utf8(found.value.as_deref()?).ok()
    }

    #[test]
    fn a_changed_row_says_its_operation_and_epoch_and_a_deleted_one_is_a_tombstone() {
        let rows = RecordBatch::try_from_iter([
            ("county", Arc::new(StringArray::from(vec![Some("Norfolk"), None, Some("Kent")])) as ArrayRef),
            ("votes", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
        ])
        .unwrap();
        let change = |key: &[&str]| ViewChange {
            info: Arc::new(ViewInfo {
                name: "v".into(),
                schema: rows.schema(),
                key: key.iter().map(|name| name.to_string()).collect(),
                mode: "update",
                topic: Some("t".into()),
                upkeep: Default::default(),
                plan: String::new(),
                disclosure: Default::default(),
                sql: String::new(),
            }),
            changelog: Changelog { ops: vec![Op::Insert, Op::Update, Op::Delete], rows: rows.clone() },
            rows: Arc::new(rows.clone()),
            stateless: false,
        };
        let text = |bytes: &Option<Vec<u8>>| bytes.clone().map(|bytes| String::from_utf8(bytes).unwrap());
        let records = changelog(&change(&["county"]), 7).unwrap();
        let keys: Vec<_> = records.iter().map(|record| text(&record.key).unwrap()).collect();
        assert_eq!(keys, ["Norfolk", "null", "Kent"]);
        assert_eq!(text(&records[1].value).unwrap(), r#"{"county":null,"votes":2}"#);
        assert_eq!(records[2].value, None, "a tombstone");
        let ops: Vec<_> = records.iter().map(|record| header(record, "op").unwrap()).collect();
        assert_eq!(ops, ["insert", "update", "delete"]);
        assert!(records.iter().all(|record| header(record, "epoch") == Some("7") && *record.topic == *"t"));
        // Without a key nothing can be a tombstone: the row itself says that it went.
        let deleted = changelog(&change(&[]), 7).unwrap().remove(2);
        assert_eq!((deleted.key, header_of(&deleted.headers, "op")), (None, Some("delete")));
        assert!(deleted.value.is_some());
    }

    #[test]
    fn a_dead_letter_is_the_message_with_its_headers_the_reason_and_the_place() {
        let record = letter(b"[", &[("trace", "abc"), ("offset", "theirs")]);
        assert_eq!((record.key.as_deref(), record.value.as_deref()), (Some(&b"voter"[..]), Some(&b"["[..])));
        for (name, value) in [
            ("rule", "json"),
            ("reason", "no JSON"),
            ("topic", "votes"),
            ("partition", "3"),
            ("offset", "41"),
            ("timestamp", "7"),
            ("epoch", "5"),
            ("trace", "abc"),
            ("original.offset", "theirs"),
        ] {
            assert_eq!(header(&record, name), Some(value), "{name}");
        }
        assert_eq!(cut(record.clone(), 1000), record, "what fits is not cut");
        assert_eq!(shortened(&"ä".repeat(2000)).chars().count(), REASON_CHARS_MAX + 1);
    }

    #[test]
    fn a_dead_letter_that_is_too_large_is_cut_and_says_where_the_whole_message_is() {
        let large = "x".repeat(50_000);
        let record = letter(&[b'['; 100_000], &[("small", "kept"), ("large", &large)]);
        let cut_once = cut(record, 10_000);
        assert!(cut_once.bytes() <= 10_000 && cut_once.bytes() > 9_000, "{}", cut_once.bytes());
        assert_eq!(header(&cut_once, CUT), Some("100000"));
        assert_eq!((header(&cut_once, "offset"), header(&cut_once, "small")), (Some("41"), Some("kept")));
        assert_eq!(header(&cut_once, "large"), None);
        let cut_twice = cut(cut_once, 2_000);
        assert!(cut_twice.bytes() <= 2_000);
        assert_eq!(header(&cut_twice, CUT), Some("100000"), "the first size is the message's");
    }
}
