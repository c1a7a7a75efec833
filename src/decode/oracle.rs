//! Random messages of random schemas, read by this decoder and by arrow-json's: the same rows, and the
//! same refusals, but for the differences that `translate` lists.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::{JsonDecoder, object};
use crate::catalog::TimestampFormat;

/// The same message for arrow-json; none if it is only this decoder that has to refuse it.
fn translate_message(fields: &Fields, message: &str) -> Option<String> {
    // arrow-json takes what is no JSON: no comma or one too many, 01, control characters.
    serde_json::from_str::<IgnoredAny>(message).ok()?;
    translate(&DataType::Struct(fields.clone()), message.trim())
}

/// The same value of `data_type` for arrow-json; none if it is only this decoder that has to refuse it.
fn translate(data_type: &DataType, json: &str) -> Option<String> {
    use DataType::*;
    let first = json.as_bytes()[0];
    let text = || serde_json::from_str::<String>(json).ok();
    let is_number = first == b'-' || first.is_ascii_digit();
    match (data_type, first) {
        (_, b'n') => {}
        // arrow-json takes "1" into a number, and 1.5 into an integer as 1.
        (t, b'"') if t.is_integer() || t.is_floating() => return None,
        (t, _) if t.is_integer() && is_number && json.contains(['.', 'e', 'E']) => {
            let number = plain(json)?;
            let (whole, places) = number.split_once('.').unwrap_or((&number, ""));
            return places.bytes().all(|digit| digit == b'0').then(|| whole.into());
        }
        // arrow-json makes infinity of a number that is too large.
        (Float32, _) if is_number && json.parse::<f32>().ok()?.is_infinite() => return None,
        (Float64, _) if is_number && json.parse::<f64>().ok()?.is_infinite() => return None,
        // arrow-json cuts the digits that a decimal has no place for, counts digits modulo 256, refuses 0e0,
        // and takes "-e1".
        (Decimal128(_, scale) | Decimal256(_, scale), _) if is_number || first == b'"' => {
            let number = if is_number { json.into() } else { text()? };
            let number = plain(&number).filter(|number| number.len() < 200)?;
            let surplus = number.split_once('.').and_then(|(_, places)| places.get(*scale as usize..));
            if surplus.is_some_and(|digits| digits.bytes().any(|b| (b'1'..=b'9').contains(&b))) {
                return None;
            }
            return serde_json::to_string(&number).ok();
        }
        // arrow-json takes a number of the column's units, for a time also in quotes.
        (Date32 | Time32(_) | Time64(_) | Timestamp(..), _) if is_number => return None,
        (Time32(_) | Time64(_), b'"') if text()?.parse::<i64>().is_ok() => return None,
        // arrow-json refuses an object where a text is expected.
        (Utf8 | LargeUtf8 | Utf8View, b'{' | b'[') => return serde_json::to_string(json).ok(),
        // arrow-json reads binary as hexadecimal digits.
        (Binary | LargeBinary, b'"') => {
            let hex =
                BASE64.decode(text()?).ok()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            return Some(format!("\"{hex}\""));
        }
        (Struct(fields), b'{') => {
            let entries = object::entries(json).ok()?;
            let mut values = Vec::new();
            // A field that is not asked for is not judged by this decoder: arrow-json need not see it.
            for field in fields {
                if let Some((key, value)) = entries.iter().rev().find(|(key, _)| key == field.name()) {
                    values
                        .push(format!("{key:?}: {}", translate(field.data_type(), value.unwrap_or("null"))?));
                }
            }
            return Some(format!("{{{}}}", values.join(",")));
        }
        (List(item) | FixedSizeList(item, _), b'[') => {
            let items = object::items(json).ok()?.into_iter();
            let items = items.map(|value| translate(item.data_type(), value.unwrap_or("null")));
            return Some(format!("[{}]", items.collect::<Option<Vec<_>>>()?.join(",")));
        }
        // arrow-json keeps both values of a key that comes twice.
        (Map(entry, _), b'{') => {
            let Struct(fields) = entry.data_type() else { return None };
            let mut entries = object::entries(json).ok()?;
            let values = entries.iter().map(|(key, value)| {
                let value = translate(fields[1].data_type(), value.unwrap_or("null"))?;
                Some(format!("{}: {value}", serde_json::to_string(key).ok()?))
            });
            let values = values.collect::<Option<Vec<_>>>()?;
            entries.sort();
            let twice = entries.windows(2).any(|pair| pair[0].0 == pair[1].0);
            return (!twice).then(|| format!("{{{}}}", values.join(",")));
        }
        // arrow-json misreads escapes of what is beyond U+1FFFF: \ud87a\udff0 becomes U+1EBF0.
        (_, b'"') => return text().and_then(|text| serde_json::to_string(&text).ok()),
        _ => {}
    }
    Some(json.into())
}

