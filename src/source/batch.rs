//! Messages as they were received, of one micro-batch.

use std::collections::BTreeMap;
use std::ops::Range;

/// Messages as they were received, with their bytes side by side in one buffer.
#[derive(Clone, Debug, Default)]
pub struct RawBatch {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// In the order of the messages; most messages have none, and then cost nothing here.
    headers: Vec<Header>,
    /// Of each partition that is in the batch, the next offset to read.
    pub next_offsets: BTreeMap<i32, i64>,
}

#[derive(Clone, Debug)]
struct Message {
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<Range<usize>>,
    payload: Option<Range<usize>>,
}

#[derive(Clone, Debug)]
struct Header {
    message: u32,
    name: Range<usize>,
    value: Option<Range<usize>>,
}

/// Where a message came from, and its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageRef<'a> {
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
    /// When it was produced, in milliseconds since 1970, if the broker knows.
    pub timestamp_ms: Option<i64>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub payload: Option<&'a [u8]>,
}

/// Where a message stands among all of its topic: by the broker's timestamp, then by partition and offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// When it was produced, in milliseconds since 1970, if that is known.
    pub timestamp_ms: Option<i64>,
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl RawBatch {
    /// Where the message at a position comes from.
    pub fn origin(&self, position: u32) -> Origin {
        let Message { timestamp_ms, partition, offset, .. } = self.messages[position as usize];
        Origin { timestamp_ms, partition, offset }
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes of keys, values and headers.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The message at a position.
    pub fn get(&self, position: u32) -> MessageRef<'_> {
        let message = &self.messages[position as usize];
        MessageRef {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            key: self.part(&message.key),
            payload: self.part(&message.payload),
        }
    }

    /// The headers of the message at a position, in their order: names and values.
    pub fn headers(&self, position: u32) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let first = self.headers.partition_point(|header| header.message < position);
        let own = self.headers[first..].iter().take_while(move |header| header.message == position);
        own.map(|header| {
            let name = std::str::from_utf8(&self.bytes[header.name.clone()]);
            (name.expect("invariant: it was pushed as text"), self.part(&header.value))
        })
    }

    /// The value of the first header of that name of the message at a position.
    pub fn header(&self, position: u32, name: &str) -> Option<&[u8]> {
        self.headers(position).find(|(known, _)| *known == name)?.1
    }

    /// The values of all messages.
    pub fn payloads(&self) -> Vec<Option<&[u8]>> {
        self.messages.iter().map(|message| self.part(&message.payload)).collect()
    }

    /// Of each partition that is in the batch, its first offset and the one after its last.
    pub fn ranges(&self) -> BTreeMap<i32, (i64, i64)> {
        let mut ranges = BTreeMap::new();
        for Message { partition, offset, .. } in &self.messages {
            ranges.entry(*partition).or_insert((*offset, 0)).1 = offset + 1;
        }
        ranges
    }

    /// The messages of one partition after those of another: an order that does not depend on how they came.
    pub fn by_partition(&mut self) {
        if self.messages.is_sorted_by_key(|message| message.partition) {
            return;
        }
        let mut order: Vec<u32> = (0..self.messages.len() as u32).collect();
        order.sort_by_key(|i| self.messages[*i as usize].partition);
        let messages = order.iter().map(|i| self.messages[*i as usize].clone()).collect();
        self.messages = messages;
        if self.headers.is_empty() {
            return;
        }
        let mut place = vec![0; order.len()];
        (0..).zip(&order).for_each(|(now, before)| place[*before as usize] = now);
        self.headers.iter_mut().for_each(|header| header.message = place[header.message as usize]);
        self.headers.sort_by_key(|header| header.message);
    }

    /// Takes out the messages for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(Origin) -> bool) {
        let kept: Vec<bool> = (0..self.len() as u32).map(|i| keep(self.origin(i))).collect();
        if kept.iter().all(|kept| *kept) {
            return;
        }
        let mut places = Vec::with_capacity(kept.len());
        let mut next = 0;
        for kept in &kept {
            places.push(kept.then_some(next));
            next += u32::from(*kept);
        }
        let mut position = 0;
        self.messages.retain(|_| {
            position += 1;
            kept[position - 1]
        });
        self.headers.retain_mut(|header| match places[header.message as usize] {
            Some(place) => {
                header.message = place;
                true
            }
            None => false,
        });
    }

    /// Takes all messages out and keeps the room that they had.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
        self.headers.clear();
        self.next_offsets.clear();
    }

    /// Adds a message.
    pub fn push(&mut self, message: MessageRef) {
        let (key, payload) = (message.key.map(|b| self.copy(b)), message.payload.map(|b| self.copy(b)));
        self.next_offsets.insert(message.partition, message.offset + 1);
        self.messages.push(Message {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            key,
            payload,
        });
    }

    /// Adds a header to the message that was pushed last. Without a message it is nobody's and left out.
    pub fn push_header(&mut self, name: &str, value: Option<&[u8]>) {
        let Some(message) = self.messages.len().checked_sub(1) else { return };
        let name = self.copy(name.as_bytes());
        let value = value.map(|bytes| self.copy(bytes));
        self.headers.push(Header { message: message as u32, name, value });
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    fn part(&self, range: &Option<Range<usize>>) -> Option<&[u8]> {
        range.clone().map(|range| &self.bytes[range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_put_one_after_another_with_their_headers() {
        let mut batch = RawBatch::default();
        for (partition, offset) in [(1, 4), (0, 7), (1, 6), (0, 8)] {
            batch.push(MessageRef { partition, offset, ..MessageRef::default() });
            batch.push_header("offset", Some(offset.to_string().as_bytes()));
        }
        batch.by_partition();
        let places: Vec<_> = (0..4).map(|i| (batch.get(i).partition, batch.get(i).offset)).collect();
        assert_eq!(places, [(0, 7), (0, 8), (1, 4), (1, 6)]);
        for i in 0..4 {
            let offset = batch.get(i).offset.to_string();
            assert_eq!(batch.headers(i).collect::<Vec<_>>(), [("offset", Some(offset.as_bytes()))]);
        }
        assert_eq!(batch.ranges(), BTreeMap::from([(0, (7, 9)), (1, (4, 7))]));
        batch.retain(|origin| origin.offset % 2 == 0);
        let places: Vec<_> = (0..batch.len() as u32).map(|i| batch.get(i).offset).collect();
        assert_eq!(places, [8, 4, 6]);
        assert_eq!(batch.headers(2).collect::<Vec<_>>(), [("offset", Some(&b"6"[..]))]);
    }

    #[test]
    fn each_message_keeps_its_own_headers() {
        let mut batch = RawBatch::default();
        batch.push_header("nobody's", None);
        for offset in 0..4 {
            batch.push(MessageRef { partition: 2, offset, payload: Some(b"v"), ..MessageRef::default() });
            if offset % 2 == 1 {
                batch.push_header("trace", Some(b"1"));
                batch.push_header("empty", None);
            }
        }
        let headers = |position| batch.headers(position).collect::<Vec<_>>();
        assert_eq!(headers(0), []);
        assert_eq!(headers(1), [("trace", Some(&b"1"[..])), ("empty", None)]);
        assert_eq!(headers(2), []);
        assert_eq!(headers(3).len(), 2);
        assert_eq!(batch.get(3).payload, Some(&b"v"[..]));
        assert_eq!(batch.next_offsets, BTreeMap::from([(2, 4)]));
        batch.clear();
        assert!(batch.is_empty() && batch.bytes() == 0 && batch.next_offsets.is_empty());
        batch.push(MessageRef { offset: 9, payload: Some(b"w"), ..MessageRef::default() });
        assert_eq!((batch.get(0).payload, batch.headers(0).count()), (Some(&b"w"[..]), 0));
    }
}
