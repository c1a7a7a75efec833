//! A case for people: the declarations, and what is told as one line a message, with the columns that a view names.

use super::Case;
use super::data::{Row, Step};

/// The whole case.
pub fn show(case: &Case) -> String {
    let mut lines = case.texts().into_iter().map(|text| format!("{text};")).collect::<Vec<_>>();
    let asked = case.views.iter().map(|view| view.sql()).collect::<Vec<_>>().join(" ");
    let words: Vec<&str> = asked.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let everything = asked.contains("SELECT *");
    for step in &case.steps {
        match step {
            Step::Messages { source, messages } => {
                lines.push(format!("-- a micro-batch of {source}"));
                for message in messages {
                    let row = |row: &Option<Row>| {
                        row.as_ref().map(|row| self::row(row, |name| everything || words.contains(&name)))
                    };
                    let text = match (row(&message.back), row(&message.came)) {
                        (Some(back), Some(came)) => format!("UPDATE {back} TO {came}"),
                        (Some(back), None) => format!("DELETE {back}"),
                        (None, Some(came)) => format!("INSERT {came}"),
                        (None, None) => "nothing".into(),
                    };
                    lines.push(format!("{text} -- partition {}", message.partition));
                }
            }
            Step::Reference { table, rows } => lines.push(format!("-- {table} is now {rows:?}")),
        }
    }
    lines.join("\n")
}

/// A row's values that are asked for; the key always.
fn row(row: &Row, is_asked: impl Fn(&str) -> bool) -> String {
    let Row { id, k, g, x, i, u, f, d, s, at, z, tags } = row;
    let time = |seconds: &Option<i64>| {
        seconds.and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0)).map(|time| time.to_string())
    };
    let values: [(&str, String); 12] = [
        ("id", format!("{id}")),
        ("k", format!("{k:?}")),
        ("g", format!("{g:?}")),
        ("x", format!("{x:?}")),
        ("i", format!("{i:?}")),
        ("u", format!("{u:?}")),
        ("f", format!("{f:?}")),
        ("d", format!("{d:?} hundredths")),
        ("s", format!("{s:?}")),
        ("at", format!("{:?}", time(at))),
        ("z", format!("{:?}", time(z))),
        ("tags", format!("{tags:?}")),
    ];
    let shown = values.iter().filter(|(name, _)| *name == "id" || is_asked(name));
    let shown = shown.map(|(name, value)| {
        let value = value.strip_prefix("Some(").and_then(|value| value.strip_suffix(')')).unwrap_or(value);
        format!("{name} {}", value.replace("None", "NULL"))
    });
    format!("({})", shown.collect::<Vec<_>>().join(", "))
}
