//! What operators keep, for people.

use datafusion::logical_expr::{Expr, Join, JoinType, LogicalPlan};

use super::Cut;
use crate::engine::flow::finality::Finality;
use crate::engine::flow::top_k::{Numbering, TopKSpec};
use crate::engine::upkeep::{BOUND_ROWS, UNTIL_FINAL, Upkeep, length, spelled};

impl Cut<'_> {
    /// `bound`: of each side a column, and when rows with its values are needed no more.
    pub(super) fn upkeep_of_join(
        &self,
        join: &Join,
        inputs: &[usize],
        bound: Option<&[(usize, Finality)]>,
    ) -> Upkeep {
        let equal = |(left, right): &(Expr, Expr)| {
            let [left, right] = [(left, &join.left), (right, &join.right)]
                .map(|(key, side)| spelled(std::slice::from_ref(key), side));
            format!("{left} = {right}")
        };
        let by = match &join.on[..] {
            [] => String::new(),
            on => format!(" by {}", on.iter().map(equal).collect::<Vec<_>>().join(", ")),
        };
        let costs = match (join.on.is_empty(), &join.filter) {
            (false, _) => "the rows that it meets",
            (true, None) => "all rows of the other side",
            (true, Some(_)) => "a comparison with all rows of the other side",
        };
        let until = match (bound, self.terms.hold_ns) {
            (Some(bound), _) => {
                let longest = bound.iter().map(|(_, time)| time.after).max().unwrap_or_default();
                // The instant itself is a nanosecond.
                Some(match longest {
                    ..=1 => "the watermark has passed them".into(),
                    longest => format!("the watermark is {} past them", length(longest - longest % 1_000)),
                })
            }
            (None, Some(hold_ns)) => {
                let freed = inputs.iter().filter(|input| self.is_append_only(**input)).count();
                let which = if freed < inputs.len() { ", where rows only come" } else { "" };
                (freed > 0).then(|| format!("event time is {} further (hold_for){which}", length(hold_ns)))
            }
            (None, None) => None,
        };
        Upkeep {
            keeps: format!("both sides of the {} join{by}", kind(join.join_type)),
            costs: costs.into(),
            until,
            advice: self.advice(inputs),
        }
    }

    /// `by`: the key by which the plan falls apart; none: it is computed anew.
    pub(super) fn upkeep_by_key(
        &self,
        plan: &LogicalPlan,
        inputs: &[usize],
        by: Option<String>,
        is_bound: bool,
    ) -> Upkeep {
        let (keeps, costs) = match by {
            Some(by) => (format!("rows by {by}"), format!("all rows of the {by} that it touches")),
            None => {
                let name = plan.display().to_string();
                let name = name.split([':', '=']).next().unwrap_or_default().to_string();
                (format!("all rows below {name}"), "all of them: it is computed anew".into())
            }
        };
        let until = is_bound.then(|| UNTIL_FINAL.to_string());
        Upkeep { keeps, costs, until, advice: self.advice(inputs) }
    }

    /// Rows that only come have no end.
    fn advice(&self, inputs: &[usize]) -> Option<&'static str> {
        inputs.iter().any(|input| self.is_append_only(*input)).then_some(BOUND_ROWS)
    }
}

/// Rows in an order, which `order` spells, of each `partition`.
pub(super) fn upkeep_of_order(spec: &TopKSpec, order: &str, partition: String) -> Upkeep {
    let kept_first = spec.fetch.filter(|_| spec.append_only).map(|fetch| spec.skip.saturating_add(fetch));
    let which = match (kept_first, spec.by) {
        (Some(first), Numbering::RowNumber) => format!("the first {first} rows"),
        (Some(first), _) => format!("the rows of the first {first} ranks"),
        (None, _) => "all rows".into(),
    };
    let of = if partition.is_empty() { String::new() } else { format!(" of each {partition}") };
    Upkeep {
        keeps: format!("{which}{of} in the order of {order}"),
        costs: "its rows and the first ones that it moves".into(),
        until: spec.bound.as_ref().map(|_| UNTIL_FINAL.into()),
        advice: (spec.append_only && kept_first.is_none()).then_some(BOUND_ROWS),
    }
}

fn kind(kind: JoinType) -> &'static str {
    match kind {
        JoinType::Inner => "inner",
        JoinType::Left => "left",
        JoinType::Right => "right",
        JoinType::Full => "full",
        JoinType::LeftSemi | JoinType::RightSemi => "semi",
        JoinType::LeftAnti | JoinType::RightAnti => "anti",
        JoinType::LeftMark | JoinType::RightMark => "mark",
    }
}
