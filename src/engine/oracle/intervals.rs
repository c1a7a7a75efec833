//! Joins of rows by an interval of their event times: a row is late for one if event time had passed it as it came.
//! That a condition is an interval is found by trying times that are far apart.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, UInt64Type};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Join, LogicalPlan};
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::prelude::col;

use super::arrivals::{FINAL_UNTIL, POSITION, TIME, nanoseconds};
use super::finality;
use super::recount::{Below, Recount};

/// A side of a join, and the source whose event time it has.
type Side = (LogicalPlan, String);

/// Times so far apart are not joined by an interval, in nanoseconds.
const FAR: i64 = 400 * 86_400 * 1_000_000_000;

impl Recount<'_> {
    /// The plan with its filters where they belong, and the sides of its joins by intervals with their sources; none
    /// if it has no such join.
    pub fn interval_joins(&self, plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Vec<Side>)>> {
        let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
            Arc::new(DecorrelatePredicateSubquery::new()),
            Arc::new(EliminateCrossJoin::new()),
            Arc::new(PushDownFilter::new()),
        ];
        let state = self.session.state();
        let analyzed = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {})?;
        let placed = Optimizer::with_rules(rules).optimize(analyzed, &state, |_, _| {})?;
        let mut sides = Vec::new();
        placed.apply_with_subqueries(|node| {
            let LogicalPlan::Join(join) = node else { return Ok(TreeNodeRecursion::Continue) };
            for (left, right) in self.pairs(join)? {
                let of = [self.event_time_of(&join.left, left), self.event_time_of(&join.right, right)];
                if let [Some(left), Some(right)] = of {
                    sides.extend([(join.left.as_ref().clone(), left), (join.right.as_ref().clone(), right)]);
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok((!sides.is_empty()).then_some((placed, sides)))
    }

    /// The rows of a side that came on time; positions of the others, and of those that an expression can't take.
    pub async fn on_time(&self, side: &LogicalPlan, source: &String) -> Result<Below> {
        let (rows, failed) = self.run_by_era(side, side, Some(source), false).await?;
        let hidden = |name: &str| rows.column_by_name(name).unwrap();
        let (times, until) = (nanoseconds(hidden(TIME)), hidden(FINAL_UNTIL).as_primitive::<Int64Type>());
        let positions = hidden(POSITION).as_primitive::<UInt64Type>();
        let is_late =
            |row: usize| times.is_valid(row) && until.is_valid(row) && times.value(row) < until.value(row);
        let late = (0..rows.num_rows()).filter(|row| is_late(*row)).map(|row| positions.value(row)).collect();
        let keep: Vec<_> = (0..rows.num_rows()).map(|row| Some(!is_late(row))).collect();
        let rows = filter_record_batch(&rows, &BooleanArray::from_iter(keep))?;
        let visible: Vec<usize> = (0..side.schema().fields().len()).collect();
        Ok(Below { rows: rows.project(&visible)?, late, failed })
    }

    /// The source of which a column is the event time, if the plan takes each of its rows alone.
    fn event_time_of(&self, plan: &LogicalPlan, column: usize) -> Option<String> {
        let (expr, table) = finality::trace(finality::column(plan.schema(), column), plan)?;
        let time = self.arrivals.get(&table)?.time()?;
        let is_time = matches!(&expr, Expr::Column(column) if column.name == time);
        (is_time && self.is_fed(plan) && self.by_row(plan)).then_some(table)
    }

    /// Pairs of a left and a right column that the condition leaves not far apart.
    fn pairs(&self, join: &Join) -> Result<Vec<(usize, usize)>> {
        let mut conditions: Vec<Expr> =
            join.on.iter().map(|(left, right)| left.clone().eq(right.clone())).collect();
        conditions.extend(join.filter.iter().flat_map(|filter| split_conjunction(filter)).cloned());
        let is_time =
            |schema: &DFSchema, i: &usize| matches!(schema.field(*i).data_type(), DataType::Timestamp(..));
        let times = |plan: &LogicalPlan| {
            let schema = Arc::clone(plan.schema());
            (0..schema.fields().len()).filter(|i| is_time(&schema, i)).collect::<Vec<_>>()
        };
        let mut pairs = Vec::new();
        for left in times(&join.left) {
            for right in times(&join.right) {
                let columns = [
                    finality::column(join.left.schema(), left),
                    finality::column(join.right.schema(), right),
                ];
                if self.excludes(&conditions, &columns, FAR)? && self.excludes(&conditions, &columns, -FAR)? {
                    pairs.push((left, right));
                }
            }
        }
        Ok(pairs)
    }

    /// Whether a condition over just these two columns, both times, is not met if the first is so much later.
    fn excludes(&self, conditions: &[Expr], columns: &[Expr; 2], later: i64) -> Result<bool> {
        const ONE_TIME: i64 = 1_704_103_200_123_456_789;
        for condition in conditions {
            let of: Vec<_> = columns.iter().flat_map(|column| column.column_refs()).collect();
            let refs = condition.column_refs();
            if refs.len() != 2 || !of.iter().all(|column| refs.contains(column)) {
                continue;
            }
            let field = |name: &str| Field::new(name, DataType::Timestamp(TimeUnit::Nanosecond, None), true);
            let schema = Arc::new(Schema::new(vec![field("oracle_one"), field("oracle_other")]));
            let as_columns = |part: Expr| {
                let place = of.iter().position(|column| part == Expr::Column((*column).clone()));
                let name = place.map(|i| ["oracle_one", "oracle_other"][i]);
                Ok(match name {
                    Some(name) => Transformed::yes(col(name)),
                    None => Transformed::no(part),
                })
            };
            let condition = condition.clone().transform(as_columns)?.data;
            let condition =
                self.session.create_physical_expr(condition, &DFSchema::try_from(Arc::clone(&schema))?)?;
            let time = |time: i64| cast(&Int64Array::from(vec![time]), schema.field(0).data_type());
            let columns = vec![time(ONE_TIME + later)?, time(ONE_TIME)?];
            let met = condition.evaluate(&RecordBatch::try_new(schema.clone(), columns)?)?.into_array(1)?;
            if !met.as_boolean().value(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
