//! Variances, covariances, correlations and regressions from exact sums of values and of products: the same in any
//! order, and what a window leaves is taken back. Only the last steps round.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, UInt64Array};
use arrow::datatypes::{DataType, FieldRef, Float64Type, Int64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};

use super::dyadic::{Dyadic, Scaled};
use super::superaccumulator::{self, PRODUCT_UNIT, Superaccumulator, UNIT};
use super::{as_inner, floats};
use crate::checkpoint::{Loader, Saver, numbers};

/// One of these functions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Moments {
    inner: Arc<AggregateUDF>,
    statistic: Statistic,
}

impl Moments {
    /// In place of DataFusion's `inner`; none if that is another function.
    pub fn new(inner: Arc<AggregateUDF>) -> Option<Self> {
        Some(Moments { statistic: Statistic::named(inner.name())?, inner })
    }

    fn is_distinct(&self, args: &AccumulatorArgs) -> bool {
        args.is_distinct && self.statistic.arguments() == 1
    }
}

impl AggregateUDFImpl for Moments {
    as_inner!();

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if args.is_distinct && self.statistic.arguments() == 1 {
            return Ok(floats::distinct_fields(&args));
        }
        Ok(floats::state_fields(&args, self.statistic.sums().1))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let statistic = self.statistic;
        let over_all = move || Box::new(One::new(statistic)) as Box<dyn Accumulator>;
        Ok(if self.is_distinct(&args) { Box::new(floats::Distinct::new(over_all)) } else { over_all() })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !self.is_distinct(&args)
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(self.statistic)))
    }
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// Of one argument.
    Variance {
        /// Of a sample: of one value less.
        sample: bool,
    },
    /// The root of the variance.
    Deviation {
        /// Of a sample: of one value less.
        sample: bool,
    },
    /// Of two arguments.
    Covariance {
        /// Of a sample: of one pair less.
        sample: bool,
    },
    /// Of two arguments.
    Correlation,
    /// Of the dependent and the independent one.
    Regression(Regression),
}

/// What is told of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is named as its function")]
pub enum Regression {
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

/// Which exact sums a statistic needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    X,
    Y,
    XX,
    YY,
    XY,
}

impl Statistic {
    /// What the function of that name computes.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "var" => Statistic::Variance { sample: true },
            "var_pop" => Statistic::Variance { sample: false },
            "stddev" => Statistic::Deviation { sample: true },
            "stddev_pop" => Statistic::Deviation { sample: false },
            "covar_samp" => Statistic::Covariance { sample: true },
            "covar_pop" => Statistic::Covariance { sample: false },
            "corr" => Statistic::Correlation,
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

    /// How many arguments it takes.
    pub fn arguments(self) -> usize {
        if matches!(self, Statistic::Variance { .. } | Statistic::Deviation { .. }) { 1 } else { 2 }
    }

    /// The sums it needs, and their names in its state.
    fn sums(self) -> (&'static [Sum], &'static [&'static str]) {
        match self {
            Statistic::Variance { .. } | Statistic::Deviation { .. } => (&[Sum::X, Sum::XX], &["x", "xx"]),
            Statistic::Covariance { .. } => (&[Sum::X, Sum::Y, Sum::XY], &["x", "y", "xy"]),
            Statistic::Regression(Regression::Count) => (&[], &[]),
            Statistic::Correlation | Statistic::Regression(_) => {
                (&[Sum::X, Sum::Y, Sum::XX, Sum::YY, Sum::XY], &["x", "y", "xx", "yy", "xy"])
            }
        }
    }

    /// The arguments that are x and y; without a second one y is x.
    fn columns(self, values: &[ArrayRef]) -> (&Float64Array, &Float64Array) {
        let argument = |i: usize| values[i].as_primitive::<Float64Type>();
        match self {
            Statistic::Variance { .. } | Statistic::Deviation { .. } => (argument(0), argument(0)),
            Statistic::Covariance { .. } | Statistic::Correlation => (argument(0), argument(1)),
            // SQL names the dependent one first.
            Statistic::Regression(_) => (argument(1), argument(0)),
        }
    }
}

/// The exact sums of some groups.
#[derive(Debug)]
pub struct Groups {
    statistic: Statistic,
    counts: Vec<i64>,
    /// Of each group those that the statistic needs.
    sums: Vec<Superaccumulator>,
    /// Bytes that the groups hold which were copied here.
    heap_bytes: usize,
}

impl Groups {
    /// Of no group.
    pub fn new(statistic: Statistic) -> Self {
        Groups { statistic, counts: Vec::new(), sums: Vec::new(), heap_bytes: 0 }
    }

    /// Has so many groups, of which the last are new.
    pub fn resize(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
        self.sums.resize_with(groups * self.width(), Superaccumulator::default);
    }

