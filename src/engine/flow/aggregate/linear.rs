//! Functions that rows are taken from as they are added: counts, sums, averages, variances, BOOL_AND, BIT_XOR.

use std::fmt;
use std::marker::PhantomData;
use std::ops::BitXor;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, NullArray, PrimitiveArray, UInt64Array,
};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float64Type, Int64Type, i256};
use datafusion::common::exec_err;
use datafusion::error::Result;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::state::{Answers, Change, Linear, NOT_THERE, State};
use crate::checkpoint::{Loader, Saver, numbers};
use crate::engine::exact::check_precision;
use crate::engine::exact::floats::{Answer, FloatSum};
use crate::engine::exact::moments::{self, Statistic};
use crate::engine::exact::superaccumulator;

/// COUNT.
#[derive(Debug)]
pub struct Count;

impl Linear for Count {
    type Kept = i64;
    type Open = i64;

    fn open(&self, kept: &i64) -> i64 {
        *kept
    }
    fn add(&self, groups: &mut [i64], change: &Change<'_>) -> Result<()> {
        change.each(|position, _, weight| {
            groups[position] += weight;
            Ok(())
        })
    }
    fn count(group: &i64) -> i64 {
        *group
    }
    fn close(&self, group: i64) -> Result<i64> {
        Ok(group)
    }
    fn to_columns(groups: &[i64]) -> Result<[ArrayRef; 2]> {
        Ok([Arc::new(Int64Array::from(groups.to_vec())), Arc::new(NullArray::new(groups.len()))])
    }
    fn of_columns([counts, _]: &[ArrayRef; 2]) -> Result<Vec<i64>> {
        Ok(numbers::<Int64Type>(counts)?.values().to_vec())
    }
    fn evaluate(&self, groups: &[i64]) -> Result<ArrayRef> {
        Ok(Arc::new(Int64Array::from(groups.to_vec())))
    }
}

/// A number that is added up as a wider one.
pub trait Summand: Copy + Default + fmt::Debug + Send + Sync + 'static {
    /// So wide that nothing overflows on the way.
    type Wide: Copy;
    /// As a wide one.
    fn widen(self) -> Self::Wide;
    /// `sum` and so many times the number.
    fn add_to(self, sum: Self::Wide, weight: i64) -> Option<Self::Wide>;
    /// Of a wide one, if that fits.
    fn narrow(wide: Self::Wide) -> Option<Self>;
}

macro_rules! summand {
    ($number:ty, $wide:ty, $widen:expr, $times:expr, $narrow:expr) => {
        impl Summand for $number {
            type Wide = $wide;
            fn widen(self) -> $wide {
                $widen(self)
            }
            fn add_to(self, sum: $wide, weight: i64) -> Option<$wide> {
                sum.checked_add($widen(self).checked_mul($times(weight))?)
            }
            fn narrow(wide: $wide) -> Option<Self> {
                $narrow(wide)
            }
        }
    };
}
summand!(i32, i128, i128::from, i128::from, |wide: i128| wide.try_into().ok());
summand!(i64, i128, i128::from, i128::from, |wide: i128| wide.try_into().ok());
summand!(u64, i128, i128::from, i128::from, |wide: i128| wide.try_into().ok());
summand!(i128, i256, i256::from_i128, |weight| i256::from_i128(i128::from(weight)), i256::to_i128);
summand!(i256, i256, |value| value, |weight| i256::from_i128(i128::from(weight)), Some);

/// SUM of integers, decimals and durations.
pub struct Sum<T: ArrowPrimitiveType> {
    data_type: DataType,
    /// Of the argument and of the sum, which are kept as the same.
    numbers: PhantomData<fn() -> T>,
}

/// How many numbers, and their sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted<N> {
    count: i64,
    sum: N,
}

fn counted<T: ArrowPrimitiveType>(groups: &[Counted<T::Native>]) -> [ArrayRef; 2] {
    let counts = Int64Array::from_iter_values(groups.iter().map(|group| group.count));
    let sums = PrimitiveArray::<T>::from_iter_values(groups.iter().map(|group| group.sum));
    [Arc::new(counts), Arc::new(sums)]
}

