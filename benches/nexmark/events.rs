//! Nexmark's events: of fifty one is a person, three are auctions and 46 bids. Half of the bids go to the newest hot
//! auction, three quarters of them come from a hot bidder, three quarters of the auctions from a hot seller. The same
//! seed makes the same events.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Events of which one is a person and three are auctions.
const CYCLE: u64 = 50;
const AUCTIONS: u64 = 3;
const FIRST_ID: u64 = 1000;
/// One of so many ids is hot while it is among the newest.
const HOT_OF: u64 = 100;
const AUCTIONS_IN_FLIGHT: u64 = 100;
const ACTIVE_PEOPLE: u64 = 1000;
/// Bids and auctions may come so many ids before what they name.
const AUCTION_LEAD: u64 = 10;
const PERSON_LEAD: u64 = 10;
const FIRST_CATEGORY: u64 = 10;
const CATEGORIES: u64 = 5;
const CHANNELS: u64 = 10_000;
const HOT_CHANNELS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];
const CITIES: [(&str, &str); 10] = [
    ("Phoenix", "AZ"),
    ("Los Angeles", "CA"),
    ("San Francisco", "CA"),
    ("Boise", "ID"),
    ("Portland", "OR"),
    ("Bend", "OR"),
    ("Redmond", "WA"),
    ("Seattle", "WA"),
    ("Kent", "WA"),
    ("Cheyenne", "WY"),
];
/// 2024-01-01 07:59:00, so that a benchmark's events go from one part of the day to another.
const START_NS: i64 = 1_704_095_940_000_000_000;
const MILLISECOND: i64 = 1_000_000;

/// How events follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Events of one second of event time.
    pub per_second: u64,
    /// So many neighbours come in another order than they happened in; 1: none.
    pub out_of_order: u64,
}

/// A stream of events without end.
pub struct Events {
    random: ChaCha8Rng,
    pace: Pace,
    made: u64,
    /// What texts are cut from.
    letters: String,
}

struct Person {
    id: u64,
    name: String,
    city: (&'static str, &'static str),
    card: String,
    at: i64,
    extra: String,
}

struct Auction {
    id: u64,
    name: String,
    description: String,
    initial_bid: u64,
    reserve: u64,
    at: i64,
    expires: i64,
    seller: u64,
    category: u64,
    extra: String,
}

struct Bid {
    auction: u64,
    bidder: u64,
    price: u64,
    channel: String,
    url: String,
    at: i64,
    extra: String,
}

impl Events {
    /// The events of a seed, from the first.
    pub fn new(seed: u64, pace: Pace) -> Events {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let letters = (0..1 << 16).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
        Events { random, pace, made: 0, letters }
    }

    /// The next `count` events, by the stream that they are of.
    pub fn take(&mut self, count: usize) -> [(&'static str, RecordBatch); 3] {
        let (mut people, mut auctions, mut bids) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let group = self.pace.out_of_order;
            // 953 is prime: all of a group come, in another order.
            let number = self.made / group * group + self.made * 953 % group;
            self.made += 1;
            match number % CYCLE {
                0 => people.push(self.person(number)),
                1..=AUCTIONS => auctions.push(self.auction(number)),
                _ => bids.push(self.bid(number)),
            }
        }
        [("person", person_rows(&people)), ("auction", auction_rows(&auctions)), ("bid", bid_rows(&bids))]
    }

    fn at(&self, number: u64) -> i64 {
        let ms = number * 1000 / self.pace.per_second;
        START_NS + ms as i64 * MILLISECOND
    }

    fn person(&mut self, number: u64) -> Person {
        let name = format!("{} {}", self.text(6), self.text(9));
        let city = CITIES[self.random.random_range(0..CITIES.len())];
        let card: Vec<_> = (0..4).map(|_| format!("{:04}", self.random.random_range(0..10_000))).collect();
        Person {
            id: FIRST_ID + newest_person(number),
            name,
            city,
            card: card.join(" "),
            at: self.at(number),
            extra: self.padding(60, 140),
        }
    }

    fn auction(&mut self, number: u64) -> Auction {
        let initial_bid = self.price();
        // So long that about `AUCTIONS_IN_FLIGHT` are open at a time.
        let later = number + AUCTIONS_IN_FLIGHT * CYCLE / AUCTIONS;
        let (at, horizon) = (self.at(number), (self.at(later) - self.at(number)) / MILLISECOND);
        let open_ms = 1 + self.random.random_range(0..(horizon * 2).max(1));
        let hot = newest_person(number) / HOT_OF * HOT_OF;
        let seller = if self.random.random_range(0..4) > 0 { hot } else { self.any_person(number) };
        Auction {
            id: FIRST_ID + newest_auction(number).unwrap_or(0),
            name: self.padding(10, 20),
            description: self.padding(50, 100),
            initial_bid,
            reserve: initial_bid + self.price(),
            at,
            expires: at + open_ms * MILLISECOND,
            seller: FIRST_ID + seller,
            category: FIRST_CATEGORY + self.random.random_range(0..CATEGORIES),
            extra: self.padding(300, 400),
        }
    }

