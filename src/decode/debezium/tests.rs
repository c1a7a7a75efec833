//! Envelopes in all their spellings, and what is missing in them.

use super::*;

fn read(message: &str, is_keyed: bool) -> Result<(Option<String>, Option<String>), String> {
    let envelope = envelopes(&[Some(message.as_bytes())], is_keyed).unwrap().remove(0)?.unwrap();
    Ok((envelope.before.map(String::from), envelope.after.map(String::from)))
}

#[test]
fn each_operation_gives_the_row_before_and_after() {
    let (before, after) = (Some(r#"{"a":1}"#.to_string()), Some(r#"{ "a" : 2 }"#.to_string()));
    for (op, expected) in [
        ("c", (None, after.clone())),
        ("r", (None, after.clone())),
        ("u", (before.clone(), after.clone())),
        ("d", (before.clone(), None)),
    ] {
        let envelope = format!(
            r#"{{"before":{{"a":1}}, "after":{{ "a" : 2 }}, "source":{{"op":"x"}}, "op":"{op}", "ts_ms":1}}"#
        );
        let wrapped =
            format!(r#"{{"schema":{{"type":"struct","fields":[{{"field":"op"}}]}},"payload":{envelope}}}"#);
        for is_keyed in [true, false] {
            assert_eq!(read(&envelope, is_keyed).as_ref(), Ok(&expected), "{op}");
            assert_eq!(read(&wrapped, is_keyed).as_ref(), Ok(&expected), "{op}, with its schema");
        }
    }
    assert!(envelopes(&[None], true).unwrap().remove(0).unwrap().is_none());
}

#[test]
fn what_is_missing_is_told() {
    for (message, reason) in [
        ("", "EOF while parsing a value"),
        ("[]", "expected a JSON object"),
        ("{}", "the envelope has no `op`"),
        (r#"{"op":null,"after":{}}"#, "the envelope has no `op`"),
        (r#"{"payload":{"after":{}}}"#, "the envelope has no `op`"),
        (r#"{"payload":7}"#, "payload: "),
        (r#"{"op":7}"#, "op 7 is no text"),
        (r#"{"op":"t","after":null}"#, "op t is none of c, r, u, d"),
        (r#"{"op":"c","after":null}"#, "op c needs `after`, which is missing or null"),
        (r#"{"op":"u","before":{"a":1}}"#, "op u needs `after`"),
        (
            r#"{"op":"u","before":null,"after":{"a":1}}"#,
            "op u needs `before`, which is missing or null; Postgres",
        ),
        (r#"{"op":"d"}"#, "op d needs `before`"),
    ] {
        let error = read(message, false).unwrap_err();
        assert!(error.contains(reason), "{message}: {error}");
    }
    let upsert = r#"{"op":"u","before":null,"after":{"a":1}}"#;
    assert_eq!(read(upsert, true), Ok((None, Some(r#"{"a":1}"#.into()))), "with a key it can do without");
}

#[test]
fn many_envelopes_are_read_in_their_order() {
    let messages: Vec<_> = (0..20_000).map(|i| format!(r#"{{"op":"c","after":{{"i":{i}}}}}"#)).collect();
    let messages: Vec<_> = messages.iter().map(|message| Some(message.as_bytes())).collect();
    let read = envelopes(&messages, true).unwrap();
    let after = |i: usize| read[i].as_ref().unwrap().as_ref().unwrap().after.unwrap().to_string();
    assert!((0..20_000).all(|i| after(i) == format!(r#"{{"i":{i}}}"#)));
}