fn of_counted<T: ArrowPrimitiveType>([counts, sums]: &[ArrayRef; 2]) -> Result<Vec<Counted<T::Native>>> {
    let counts = numbers::<Int64Type>(counts)?.values().iter();
    let groups = counts.zip(numbers::<T>(sums)?.values());
    Ok(groups.map(|(count, sum)| Counted { count: *count, sum: *sum }).collect())
}

impl<T: ArrowPrimitiveType> Sum<T> {
    /// A sum of that type.
    pub fn new(data_type: &DataType) -> Self {
        Sum { data_type: data_type.clone(), numbers: PhantomData }
    }

    fn sums(&self, groups: &[Counted<T::Native>]) -> ArrayRef {
        let sums = groups.iter().map(|group| (group.count > 0).then_some(group.sum));
        Arc::new(sums.collect::<PrimitiveArray<T>>().with_data_type(self.data_type.clone()))
    }
}

impl<T: ArrowPrimitiveType> fmt::Debug for Sum<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Sum({})", self.data_type)
    }
}

impl<T: ArrowPrimitiveType> Linear for Sum<T>
where
    T::Native: Summand,
{
    type Kept = Counted<T::Native>;
    type Open = Counted<<T::Native as Summand>::Wide>;

    fn open(&self, kept: &Self::Kept) -> Self::Open {
        Counted { count: kept.count, sum: kept.sum.widen() }
    }
    fn add(&self, groups: &mut [Self::Open], change: &Change<'_>) -> Result<()> {
        let values = change.arguments[0].as_primitive::<T>();
        change.each(|position, row, weight| {
            let group = &mut groups[position];
            group.count += weight;
            match values.value(row).add_to(group.sum, weight) {
                Some(sum) => group.sum = sum,
                None => return exec_err!("a sum is too large for its type"),
            }
            Ok(())
        })
    }
    fn count(group: &Self::Open) -> i64 {
        group.count
    }
    fn close(&self, group: Self::Open) -> Result<Self::Kept> {
        match T::Native::narrow(group.sum) {
            Some(sum) => Ok(Counted { count: group.count, sum }),
            None => exec_err!("a sum is too large for its type"),
        }
    }
    fn to_columns(groups: &[Self::Kept]) -> Result<[ArrayRef; 2]> {
        Ok(counted::<T>(groups))
    }
    fn of_columns(columns: &[ArrayRef; 2]) -> Result<Vec<Self::Kept>> {
        of_counted::<T>(columns)
    }
    fn evaluate(&self, groups: &[Self::Kept]) -> Result<ArrayRef> {
        let sums = self.sums(groups);
        check_precision(&sums)?;
        Ok(sums)
    }
}

/// AVG of decimals and durations: a sum, of which DataFusion makes the average.
pub struct Average<T: ArrowPrimitiveType> {
    sum: Sum<T>,
    function: Arc<AggregateFunctionExpr>,
    /// The type of the arguments, which can be narrower than that of their sum.
    argument: DataType,
}

impl<T: ArrowPrimitiveType> Average<T> {
    /// The average that `function` is, which adds up numbers of one type as `sum`.
    pub fn new(sum: &DataType, argument: &DataType, function: Arc<AggregateFunctionExpr>) -> Self {
        Average { sum: Sum::new(sum), function, argument: argument.clone() }
    }
}

impl<T: ArrowPrimitiveType> fmt::Debug for Average<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Average({})", self.argument)
    }
}

impl<T: ArrowPrimitiveType> Linear for Average<T>
where
    T::Native: Summand,
{
    type Kept = Counted<T::Native>;
    type Open = Counted<<T::Native as Summand>::Wide>;

    fn open(&self, kept: &Self::Kept) -> Self::Open {
        self.sum.open(kept)
    }
    fn add(&self, groups: &mut [Self::Open], change: &Change<'_>) -> Result<()> {
        // The sum has the argument's scale.
        let arguments = [arrow::compute::cast(&change.arguments[0], &self.sum.data_type)?];
        self.sum.add(groups, &Change { arguments: &arguments, ..*change })
    }
    fn count(group: &Self::Open) -> i64 {
        group.count
    }
    fn close(&self, group: Self::Open) -> Result<Self::Kept> {
        self.sum.close(group)
    }
    fn to_columns(groups: &[Self::Kept]) -> Result<[ArrayRef; 2]> {
        Ok(counted::<T>(groups))
    }
    fn of_columns(columns: &[ArrayRef; 2]) -> Result<Vec<Self::Kept>> {
        of_counted::<T>(columns)
    }
    fn evaluate(&self, groups: &[Self::Kept]) -> Result<ArrayRef> {
        // A group without a value has no state.
        let counts = groups.iter().map(|group| (group.count > 0).then_some(group.count as u64));
        let counts = counts.collect::<UInt64Array>();
        let mut accumulator = self.function.create_groups_accumulator()?;
        let all: Vec<usize> = (0..groups.len()).collect();
        accumulator.merge_batch(&[Arc::new(counts), self.sum.sums(groups)], &all, groups.len())?;
        accumulator.evaluate(EmitTo::All)
    }
}

