//! What a plan of a recount reads, and whether it takes each row of a stream by itself: such an aggregate meets reference
//! tables as they are when a row comes, and takes no late rows.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Distinct, Expr, JoinType, LogicalPlan};

use super::arrivals::TIME;
use super::finality;
use super::recount::{Bound, Recount};
use super::windows::Window;

impl Recount<'_> {
    pub fn is_stream(&self, name: &str) -> bool {
        self.catalog.sources.contains_key(name) || self.window(name).is_some()
    }

    /// Whether it is a source, a window of one, or a reference table: there are table functions too.
    pub fn is_ours(&self, name: &str) -> bool {
        self.is_stream(name) || self.catalog.tables.contains_key(name)
    }

    pub fn reads_stream(&self, plan: &LogicalPlan) -> bool {
        self.reads(plan, |name| self.is_stream(name))
    }

    /// Whether the plan, or a subquery in it, reads such a table.
    pub fn reads(&self, plan: &LogicalPlan, is_such: impl Fn(&str) -> bool) -> bool {
        let mut found = false;
        let walked = plan.apply_with_subqueries(|node| {
            found |= matches!(node, LogicalPlan::TableScan(scan) if is_such(scan.table_name.table()));
            Ok(TreeNodeRecursion::Continue)
        });
        walked.unwrap();
        found
    }

    /// Whether there is an aggregate over a stream.
    pub fn has_aggregate(&self, plan: &LogicalPlan) -> bool {
        let mut found = false;
        let walked = plan.apply_with_subqueries(|node| {
            found |= is_aggregate(node) && self.reads_stream(node);
            Ok(TreeNodeRecursion::Continue)
        });
        walked.unwrap();
        found
    }

    /// Whether it is a lowest aggregate of a stream's rows, each taken by itself: so it meets reference tables as
    /// they are when a row comes, and takes no late rows.
    pub fn is_incremental(&self, node: &LogicalPlan) -> bool {
        if !is_aggregate(node) || !self.is_fed(node) || self.is_taken_back(node) {
            return false;
        }
        let input = node.inputs()[0];
        let session = |name: &str| self.window(name).is_some_and(Window::is_session);
        // Sessions are of all rows, also of those that a filter or a join leaves out above: they are late for the rows.
        if self.asks_stream(node) || self.reads(node, session) && !is_of_all_rows(input) {
            return false;
        }
        let has_windows =
            !self.reads(node, session) || self.narrowest(node).is_some() || !asks_for_windows(node);
        !self.has_aggregate(input) && self.by_row(input) && has_windows
    }

    /// Which of an aggregate's keys tells when its groups are final: of several the one that stands for the
    /// shortest time, and of sessions their window.
    pub fn narrowest(&self, node: &LogicalPlan) -> Option<(Bound, String)> {
        let input = node.inputs()[0];
        let keys = match node {
            LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.clone(),
            _ => input.schema().columns().into_iter().map(Expr::Column).collect(),
        };
        let extent = |(bound, table): &(Bound, String)| match (bound, self.window(table)) {
            (Bound::Window, Some(window)) if window.is_session() => 0,
            (Bound::Window, Some(window)) => window.length(),
            (Bound::Time(key), _) => {
                let source = &self.catalog.sources[&self.source_of(table)];
                let time = source.schema.field_with_name(source.event_time.as_ref().unwrap()).unwrap();
                finality::extent(key, TIME, time.data_type(), &self.session)
            }
            _ => i64::MAX,
        };
        keys.into_iter().filter_map(|key| self.bound(key, input)).min_by_key(extent)
    }

    /// Whether a row of it can be taken back: then it follows the reference tables, and is never late.
    pub fn is_taken_back(&self, plan: &LogicalPlan) -> bool {
        self.reads(plan, |name| {
            self.is_stream(name) && self.catalog.sources[&self.source_of(name)].retracts()
        })
    }

    /// Whether it gives rows of streams, each for good and by itself, as it met the reference tables when it came.
    pub fn counts_each_row(&self, plan: &LogicalPlan) -> bool {
        self.is_fed(plan) && self.by_row(plan) && !self.is_taken_back(plan)
    }

    /// Whether the plan itself, without the subqueries in its expressions, reads a stream.
    pub fn is_fed(&self, plan: &LogicalPlan) -> bool {
        let scans = |node: &LogicalPlan| {
            Ok(matches!(node, LogicalPlan::TableScan(scan) if self.is_stream(scan.table_name.table())))
        };
        plan.exists(scans).unwrap()
    }

    /// Whether an expression of this very node has a subquery that reads a stream.
    fn asks_stream(&self, plan: &LogicalPlan) -> bool {
        let mut asks_stream = false;
        plan.apply_subqueries(|subquery| {
            asks_stream |= self.reads_stream(subquery);
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
        asks_stream
    }

    pub fn by_row(&self, plan: &LogicalPlan) -> bool {
        if !self.is_fed(plan) {
            return true;
        }
        if has_outer_columns(plan) {
            return false;
        }
        let asks_stream = self.asks_stream(plan);
        let takes_rows_alone = match plan {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::Union(_) => true,
            // Others also answer for rows of the table, by all rows of the stream.
            LogicalPlan::Join(join) => match (self.is_fed(&join.left), self.is_fed(&join.right)) {
                (true, false) => matches!(
                    join.join_type,
                    JoinType::Inner
                        | JoinType::Left
                        | JoinType::LeftSemi
                        | JoinType::LeftAnti
                        | JoinType::LeftMark
                ),
                (false, true) => matches!(
                    join.join_type,
                    JoinType::Inner
                        | JoinType::Right
                        | JoinType::RightSemi
                        | JoinType::RightAnti
                        | JoinType::RightMark
                ),
                _ => false,
            },
            _ => false,
        };
        takes_rows_alone && !asks_stream && plan.inputs().into_iter().all(|input| self.by_row(input))
    }
}

/// Whether an aggregate, or a filter below it, asks for the window of a row.
fn asks_for_windows(node: &LogicalPlan) -> bool {
    let is_window = |part: &Expr| {
        Ok(matches!(part, Expr::Column(c) if ["window_start", "window_end"].contains(&c.name.as_str())))
    };
    let asks = |node: &LogicalPlan| node.expressions().iter().any(|expr| expr.exists(is_window).unwrap());
    let filters = |node: &LogicalPlan| Ok(matches!(node, LogicalPlan::Filter(_)) && asks(node));
    asks(node) || node.exists(filters).unwrap()
}

/// Whether the plan gives a row for each of the table that it reads.
fn is_of_all_rows(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(projection) => is_of_all_rows(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => is_of_all_rows(&alias.input),
        other => matches!(other, LogicalPlan::TableScan(_)),
    }
}

fn is_aggregate(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(Distinct::All(_)))
}

/// Whether a node of a subquery asks for columns of the query around it.
fn has_outer_columns(node: &LogicalPlan) -> bool {
    let is_outer = |part: &Expr| Ok(matches!(part, Expr::OuterReferenceColumn(..)));
    node.expressions().iter().any(|expr| expr.exists(is_outer).unwrap())
}