/// A number without an exponent; none if it is no number.
fn plain(number: &str) -> Option<String> {
    let float: f64 = number.parse().ok()?;
    let spelled = number.bytes().all(|b| b.is_ascii_digit() || b"-.".contains(&b));
    // Few digits have an exponent here, so that the float has them all.
    Some(if spelled { number.into() } else { float.to_string() })
}

/// What arrow-json makes of one message.
fn arrow_json(schema: &SchemaRef, message: &str) -> Option<RecordBatch> {
    let mut decoder = arrow_json::ReaderBuilder::new(Arc::clone(schema)).build_decoder().unwrap();
    decoder.decode(message.as_bytes()).ok()?;
    decoder.flush().ok()?
}

fn check(schema: Schema, messages: &[String]) {
    let schema = Arc::new(schema);
    let decoder = JsonDecoder::new(Arc::clone(&schema), TimestampFormat::Iso).unwrap();
    let payloads: Vec<_> = messages.iter().map(|message| Some(message.as_bytes())).collect();
    let (decoded, rejects) = decoder.decode(&payloads).unwrap();
    for (i, message) in messages.iter().enumerate() {
        let row = decoded.messages.iter().position(|position| *position == i as u32);
        let row = row.map(|row| decoded.rows.slice(row, 1));
        let reject = rejects.iter().find(|reject| reject.message == i as u32);
        assert!(row.is_some() != reject.is_some(), "{message}: either a row or a reject");
        let translated = translate_message(schema.fields(), message);
        let expected = translated.as_ref().and_then(|message| arrow_json(&schema, message));
        assert_eq!(row, expected, "{message}\nfor arrow-json: {translated:?}\n{reject:?} {schema:?}");
    }
}

fn scalar_type() -> impl Strategy<Value = DataType> {
    use DataType::*;
    let units = [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond];
    let zones = [None, Some("+02:00".into()), Some("Europe/London".into())];
    prop_oneof![
        prop::sample::select(vec![
            Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Float32, Float64
        ]),
        prop::sample::select(vec![Boolean, Utf8, LargeUtf8, Utf8View, Binary, LargeBinary, Date32]),
        prop::sample::select(vec![
            Decimal128(5, 2),
            Decimal128(38, 10),
            Decimal256(60, 20),
            Decimal128(9, 0)
        ]),
        prop::sample::select(vec![Time32(units[0]), Time32(units[1]), Time64(units[2]), Time64(units[3])]),
        (prop::sample::select(units.to_vec()), prop::sample::select(zones.to_vec()))
            .prop_map(|(unit, zone)| Timestamp(unit, zone)),
    ]
}

fn any_type() -> impl Strategy<Value = DataType> {
    let item = |t| Arc::new(Field::new("item", t, true));
    scalar_type().prop_recursive(2, 6, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|types| DataType::Struct(fields(types))),
            inner.clone().prop_map(move |t| DataType::List(item(t))),
            (inner.clone(), 1..3).prop_map(move |(t, size)| DataType::FixedSizeList(item(t), size)),
            inner.prop_map(|value| {
                let fields = [Field::new("key", DataType::Utf8, false), Field::new("value", value, true)];
                let entry = Field::new("entries", DataType::Struct(fields.to_vec().into()), false);
                DataType::Map(Arc::new(entry), false)
            }),
        ]
    })
}

