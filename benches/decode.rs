//! One thread decoding votes of about 860 bytes and 20 fields, beside arrow-json's reader of the same
//! bytes: `cargo bench --bench decode`. Elements are messages.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_json::ReaderBuilder;
use arrow_json::reader::Decoder;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tally::catalog::TimestampFormat;
use tally::decode::JsonDecoder;

/// No more than one thread takes.
const MESSAGES: usize = 4096;

fn vote(i: usize) -> String {
    format!(
        r#"{{"voter_id": "{i:08x}-7d3c-4e5f-9a1b-{i:012x}", "voter_name": "Ashley Wheeler-{i}", "date_of_birth": "1962-03-{:02}T09:41:13.257Z", "gender": "female", "nationality": "GB", "registration_number": "LFWK{i:08}", "address": {{"street": "{} Victoria Road", "city": "Wolverhampton", "state": "West Midlands", "country": "United Kingdom", "postcode": "WV{} 2QX"}}, "email": "ashley.wheeler{i}@example.com", "phone_number": "015395 {:05}", "cell_number": "07453 {:06}", "picture": "https://pictures.example/portraits/women/{}.jpg", "registered_age": {}, "candidate_id": "candidate-{}", "candidate_name": "Jos\u00e9 Baker", "party_affiliation": "Tech Republic Party", "biography": "Raised by a \"family\" of lawyers; ran a city's budget.", "campaign_platform": "Lower fares", "photo_url": "https://pictures.example/{}.jpg", "voting_time": "2026-05-07 {:02}:{:02}:{:02}", "vote": 1}}"#,
        i % 28 + 1,
        i % 300,
        i % 9,
        i % 100_000,
        i % 1_000_000,
        i % 100,
        18 + i % 70,
        i % 3,
        i % 3,
        i / 3600 % 24,
        i / 60 % 60,
        i % 60
    )
}

fn columns(text: &[&str]) -> Vec<Field> {
    text.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect()
}

fn time(name: &str) -> Field {
    Field::new(name, DataType::Timestamp(TimeUnit::Nanosecond, None), true)
}

/// What the counting views need.
fn needed() -> SchemaRef {
    let mut fields = columns(&["voter_id", "candidate_id"]);
    fields.extend([time("voting_time"), Field::new("vote", DataType::Int32, true)]);
    Arc::new(Schema::new(fields))
}

/// All that a message has.
fn all() -> SchemaRef {
    let mut fields = needed().fields().iter().map(|field| field.as_ref().clone()).collect::<Vec<_>>();
    fields.extend(columns(&["voter_name", "gender", "nationality", "registration_number", "email"]));
    fields.extend(columns(&["phone_number", "cell_number", "picture", "candidate_name", "photo_url"]));
    fields.extend(columns(&["party_affiliation", "biography", "campaign_platform"]));
    fields.extend([time("date_of_birth"), Field::new("registered_age", DataType::Int32, true)]);
    let address = columns(&["street", "city", "state", "country", "postcode"]);
    fields.push(Field::new("address", DataType::Struct(address.into()), true));
    Arc::new(Schema::new(fields))
}

fn arrow_json(decoder: &mut Decoder, messages: &[Option<&[u8]>]) -> RecordBatch {
    for message in messages.iter().flatten() {
        decoder.decode(message).expect("the message is JSON");
    }
    decoder.flush().expect("the types fit").expect("there are rows")
}

fn bench(criterion: &mut Criterion) {
    let messages: Vec<String> = (0..MESSAGES).map(vote).collect();
    let bytes = messages.iter().map(String::len).sum::<usize>() / MESSAGES;
    let messages: Vec<_> = messages.iter().map(|message| Some(message.as_bytes())).collect();
    println!("{MESSAGES} messages of {bytes} bytes on average");

    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    for (columns, declared, schema) in [
        ("4 columns", needed(), needed()),
        ("4 kept of 20 columns", all(), needed()),
        ("20 columns", all(), all()),
    ] {
        let kept = schema.fields().iter().map(|field| field.name().clone()).collect();
        let decoder = JsonDecoder::new(declared, TimestampFormat::Iso).expect("the schema is readable");
        let decoder = decoder.keeping(&kept);
        let (decoded, rejects) = decoder.decode(&messages).expect("the messages decode");
        assert!(rejects.is_empty(), "{rejects:?}");
        let reader = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(MESSAGES);
        let mut reader = reader.build_decoder().expect("the schema is readable");
        assert_eq!(decoded.rows, arrow_json(&mut reader, &messages), "both read the same");
        group.bench_function(format!("tally, {columns}"), |b| {
            b.iter(|| decoder.decode(black_box(&messages)).expect("the messages decode"))
        });
        group.bench_function(format!("arrow-json, {columns}"), |b| {
            b.iter(|| arrow_json(&mut reader, black_box(&messages)))
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
