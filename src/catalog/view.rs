//! `CREATE [MATERIALIZED] VIEW`: a query that is kept up to date, and its options.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    CreateTableOptions, CreateView, Expr, SqlOption, Statement as SqlStatement,
};

use super::disclosure::{DISCLOSURE_OPTIONS, DisclosureDef};
use super::{MILLISECOND, Place, bare_name, duration_ms, literal, normalize};
use crate::error::Result;

const VIEW_OPTIONS: [&str; 6] = ["topic", "key", "mode", "hold_rows", "hold_for", "ring_rows"];
/// Newest rows of an append view that stay readable, unless it says otherwise.
const RING_ROWS: usize = 10_000;

/// How many rows a view may hold, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Most rows.
    pub rows: usize,
    /// In event time, nanoseconds behind the watermark; without it, for ever.
    pub duration: Option<i64>,
}

/// When a view's rows are written, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The rows that changed, after each micro-batch.
    Update,
    /// All rows, after each micro-batch that changed one.
    Complete,
    /// Each row once, when it is final.
    Append,
}

impl Mode {
    /// As written in `queries/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Update => "update",
            Mode::Complete => "complete",
            Mode::Append => "append",
        }
    }
}

/// A declared view.
#[derive(Clone, Debug)]
pub struct ViewDef {
    /// Its name in SQL.
    pub name: String,
    /// Its declaration, as it was written.
    pub text: String,
    /// Where it is declared.
    pub place: Place,
    /// The statement's query, with window functions in FROM as they stand there.
    pub query: Statement,
    /// Kept up to date and served; otherwise only a name for a query.
    pub materialized: bool,
    /// Topic that receives its changelog.
    pub topic: Option<String>,
    /// Columns that tell its rows apart, as declared.
    pub key: Vec<String>,
    /// When rows are written; `None`: as its query suggests.
    pub mode: Option<Mode>,
    /// How many rows of streams it may hold, and for how long.
    pub hold: Option<Hold>,
    /// Newest rows that stay readable, if it is an append view without state.
    pub ring_rows: usize,
    /// Who may read it, and what must not be told apart in it.
    pub disclosure: DisclosureDef,
}

pub(super) fn view(place: Place, view: CreateView, text: &str) -> Result<ViewDef> {
    let name = bare_name(&view.name, &place)?;
    let mut def = ViewDef {
        name,
        text: text.into(),
        query: Statement::Statement(Box::new(SqlStatement::Query(view.query))),
        materialized: view.materialized,
        topic: None,
        key: Vec::new(),
        mode: None,
        hold: None,
        ring_rows: RING_ROWS,
        disclosure: DisclosureDef::default(),
        place,
    };
    let mut hold_for = None;
    let options = match &view.options {
        CreateTableOptions::None => &[][..],
        CreateTableOptions::With(options) => options,
        other => return Err(def.place.error(format!("`{other}`: write a view's options as WITH (…)"))),
    };
    if !def.materialized && !options.is_empty() {
        return Err(def.place.error("only a MATERIALIZED view has options"));
    }
    if !view.columns.is_empty() {
        return Err(def.place.error("name the columns in the SELECT, with AS"));
    }
    for option in options {
        let SqlOption::KeyValue { key, value: Expr::Value(value) } = option else {
            return Err(def.place.error(format!("`{option}`: write an option as name = 'value'")));
        };
        let value =
            literal(&value.value).ok_or_else(|| def.place.error(format!("option {key} must be text")))?;
        match normalize(key).as_str() {
            "topic" => def.topic = Some(value),
            "key" => def.key = value.split(',').map(|column| column.trim().to_string()).collect(),
            "mode" => {
                let modes = [Mode::Update, Mode::Complete, Mode::Append];
                def.mode = modes.into_iter().find(|mode| value.eq_ignore_ascii_case(mode.as_str()));
                if def.mode.is_none() {
                    let reason =
                        format!("mode '{value}' is not known; there are update, complete and append");
                    return Err(def.place.error(reason));
                }
            }
            "hold_rows" => {
                def.hold = Some(Hold { rows: number(&def.place, "hold_rows", &value)?, duration: None })
            }
            "ring_rows" => def.ring_rows = number(&def.place, "ring_rows", &value)?,
            "hold_for" => match duration_ms(&value).filter(|duration| *duration > 0) {
                Some(duration) => hold_for = Some(duration.saturating_mul(MILLISECOND)),
                None => {
                    return Err(def
                        .place
                        .error(format!("hold_for '{value}' is no duration such as '1 hour'")));
                }
            },
            option if def.disclosure.set(option, &value, &def.place)? => {}
            other => {
                let known = [&VIEW_OPTIONS[..], &DISCLOSURE_OPTIONS[..]].concat().join(", ");
                return Err(def.place.error(format!("unknown option '{other}'; a view knows {known}")));
            }
        }
    }
    match &mut def.hold {
        Some(hold) => hold.duration = hold_for,
        None if hold_for.is_some() => {
            return Err(def.place.error("hold_for needs hold_rows, the most rows that may be held"));
        }
        None => {}
    }
    Ok(def)
}

fn number(place: &Place, option: &str, text: &str) -> Result<usize> {
    let number = text.replace('_', "").parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| place.error(format!("{option} '{text}' is no number of rows such as 1000000")))
}