/// SUM and AVG of floats, exactly.
#[derive(Debug)]
pub struct Floats(pub Answer);

impl Linear for Floats {
    type Kept = FloatSum;
    type Open = FloatSum;

    fn open(&self, kept: &FloatSum) -> FloatSum {
        kept.clone()
    }
    fn add(&self, groups: &mut [FloatSum], change: &Change<'_>) -> Result<()> {
        let values = change.arguments[0].as_primitive::<Float64Type>();
        change.each(|position, row, weight| {
            groups[position].add(values.value(row), weight);
            Ok(())
        })
    }
    fn count(group: &FloatSum) -> i64 {
        group.count
    }
    fn close(&self, group: FloatSum) -> Result<FloatSum> {
        Ok(group)
    }
    fn to_columns(groups: &[FloatSum]) -> Result<[ArrayRef; 2]> {
        let counts = Int64Array::from_iter_values(groups.iter().map(|group| group.count));
        Ok([Arc::new(counts), superaccumulator::to_column(groups.iter().map(|group| &group.sum))])
    }
    fn of_columns([counts, sums]: &[ArrayRef; 2]) -> Result<Vec<FloatSum>> {
        let counts = numbers::<Int64Type>(counts)?.values().iter();
        let groups = counts.zip(superaccumulator::of_column(sums)?);
        Ok(groups.map(|(count, sum)| FloatSum { count: *count, sum }).collect())
    }
    fn evaluate(&self, groups: &[FloatSum]) -> Result<ArrayRef> {
        Ok(Arc::new(groups.iter().map(|group| group.evaluate(self.0)).collect::<Float64Array>()))
    }
    fn heap_bytes(kept: &FloatSum) -> usize {
        kept.sum.heap_bytes()
    }
}

/// BOOL_AND and BOOL_OR.
#[derive(Debug)]
pub struct Booleans {
    /// Which of the two.
    pub is_and: bool,
}

impl Linear for Booleans {
    /// How many are false, and how many true.
    type Kept = [i64; 2];
    type Open = [i64; 2];

    fn open(&self, kept: &[i64; 2]) -> [i64; 2] {
        *kept
    }
    fn add(&self, groups: &mut [[i64; 2]], change: &Change<'_>) -> Result<()> {
        let values = change.arguments[0].as_boolean();
        change.each(|position, row, weight| {
            groups[position][usize::from(values.value(row))] += weight;
            Ok(())
        })
    }
    fn count(group: &[i64; 2]) -> i64 {
        group.iter().sum()
    }
    fn close(&self, group: [i64; 2]) -> Result<[i64; 2]> {
        if group.iter().any(|count| *count < 0) { exec_err!("{NOT_THERE}") } else { Ok(group) }
    }
    fn to_columns(groups: &[[i64; 2]]) -> Result<[ArrayRef; 2]> {
        let column = |i: usize| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(groups.iter().map(|counts| counts[i])))
        };
        Ok([column(0), column(1)])
    }
    fn of_columns([no, yes]: &[ArrayRef; 2]) -> Result<Vec<[i64; 2]>> {
        let (no, yes) = (numbers::<Int64Type>(no)?.values(), numbers::<Int64Type>(yes)?.values());
        Ok(no.iter().zip(yes).map(|(no, yes)| [*no, *yes]).collect())
    }
    fn evaluate(&self, groups: &[[i64; 2]]) -> Result<ArrayRef> {
        let answer = |[no, yes]: &[i64; 2]| match (no, yes) {
            (0, 0) => None,
            (no, yes) => Some(if self.is_and { *no == 0 } else { *yes > 0 }),
        };
        Ok(Arc::new(groups.iter().map(answer).collect::<BooleanArray>()))
    }
}