/// Fields `f0`, `f1`, … of these types.
fn fields(types: Vec<DataType>) -> Fields {
    types.into_iter().enumerate().map(|(i, t)| Field::new(format!("f{i}"), t, true)).collect()
}

/// Values that are right for one type or another, and wrong for most.
fn stray_value() -> impl Strategy<Value = String> {
    let mut values: Vec<String> = r#"true false 0 -0 -1 1.0 1.5 1e2 2.50e1 0e0 127 128 255 256 -32769 2147483648
        9007199254740993 9007199254740993.0 9223372036854775808 18446744073709551615 1e39 1e400 99999 999.99
        123456789012345678901234567890.123 "" "1" "-1.50" "1.255" "abc" "YWJj" "YWJ" "2026-05-07" "2026-5-7"
        "2026-02-30" "20260507" "2026-05-07T12:34:56.789123456+02:00" "2026-05-07T12:34" "1066-10-14T09:00:00Z"
        "2026-03-29T01:30:00" "2026-10-25T01:30:00" "12:34:56.789" "6:00" "25:00:00" "23:59:60"
        "\u00e9\ud83d\ude00\n\/" "\ud800" "\ud800\u0041" "\udc00" "é😀" {} [] [1,null,"x"] [[[]]]
        {"f0":1} {"f0":{"f0":[null]}} {"f1":2,"f1":3} {"\u0066\u0030":1} nul tru 01 1. .5 - + "\x" {,} [1,]"#
        .split_whitespace()
        .map(String::from)
        .collect();
    values.extend(["\"2026-05-07 12:34:56\"".into(), "{ \"f0\" : [ 1 , 2 ] }".into(), "9".repeat(260)]);
    values.push(format!("{}1{}", "[".repeat(70), "]".repeat(70)));
    prop::sample::select(values)
}

/// The JSON of a value, most often one that `data_type` has.
fn value(data_type: &DataType) -> BoxedStrategy<String> {
    use DataType::*;
    let date = (1900..2100i32, 1..13, 1..29).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}"));
    let time = (0..24, 0..60, 0..60, prop::sample::select(vec!["", ".5", ".123", ".123456789"]))
        .prop_map(|(h, m, s, fraction)| format!("{h:02}:{m:02}:{s:02}{fraction}"));
    let right: BoxedStrategy<String> = match data_type {
        Int8 | Int16 => (-130..130i32).prop_map(|v| v.to_string()).boxed(),
        UInt8 | UInt16 => (0..300i32).prop_map(|v| v.to_string()).boxed(),
        t if t.is_integer() => prop_oneof![any::<i64>(), -9..9i64].prop_map(|v| v.to_string()).boxed(),
        t if t.is_floating() => (any::<f64>(), any::<f32>())
            .prop_filter_map("JSON has no such number", |(wide, narrow)| {
                let float = if narrow > 0.0 { wide } else { narrow.into() };
                float.is_finite().then(|| format!("{float:?}"))
            })
            .boxed(),
        Decimal128(..) | Decimal256(..) => (any::<i64>(), 0..7usize, 0..3, any::<bool>())
            .prop_map(|(digits, cut, places, quoted)| {
                let whole = digits / 10i64.pow(12) / 10i64.pow(cut as u32);
                let number =
                    if places == 0 { whole.to_string() } else { format!("{whole}.{:02}", places * 25) };
                if quoted { format!("\"{number}\"") } else { number }
            })
            .boxed(),
        Boolean => any::<bool>().prop_map(|v| v.to_string()).boxed(),
        Date32 => date.prop_map(|v| format!("\"{v}\"")).boxed(),
        Time32(_) | Time64(_) => time.prop_map(|v| format!("\"{v}\"")).boxed(),
        Timestamp(..) => {
            (date, time, prop::sample::select(vec![" ", "T"]), prop::sample::select(vec!["", "Z", "-05:30"]))
                .prop_map(|(date, time, between, zone)| format!("\"{date}{between}{time}{zone}\""))
                .boxed()
        }
        Utf8 | LargeUtf8 | Utf8View => (any::<String>(), any::<bool>())
            .prop_map(|(text, escape)| {
                let escaped = |unit: u16| format!("\\u{unit:04x}");
                match escape {
                    true => format!("\"{}\"", text.encode_utf16().map(escaped).collect::<String>()),
                    false => serde_json::to_string(&text).unwrap(),
                }
            })
            .boxed(),
        Binary | LargeBinary => {
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|v| format!("\"{}\"", BASE64.encode(v))).boxed()
        }
        Struct(fields) => object(fields).boxed(),
        List(item) => prop::collection::vec(value(item.data_type()), 0..4)
            .prop_map(|items| format!("[{}]", items.join(" , ")))
            .boxed(),
        FixedSizeList(item, size) => prop::collection::vec(value(item.data_type()), *size as usize)
            .prop_map(|items| format!("[{}]", items.join(",")))
            .boxed(),
        Map(entry, _) => {
            let Struct(fields) = entry.data_type() else { unreachable!() };
            let keys = prop::sample::select(vec!["a", "b", "c", "\\u0061", "long key", "é"]);
            prop::collection::vec((keys, value(fields[1].data_type())), 0..4)
                .prop_map(|entries| {
                    let entries = entries.iter().map(|(key, value)| format!("\"{key}\":{value}"));
                    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
                })
                .boxed()
        }
        other => unreachable!("{other}"),
    };
    prop_oneof![30 => right, 2 => Just("null".to_string()), 1 => stray_value()].boxed()
}