    /// Adds the arguments in a row so many times to a group; takes them back where that is negative. NULLs are no pairs.
    pub fn add(&mut self, values: &[ArrayRef], row: usize, group: usize, weight: i64) {
        let (x, y) = self.statistic.columns(values);
        if x.is_valid(row) && y.is_valid(row) {
            self.add_pair(x.value(row), y.value(row), group, weight);
        }
    }

    fn add_pair(&mut self, x: f64, y: f64, group: usize, weight: i64) {
        self.counts[group] += weight;
        let finite = x.is_finite() && y.is_finite();
        let width = self.width();
        let sums = &mut self.sums[group * width..][..width];
        for (sum, which) in sums.iter_mut().zip(self.statistic.sums().0) {
            match which {
                Sum::X => sum.add(x, weight),
                Sum::Y => sum.add(y, weight),
                // The sums of x and y know of what is no number.
                Sum::XX if finite => sum.add_product(x, x, weight),
                Sum::YY if finite => sum.add_product(y, y, weight),
                Sum::XY if finite => sum.add_product(x, y, weight),
                Sum::XX | Sum::YY | Sum::XY => {}
            }
        }
    }

    /// How many rows a group has.
    pub fn count(&self, group: usize) -> i64 {
        self.counts[group]
    }

    /// Replaces a group by one of `other`, which is of the same statistic.
    pub fn copy(&mut self, group: usize, other: &Groups, from: usize) {
        let width = self.width();
        self.counts[group] = other.counts[from];
        let from = &other.sums[from * width..][..width];
        let sums = &mut self.sums[group * width..][..width];
        let bytes = |sums: &[Superaccumulator]| sums.iter().map(Superaccumulator::heap_bytes).sum::<usize>();
        self.heap_bytes = self.heap_bytes + bytes(from) - bytes(sums);
        sums.clone_from_slice(from);
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Gives the groups to a checkpoint.
    pub fn save(&self, saver: &mut Saver) -> Result<()> {
        let Groups { statistic: _, counts, sums, heap_bytes: _ } = self;
        saver.columns(vec![Arc::new(Int64Array::from(counts.clone()))])?;
        saver.columns(vec![superaccumulator::to_column(sums)])
    }

    /// Takes the groups of a checkpoint in place of its own.
    pub fn load(&mut self, loader: &mut Loader) -> Result<()> {
        let ([counts], [sums]) = (loader.columns()?, loader.columns()?);
        self.counts = numbers::<Int64Type>(&counts)?.values().to_vec();
        self.sums = superaccumulator::of_column(&sums)?;
        self.heap_bytes = self.sums.iter().map(Superaccumulator::heap_bytes).sum();
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.counts.capacity() * size_of::<i64>()
            + self.sums.capacity() * size_of::<Superaccumulator>()
            + self.heap_bytes
    }

    /// The answers of all groups.
    pub fn evaluate(&self) -> ArrayRef {
        match self.statistic {
            Statistic::Regression(Regression::Count) => {
                Arc::new(UInt64Array::from_iter_values(self.counts.iter().map(|count| *count as u64)))
            }
            _ => Arc::new((0..self.counts.len()).map(|group| self.answer(group)).collect::<Float64Array>()),
        }
    }

    fn width(&self) -> usize {
        self.statistic.sums().0.len()
    }

    fn sum(&self, group: usize, which: Sum) -> &Superaccumulator {
        let (sums, width) = (self.statistic.sums().0, self.width());
        let at =
            sums.iter().position(|sum| *sum == which).expect("invariant: a sum that the statistic needs");
        &self.sums[group * width + at]
    }

    /// n · Σab − Σa · Σb, which is n times the sum of products about the means; NaN where a value is no number.
    fn about_means(&self, group: usize, a: Sum, b: Sum, product: Sum) -> Option<Dyadic> {
        let (a, b) = (self.sum(group, a), self.sum(group, b));
        if a.special().is_some() || b.special().is_some() {
            return None;
        }
        let products = self.sum(group, product).exact(PRODUCT_UNIT);
        let means = a.exact(UNIT).times(&b.exact(UNIT));
        Some(products.times_integer(self.counts[group] as u64).minus(&means))
    }

    fn answer(&self, group: usize) -> Option<f64> {
        let count = u64::try_from(self.counts[group]).ok().filter(|count| *count > 0)?;
        let n = count as f64;
        let xx = || self.scaled(group, Sum::X, Sum::X, Sum::XX);
        let yy = || self.scaled(group, Sum::Y, Sum::Y, Sum::YY);
        let xy = || self.scaled(group, Sum::X, Sum::Y, Sum::XY);
        let of = |sum: Scaled, sample: bool| match (count, sample) {
            (1, true) => None,
            (_, true) => Some(sum.over_float(n * (count - 1) as f64)),
            (_, false) => Some(sum.over_float(n * n)),
        };
        let mean = |sum: Sum| self.sum(group, sum).mean(count);
        let is_nan = |sum: Sum| self.sum(group, sum).special().is_some_and(f64::is_nan);
        let regression = match self.statistic {
            Statistic::Variance { sample } => return of(xx(), sample).map(Scaled::value),
            Statistic::Deviation { sample } => return of(xx(), sample).map(|sum| sum.root().value()),
            Statistic::Covariance { sample } => return of(xy(), sample).map(Scaled::value),
            // As DataFusion has it.
            Statistic::Correlation if is_nan(Sum::X) && is_nan(Sum::Y) => return Some(f64::NAN),
            Statistic::Correlation if count < 2 || is_nan(Sum::X) || is_nan(Sum::Y) => return None,
            Statistic::Correlation => {
                let (xx, yy) = (xx(), yy());
                let is_line = !xx.is_zero() && !yy.is_zero();
                return is_line.then(|| xy().over(xx.times(yy).root()).value().clamp(-1.0, 1.0));
            }
            Statistic::Regression(regression) => regression,
        };
        let line = |what: &dyn Fn(Scaled) -> f64| {
            let xx = xx();
            (count > 1 && !xx.is_zero()).then(|| what(xx))
        };
        match regression {
            Regression::Count => Some(n),
            Regression::AvgX => Some(mean(Sum::X)),
            Regression::AvgY => Some(mean(Sum::Y)),
            Regression::Sxx => Some(xx().over_float(n).value()),
            Regression::Syy => Some(yy().over_float(n).value()),
            Regression::Sxy => Some(xy().over_float(n).value()),
            Regression::Slope => line(&|xx| xy().over(xx).value()),
            Regression::Intercept => line(&|xx| mean(Sum::Y) - xy().over(xx).value() * mean(Sum::X)),
            Regression::R2 if yy().is_zero() => None,
            Regression::R2 => line(&|xx| xy().times(xy()).over(xx.times(yy())).value()),
        }
    }

    fn scaled(&self, group: usize, a: Sum, b: Sum, product: Sum) -> Scaled {
        self.about_means(group, a, b, product).map_or(Scaled::NAN, |sum| sum.scaled())
    }

    fn merge(&mut self, states: &[ArrayRef], mut group: impl FnMut(usize) -> usize) {
        let counts = states[0].as_primitive::<UInt64Type>();
        let width = self.width();
        for row in 0..counts.len() {
            let group = group(row);
            self.counts[group] += counts.value(row) as i64;
            for (sum, column) in self.sums[group * width..][..width].iter_mut().zip(&states[1..]) {
                sum.merge_encoded(column.as_binary::<i32>().value(row));
            }
        }
    }

    fn states(&self) -> Result<Vec<ArrayRef>> {
        let counts = UInt64Array::from_iter_values(self.counts.iter().map(|count| *count as u64));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(counts)];
        for at in 0..self.width() {
            let sums: Vec<_> = self.sums.iter().skip(at).step_by(self.width()).collect();
            columns.push(Arc::new(floats::encode(sums.into_iter())?));
        }
        Ok(columns)
    }