/// BIT_XOR: what comes twice is as if it were not there.
pub struct Xor<T: ArrowPrimitiveType>(pub PhantomData<fn() -> T>);

impl<T: ArrowPrimitiveType> fmt::Debug for Xor<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Xor({})", T::DATA_TYPE)
    }
}

impl<T: ArrowPrimitiveType> Linear for Xor<T>
where
    T::Native: BitXor<Output = T::Native>,
{
    type Kept = Counted<T::Native>;
    type Open = Counted<T::Native>;

    fn open(&self, kept: &Self::Kept) -> Self::Open {
        *kept
    }
    fn add(&self, groups: &mut [Self::Open], change: &Change<'_>) -> Result<()> {
        let values = change.arguments[0].as_primitive::<T>();
        change.each(|position, row, weight| {
            let group = &mut groups[position];
            group.count += weight;
            if weight % 2 != 0 {
                group.sum = group.sum ^ values.value(row);
            }
            Ok(())
        })
    }
    fn count(group: &Self::Open) -> i64 {
        group.count
    }
    fn close(&self, group: Self::Open) -> Result<Self::Kept> {
        Ok(group)
    }
    fn to_columns(groups: &[Self::Kept]) -> Result<[ArrayRef; 2]> {
        Ok(counted::<T>(groups))
    }
    fn of_columns(columns: &[ArrayRef; 2]) -> Result<Vec<Self::Kept>> {
        of_counted::<T>(columns)
    }
    fn evaluate(&self, groups: &[Self::Kept]) -> Result<ArrayRef> {
        let answers = groups.iter().map(|group| (group.count > 0).then_some(group.sum));
        Ok(Arc::new(answers.collect::<PrimitiveArray<T>>()))
    }
}

/// Variances, covariances, correlations and regressions.
#[derive(Debug)]
pub struct Moments {
    statistic: Statistic,
    groups: moments::Groups,
    prepared: moments::Groups,
}

impl Moments {
    /// No group.
    pub fn new(statistic: Statistic) -> Self {
        let none = || moments::Groups::new(statistic);
        Moments { statistic, groups: none(), prepared: none() }
    }

    /// The kept groups of these numbers; those that are not kept are empty.
    fn take(&self, groups: &[u32]) -> moments::Groups {
        let mut taken = moments::Groups::new(self.statistic);
        taken.resize(groups.len());
        for (position, group) in groups.iter().enumerate() {
            if (*group as usize) < self.groups.len() {
                taken.copy(position, &self.groups, *group as usize);
            }
        }
        taken
    }
}

impl State for Moments {
    fn prepare(&mut self, change: &Change<'_>) -> Result<Answers> {
        let mut groups = self.take(change.groups);
        let before = groups.evaluate();
        change.each(|position, row, weight| {
            groups.add(change.arguments, row, position, weight);
            Ok(())
        })?;
        let mut counts = (0..groups.len()).map(|group| groups.count(group)).zip(change.group_weights);
        if counts.any(|(count, weight)| count < 0 || count > *weight) {
            return exec_err!("{NOT_THERE}");
        }
        self.prepared = groups;
        Ok(Answers { before, after: self.prepared.evaluate() })
    }

    fn commit(&mut self, groups: &[u32]) {
        let highest = groups.iter().max().map_or(0, |group| *group as usize + 1);
        self.groups.resize(self.groups.len().max(highest));
        for (position, group) in groups.iter().enumerate() {
            self.groups.copy(*group as usize, &self.prepared, position);
        }
    }

    fn free(&mut self, group: u32) {
        if (group as usize) < self.groups.len() {
            let mut empty = moments::Groups::new(self.statistic);
            empty.resize(1);
            self.groups.copy(group as usize, &empty, 0);
        }
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let Moments { statistic: _, groups, prepared: _ } = self;
        groups.save(saver)
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.groups.load(loader)
    }

    fn bytes(&self) -> usize {
        self.groups.bytes()
    }
}