/// An object with most of these fields, some others, and now and then in another order or one of them twice.
fn object(fields: &Fields) -> impl Strategy<Value = String> + use<> {
    let mut entries: Vec<BoxedStrategy<(String, String)>> = Vec::new();
    for field in fields {
        let name = field.name().clone();
        entries.push(value(field.data_type()).prop_map(move |value| (name.clone(), value)).boxed());
    }
    entries.push(stray_value().prop_map(|value| ("other".to_string(), value)).boxed());
    let presence = prop::collection::vec(prop::sample::select(vec![0, 1, 1, 1, 1, 1, 1, 2]), entries.len());
    let order = prop_oneof![6 => Just(0), 1 => 0..entries.len()];
    let spacing = prop::sample::select(vec![["", ":", ","], [" ", ": ", ", "], ["\n\t", " :\r\n", " ,"]]);
    let strays = prop::bool::weighted(0.2);
    (entries, presence, order, spacing, strays).prop_map(|(mut entries, presence, order, spacing, strays)| {
        if !strays {
            entries.pop();
        }
        let mut parts: Vec<String> = Vec::new();
        for ((key, value), times) in entries.iter().zip(presence) {
            parts.extend(std::iter::repeat_n(format!("\"{key}\"{}{value}", spacing[1]), times));
        }
        if !parts.is_empty() {
            let middle = order % parts.len();
            parts.rotate_left(middle);
        }
        format!("{{{}{}{}}}", spacing[0], parts.join(spacing[2]), spacing[0])
    })
}

/// A message, now and then with an end or a character that is wrong.
fn message(fields: &Fields) -> impl Strategy<Value = String> + use<> {
    let harm = prop_oneof![12 => Just(0), 1 => Just(1), 2 => Just(2)];
    let wrong = prop::sample::select(r#"{}[]:,"\ 0x-."#.chars().collect::<Vec<_>>());
    (object(fields), harm, any::<prop::sample::Index>(), wrong).prop_map(|(message, harm, place, wrong)| {
        let mut characters: Vec<char> = message.chars().collect();
        let place = place.index(characters.len());
        match harm {
            1 => characters.truncate(place),
            2 => characters[place] = wrong,
            _ => {}
        }
        characters.into_iter().collect()
    })
}

fn schema_and_messages() -> impl Strategy<Value = (Schema, Vec<String>)> {
    prop::collection::vec(any_type(), 0..5).prop_map(fields).prop_flat_map(|fields| {
        let messages = prop::collection::vec(message(&fields), 1..6);
        (Just(Schema::new(fields)), messages)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn messages_are_read_as_arrow_json_reads_them((schema, messages) in schema_and_messages()) {
        check(schema, &messages);
    }
}
