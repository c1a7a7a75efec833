//! Variances, covariances and regressions by Welford's method, as DataFusion computes them, with a state that can be
//! taken up again without loss: there merging a state into nothing rounds its means, so that each micro-batch
//! would change digits, and a variance of 0 became a small number by which a slope is divided.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, UInt64Array};
use arrow::datatypes::{DataType, FieldRef, Float64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};

use super::as_inner;

/// One of these functions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Resumable {
    inner: Arc<AggregateUDF>,
    statistic: Statistic,
}

impl Resumable {
    /// In place of DataFusion's `inner`; none if that is another function.
    pub fn new(inner: Arc<AggregateUDF>) -> Option<Self> {
        Some(Resumable { statistic: Statistic::named(inner.name())?, inner })
    }
}

impl AggregateUDFImpl for Resumable {
    as_inner!();

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return self.inner.accumulator(args);
        }
        Ok(Box::new(One { statistic: self.statistic, moments: Moments::default() }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Many { statistic: self.statistic, groups: Vec::new() }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(args)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Statistic {
    Variance { sample: bool },
    Deviation { sample: bool },
    Covariance { sample: bool },
    Regression(Regression),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Regression {
    Slope,
    Intercept,
    Count,
    R2,
    AvgX,
    AvgY,
    Sxx,
    Syy,
    Sxy,
}

/// What has been seen of pairs (x, y): how many, their means, and sums of squares and products about these.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: u64,
    mean_x: f64,
    mean_y: f64,
    m2_x: f64,
    m2_y: f64,
    xy: f64,
}

/// A number of [`Moments`].
type Part = fn(&mut Moments) -> &mut f64;

impl Statistic {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "var" => Statistic::Variance { sample: true },
            "var_pop" => Statistic::Variance { sample: false },
            "stddev" => Statistic::Deviation { sample: true },
            "stddev_pop" => Statistic::Deviation { sample: false },
            "covar_samp" => Statistic::Covariance { sample: true },
            "covar_pop" => Statistic::Covariance { sample: false },
            "regr_slope" => Statistic::Regression(Regression::Slope),
            "regr_intercept" => Statistic::Regression(Regression::Intercept),
            "regr_count" => Statistic::Regression(Regression::Count),
            "regr_r2" => Statistic::Regression(Regression::R2),
            "regr_avgx" => Statistic::Regression(Regression::AvgX),
            "regr_avgy" => Statistic::Regression(Regression::AvgY),
            "regr_sxx" => Statistic::Regression(Regression::Sxx),
            "regr_syy" => Statistic::Regression(Regression::Syy),
            "regr_sxy" => Statistic::Regression(Regression::Sxy),
            _ => return None,
        })
    }

    /// Columns of its state after the count, in the order of DataFusion's.
    fn parts(self) -> &'static [Part] {
        const MEAN_X: Part = |m| &mut m.mean_x;
        const MEAN_Y: Part = |m| &mut m.mean_y;
        const M2_X: Part = |m| &mut m.m2_x;
        const M2_Y: Part = |m| &mut m.m2_y;
        const XY: Part = |m| &mut m.xy;
        match self {
            Statistic::Variance { .. } | Statistic::Deviation { .. } => &[MEAN_X, M2_X],
            Statistic::Covariance { .. } => &[MEAN_X, MEAN_Y, XY],
            Statistic::Regression(_) => &[MEAN_X, MEAN_Y, M2_X, M2_Y, XY],
        }
    }

    /// The arguments that are x and y; without a second one y is x.
    fn arguments(self, values: &[ArrayRef]) -> (&Float64Array, &Float64Array) {
        let argument = |i: usize| values[i].as_primitive::<Float64Type>();
        match self {
            Statistic::Variance { .. } | Statistic::Deviation { .. } => (argument(0), argument(0)),
            Statistic::Covariance { .. } => (argument(0), argument(1)),
            // SQL names the dependent one first.
            Statistic::Regression(_) => (argument(1), argument(0)),
        }
    }

    fn evaluate(self, m: &Moments) -> Option<f64> {
        let n = m.count as f64;
        let of = |sum: f64, sample: bool| match (m.count, sample) {
            (0, _) | (1, true) => None,
            (_, true) => Some(sum / (m.count - 1) as f64),
            (_, false) => Some(sum / n),
        };
        let regression = match self {
            Statistic::Variance { sample } => return of(m.m2_x, sample),
            Statistic::Deviation { sample } => return of(m.m2_x, sample).map(f64::sqrt),
            Statistic::Covariance { sample } => return of(m.xy, sample),
            Statistic::Regression(regression) => regression,
        };
        let (covariance, variance_x, variance_y) = (m.xy / n, m.m2_x / n, m.m2_y / n);
        let is_line = m.count > 1 && variance_x != 0.0;
        let slope = covariance / variance_x;
        match regression {
            Regression::Slope => is_line.then_some(slope),
            Regression::Intercept => is_line.then_some(m.mean_y - slope * m.mean_x),
            Regression::R2 => (is_line && variance_y != 0.0)
                .then_some((covariance * covariance) / (variance_x * variance_y)),
            Regression::Count => Some(n),
            Regression::AvgX => (m.count > 0).then_some(m.mean_x),
            Regression::AvgY => (m.count > 0).then_some(m.mean_y),
            Regression::Sxx => (m.count > 0).then_some(m.m2_x),
            Regression::Syy => (m.count > 0).then_some(m.m2_y),
            Regression::Sxy => (m.count > 0).then_some(m.xy),
        }
    }

    /// The states of many groups, as columns.
    fn states(self, groups: &mut [Moments]) -> Vec<ArrayRef> {
        let counts = UInt64Array::from_iter_values(groups.iter().map(|m| m.count));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(counts)];
        for part in self.parts() {
            columns.push(Arc::new(Float64Array::from_iter_values(groups.iter_mut().map(|m| *part(m)))));
        }
        columns
    }

    /// Calls `take` for the state in each row of `columns`.
    fn each_state(self, columns: &[ArrayRef], mut take: impl FnMut(usize, &Moments)) {
        let counts = columns[0].as_primitive::<UInt64Type>();
        let parts: Vec<_> = self
            .parts()
            .iter()
            .zip(&columns[1..])
            .map(|(part, c)| (part, c.as_primitive::<Float64Type>()))
            .collect();
        for row in 0..counts.len() {
            let mut moments = Moments { count: counts.value(row), ..Moments::default() };
            for (part, values) in &parts {
                *part(&mut moments) = values.value(row);
            }
            take(row, &moments);
        }
    }
}

