//! What a view's options say of who may read it, and of what must not be told apart in it.

use std::fmt;

use super::Place;
use crate::error::Result;

/// The options that [`DisclosureDef`] takes.
pub const DISCLOSURE_OPTIONS: [&str; 5] = ["access", "secret_by", "counted_in", "complete_when", "history"];

/// Most releases that a view's history keeps.
const HISTORY_MAX: usize = 1_000;

/// Who reads a view over HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody, as of the newest release.
    #[default]
    Public,
    /// Who has the operator's token.
    Operator,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Public => "public",
            Access::Operator => "operator",
        })
    }
}

/// As declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DisclosureDef {
    /// Who reads the view; without it, its query decides.
    pub access: Option<Access>,
    /// Key columns whose values make a group of people; none: all are one group. The other key columns say
    /// what they chose.
    pub secret_by: Option<Vec<String>>,
    /// Column that says how many rows of a stream a row stands for.
    pub counted_in: Option<String>,
    /// Column that is true in every row once all that is expected is counted; NULL: that is not known.
    pub complete_when: Option<String>,
    /// How many releases are kept of it.
    pub history: Option<usize>,
}

impl DisclosureDef {
    /// Takes an option; false if it is none of these.
    pub(super) fn set(&mut self, option: &str, value: &str, place: &Place) -> Result<bool> {
        match option {
            "access" => {
                let known = [Access::Public, Access::Operator];
                self.access =
                    known.into_iter().find(|access| value.eq_ignore_ascii_case(&access.to_string()));
                if self.access.is_none() {
                    let reason = format!("access '{value}' is not known; there are public and operator");
                    return Err(place.error(reason));
                }
            }
            "secret_by" => {
                let columns = value.split(',').map(|column| column.trim().to_string());
                self.secret_by = Some(columns.filter(|column| !column.is_empty()).collect());
            }
            "counted_in" => self.counted_in = Some(value.trim().into()),
            "complete_when" => self.complete_when = Some(value.trim().into()),
            "history" => {
                let number = value.trim().parse().ok().filter(|number| (1..=HISTORY_MAX).contains(number));
                self.history = Some(number.ok_or_else(|| {
                    place.error(format!("history '{value}' is no number of releases from 1 to {HISTORY_MAX}"))
                })?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