    fn emit(&mut self, emit_to: EmitTo) -> Groups {
        let groups = match emit_to {
            EmitTo::All => self.counts.len(),
            EmitTo::First(groups) => groups,
        };
        let sums = EmitTo::First(groups * self.width()).take_needed(&mut self.sums);
        Groups {
            statistic: self.statistic,
            counts: emit_to.take_needed(&mut self.counts),
            sums,
            heap_bytes: 0,
        }
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.resize(total_num_groups);
        for (row, group) in group_indices.iter().enumerate() {
            if opt_filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.add(values, row, *group, 1);
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
        self.resize(total_num_groups);
        self.merge(values, |row| group_indices[row]);
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(Groups::evaluate(&self.emit(emit_to)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.emit(emit_to).states()
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let mut each = Groups::new(self.statistic);
        let rows = values[0].len();
        each.update_batch(values, &(0..rows).collect::<Vec<_>>(), opt_filter, rows)?;
        each.states()
    }

    fn size(&self) -> usize {
        self.bytes()
    }
}

/// One group, or what a window's frame has.
#[derive(Debug)]
struct One(Groups);

impl One {
    fn new(statistic: Statistic) -> Self {
        let mut groups = Groups::new(statistic);
        groups.resize(1);
        One(groups)
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        (0..values[0].len()).for_each(|row| self.0.add(values, row, 0, 1));
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        (0..values[0].len()).for_each(|row| self.0.add(values, row, 0, -1));
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge(states, |_| 0);
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.states()?.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&self.0.evaluate(), 0)
    }

    fn size(&self) -> usize {
        self.0.bytes()
    }
}
