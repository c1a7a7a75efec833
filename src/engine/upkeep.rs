//! What keeping a view up to date takes, for people: what is kept, what a change costs, and until when.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter, Result};

use datafusion::logical_expr::{Expr, LogicalPlan};
use serde::Serialize;

/// Of one part of a view, or of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upkeep {
    /// What is kept: "a group for each county".
    pub keeps: String,
    /// What a change costs: "its rows and groups".
    pub costs: String,
    /// Until when it is kept; none: for ever.
    pub until: Option<String>,
    /// What to do about rows of streams that are kept for ever: they have no end.
    #[serde(skip)]
    pub advice: Option<&'static str>,
}

/// What keeping a whole view up to date takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ViewUpkeep {
    /// Its parts that keep something, from the streams up.
    pub parts: Vec<Upkeep>,
}

/// What to do about rows that an operator keeps, …
pub const BOUND_ROWS: &str = "let event time bound them (a window, or an interval between the times that a join \
     compares), or set hold_for or hold_rows";
/// … and about those of a view.
pub const TELL_ONCE: &str = "mode 'append' tells each once and keeps the newest ring_rows";

/// That groups and keys are kept until event time makes them final.
pub const UNTIL_FINAL: &str = "the watermark has passed their end";

impl Upkeep {
    /// Groups by `keys`, expressions over `input`; one without keys. `more` is what is kept of each besides numbers.
    pub fn of_groups(keys: &[Expr], input: &LogicalPlan, more: &[String], is_bound: bool) -> Upkeep {
        let mut keeps = match keys {
            [] => "one group".to_string(),
            keys => format!("a group for each {}", spelled(keys, input)),
        };
        if !more.is_empty() {
            keeps += &format!(" ({})", more.join("; "));
        }
        let until = is_bound.then(|| UNTIL_FINAL.to_string());
        Upkeep { keeps, costs: "its rows and groups".into(), until, advice: None }
    }

    /// What to do about rows that are kept for ever.
    pub fn warning(&self) -> Option<String> {
        let advice = self.advice.filter(|_| self.until.is_none())?;
        Some(format!("{} are kept for ever: {advice}", self.keeps))
    }

    fn how_long(&self) -> String {
        self.until.as_ref().map_or("for ever".into(), |until| format!("until {until}"))
    }
}

impl Display for Upkeep {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "keeps {} {}; a change costs {}", self.keeps, self.how_long(), self.costs)
    }
}

impl ViewUpkeep {
    /// What to do about rows that are kept for ever.
    pub fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.parts.iter().filter_map(Upkeep::warning)
    }
}

impl Display for ViewUpkeep {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.parts.is_empty() {
            return write!(f, "keeps nothing; a change costs its rows");
        }
        let mut kept: Vec<(String, Vec<&str>)> = Vec::new();
        for part in &self.parts {
            let until = part.how_long();
            match kept.iter_mut().find(|(known, _)| *known == until) {
                Some((_, keeps)) if keeps.contains(&part.keeps.as_str()) => {}
                Some((_, keeps)) => keeps.push(&part.keeps),
                None => kept.push((until, vec![&part.keeps])),
            }
        }
        let kept: Vec<_> =
            kept.into_iter().map(|(until, keeps)| format!("{} {until}", keeps.join(", "))).collect();
        let costs: BTreeSet<&str> = self.parts.iter().map(|part| part.costs.as_str()).collect();
        let costs: Vec<_> = costs.into_iter().collect();
        write!(f, "keeps {}; a change costs {}", kept.join(", and "), costs.join(", "))
    }
}

/// Expressions over a plan's columns as the query has them.
pub fn spelled(exprs: &[Expr], plan: &LogicalPlan) -> String {
    exprs.iter().map(|expr| spell(expr, plan)).collect::<Vec<_>>().join(", ")
}

fn spell(expr: &Expr, plan: &LogicalPlan) -> String {
    // The planner's own names begin so.
    let is_own = |name: &str| name.starts_with("__");
    match (expr, plan) {
        (Expr::Alias(alias), _) if is_own(&alias.name) => spell(&alias.expr, plan),
        (Expr::Alias(alias), _) => alias.name.clone(),
        (Expr::Column(column), LogicalPlan::Projection(projection)) if is_own(&column.name) => {
            match projection.schema.maybe_index_of_column(column) {
                Some(place) => spell(&projection.expr[place], &projection.input),
                None => column.name.clone(),
            }
        }
        _ => expr.human_display().to_string(),
    }
}

/// A length of event time.
pub fn length(nanoseconds: i64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    match seconds {
        s if s.abs() >= 120.0 && s % 60.0 < 1e-6 => format!("{} min", (s / 60.0).round()),
        s => format!("{} s", (s * 1e3).round() / 1e3),
    }
}