    fn bid(&mut self, number: u64) -> Bid {
        let newest = newest_auction(number).unwrap_or(0);
        let oldest = newest.saturating_sub(AUCTIONS_IN_FLIGHT);
        let any = self.random.random_range(oldest..=newest + AUCTION_LEAD);
        let auction = if self.random.random_range(0..2) > 0 { newest / HOT_OF * HOT_OF } else { any };
        let hot = newest_person(number) / HOT_OF * HOT_OF + 1;
        let bidder = if self.random.random_range(0..4) > 0 { hot } else { self.any_person(number) };
        let (channel, query) = if self.random.random_range(0..2) > 0 {
            (HOT_CHANNELS[self.random.random_range(0..HOT_CHANNELS.len())].to_string(), String::new())
        } else {
            let channel = self.random.random_range(0..CHANNELS);
            (format!("channel-{channel}"), format!("&channel_id={}", channel.reverse_bits() >> 33))
        };
        let directories = format!("{}/{}/{}", self.text(5), self.text(5), self.text(5));
        Bid {
            auction: FIRST_ID + auction,
            bidder: FIRST_ID + bidder,
            price: self.price(),
            channel,
            url: format!("https://www.nexmark.com/{directories}/item.htm?query=1{query}"),
            at: self.at(number),
            extra: self.padding(48, 88),
        }
    }

    /// From one to a hundred million, each order of magnitude as often.
    fn price(&mut self) -> u64 {
        (10f64.powf(self.random.random_range(0.0..6.0)) * 100.0).round() as u64
    }

    fn any_person(&mut self, number: u64) -> u64 {
        let people = newest_person(number) + 1;
        let active = people.min(ACTIVE_PEOPLE);
        people - active + self.random.random_range(0..active + PERSON_LEAD)
    }

    fn padding(&mut self, shortest: usize, longest: usize) -> String {
        let length = self.random.random_range(shortest..longest);
        self.text(length)
    }

    fn text(&mut self, length: usize) -> String {
        let from = self.random.random_range(0..self.letters.len() - length);
        self.letters[from..from + length].to_string()
    }
}

/// The person that came last, from 0.
fn newest_person(number: u64) -> u64 {
    number / CYCLE
}

/// The auction that came last, from 0.
fn newest_auction(number: u64) -> Option<u64> {
    (number / CYCLE * AUCTIONS + (number % CYCLE).min(AUCTIONS)).checked_sub(1)
}

fn ints<'a, T>(rows: &'a [T], value: impl Fn(&'a T) -> u64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| value(row) as i64)))
}

fn texts<'a, T, S: AsRef<str>>(rows: &'a [T], value: impl Fn(&'a T) -> S) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
}

fn times<'a, T>(rows: &'a [T], value: impl Fn(&'a T) -> i64) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(value)))
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
        .expect("columns of one length")
}

fn person_rows(rows: &[Person]) -> RecordBatch {
    batch([
        ("id", ints(rows, |row| row.id)),
        ("name", texts(rows, |row| &row.name)),
        ("email_address", texts(rows, |row| format!("{}@nexmark.com", row.name.replace(' ', ".")))),
        ("credit_card", texts(rows, |row| &row.card)),
        ("city", texts(rows, |row| row.city.0)),
        ("state", texts(rows, |row| row.city.1)),
        ("date_time", times(rows, |row| row.at)),
        ("extra", texts(rows, |row| &row.extra)),
    ])
}

fn auction_rows(rows: &[Auction]) -> RecordBatch {
    batch([
        ("id", ints(rows, |row| row.id)),
        ("item_name", texts(rows, |row| &row.name)),
        ("description", texts(rows, |row| &row.description)),
        ("initial_bid", ints(rows, |row| row.initial_bid)),
        ("reserve", ints(rows, |row| row.reserve)),
        ("date_time", times(rows, |row| row.at)),
        ("expires", times(rows, |row| row.expires)),
        ("seller", ints(rows, |row| row.seller)),
        ("category", ints(rows, |row| row.category)),
        ("extra", texts(rows, |row| &row.extra)),
    ])
}

fn bid_rows(rows: &[Bid]) -> RecordBatch {
    batch([
        ("auction", ints(rows, |row| row.auction)),
        ("bidder", ints(rows, |row| row.bidder)),
        ("price", ints(rows, |row| row.price)),
        ("channel", texts(rows, |row| &row.channel)),
        ("url", texts(rows, |row| &row.url)),
        ("date_time", times(rows, |row| row.at)),
        ("extra", texts(rows, |row| &row.extra)),
    ])
}

/// The table of q13: something to say of each auction, by its number among 10,000.
pub fn side_input() -> RecordBatch {
    let keys: Vec<u64> = (0..10_000).collect();
    batch([("auction", ints(&keys, |key| *key)), ("value", texts(&keys, |key| format!("value {key}")))])
}