impl Moments {
    fn add(&mut self, x: f64, y: f64) {
        self.count += 1;
        let count = self.count as f64;
        let (delta_x, delta_y) = (x - self.mean_x, y - self.mean_y);
        self.mean_x += delta_x / count;
        self.mean_y += delta_y / count;
        self.m2_x += delta_x * (x - self.mean_x);
        self.m2_y += delta_y * (y - self.mean_y);
        self.xy += delta_x * (y - self.mean_y);
    }

    fn merge(&mut self, other: &Moments) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let (delta_x, delta_y) = (other.mean_x - self.mean_x, other.mean_y - self.mean_y);
        self.count += other.count;
        let count = self.count as f64;
        self.mean_x += delta_x * b / count;
        self.mean_y += delta_y * b / count;
        self.m2_x += other.m2_x + delta_x * delta_x * a * b / count;
        self.m2_y += other.m2_y + delta_y * delta_y * a * b / count;
        self.xy += other.xy + delta_x * delta_y * a * b / count;
    }
}

/// One group.
#[derive(Debug)]
struct One {
    statistic: Statistic,
    moments: Moments,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (x, y) = self.statistic.arguments(values);
        for pair in x.iter().zip(y) {
            if let (Some(x), Some(y)) = pair {
                self.moments.add(x, y);
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let moments = &mut self.moments;
        self.statistic.each_state(states, |_, state| moments.merge(state));
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let parts = self.statistic.parts().iter().map(|part| ScalarValue::from(*part(&mut self.moments)));
        let parts: Vec<_> = parts.collect();
        Ok(std::iter::once(ScalarValue::from(self.moments.count)).chain(parts).collect())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(match self.statistic {
            Statistic::Regression(Regression::Count) => ScalarValue::from(self.moments.count),
            statistic => ScalarValue::Float64(statistic.evaluate(&self.moments)),
        })
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// Many groups.
struct Many {
    statistic: Statistic,
    groups: Vec<Moments>,
}

impl GroupsAccumulator for Many {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.groups.resize(total_num_groups, Moments::default());
        let (x, y) = self.statistic.arguments(values);
        for (row, group) in group_indices.iter().enumerate() {
            let seen = opt_filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if seen && x.is_valid(row) && y.is_valid(row) {
                self.groups[*group].add(x.value(row), y.value(row));
            }
        }
        Ok(())
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.groups.resize(total_num_groups, Moments::default());
        let groups = &mut self.groups;
        self.statistic.each_state(values, |row, state| groups[group_indices[row]].merge(state));
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let groups = emit_to.take_needed(&mut self.groups);
        Ok(match self.statistic {
            Statistic::Regression(Regression::Count) => {
                Arc::new(UInt64Array::from_iter_values(groups.iter().map(|m| m.count)))
            }
            statistic => Arc::new(Float64Array::from_iter(groups.iter().map(|m| statistic.evaluate(m)))),
        })
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(self.statistic.states(&mut emit_to.take_needed(&mut self.groups)))
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let mut each = Many { statistic: self.statistic, groups: Vec::new() };
        let rows = values[0].len();
        each.update_batch(values, &(0..rows).collect::<Vec<_>>(), opt_filter, rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.groups.capacity() * size_of::<Moments>()
    }
}
