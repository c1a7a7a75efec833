//! Which functions rows can be taken back from, and what is kept of each.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, Int8Type, Int16Type, Int32Type,
    Int64Type, SchemaRef, TimeUnit, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::common::{DFSchema, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::NullTreatment;
use datafusion::logical_expr::{AggregateUDF, Expr, ExprSchemable};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::Column;

use super::linear::{Average, Booleans, Count, Floats, Moments, Sum, Xor};
use super::multiset;
use super::state::{ByGroup, State};
use crate::engine::exact::floats::Answer;
use crate::engine::exact::moments::Statistic;

/// A function of an aggregate, whose arguments are columns of its input.
#[derive(Clone, Debug)]
pub struct FunctionSpec {
    /// The function.
    pub function: Arc<AggregateUDF>,
    /// Positions of its arguments; none for COUNT(*).
    pub arguments: Vec<usize>,
    /// Position of the column that says which rows it sees; none: all.
    pub filter: Option<usize>,
    /// Whether it sees each value once.
    pub distinct: bool,
}

/// Whether rows can be taken back from `expr`, an aggregate function over rows of `input`, at the cost of these rows.
pub fn supports(expr: &Expr, input: &DFSchema) -> bool {
    let expr = match expr {
        Expr::Alias(alias) => &alias.expr,
        expr => expr,
    };
    let Expr::AggregateFunction(function) = expr else { return false };
    let params = &function.params;
    let Ok(types) = params.args.iter().map(|arg| arg.get_type(input)).collect::<Result<Vec<_>>>() else {
        return false;
    };
    // None of these depends on an order.
    !matches!(params.null_treatment, Some(NullTreatment::IgnoreNulls))
        && Kind::of(function.func.name(), params.distinct, &types).is_some()
}

/// How a function is kept.
enum Kind {
    Count,
    Sum,
    Average,
    Floats(Answer),
    Moments(Statistic),
    Booleans { is_and: bool },
    Xor,
    Extreme { is_max: bool },
}

impl Kind {
    fn of(name: &str, distinct: bool, arguments: &[DataType]) -> Option<Kind> {
        use DataType::{
            Boolean, Decimal32, Decimal64, Decimal128, Decimal256, Duration, Float64, Int64, UInt64,
        };
        if distinct && (arguments.len() != 1 || !has_order(&arguments[0])) {
            return None;
        }
        let statistic = Statistic::named(name);
        let summed = |data_type: &DataType| {
            matches!(data_type, Decimal32(..) | Decimal64(..) | Decimal128(..) | Decimal256(..) | Duration(_))
        };
        Some(match (name, arguments) {
            ("count", _) => Kind::Count,
            ("sum", [Float64]) => Kind::Floats(Answer::Sum),
            ("sum", [Int64 | UInt64]) => Kind::Sum,
            ("sum", [data_type]) if summed(data_type) => Kind::Sum,
            ("avg", [Float64]) => Kind::Floats(Answer::Average),
            ("avg", [data_type]) if summed(data_type) => Kind::Average,
            ("bool_and", [Boolean]) => Kind::Booleans { is_and: true },
            ("bool_or", [Boolean]) => Kind::Booleans { is_and: false },
            ("bit_xor", [data_type]) if data_type.is_integer() => Kind::Xor,
            ("min" | "max", [data_type]) if has_order(data_type) => Kind::Extreme { is_max: name == "max" },
            (_, arguments) if arguments.iter().all(|argument| argument == &Float64) => {
                Kind::Moments(statistic.filter(|statistic| statistic.arguments() == arguments.len())?)
            }
            _ => return None,
        })
    }
}

/// Whether the encoding of values has their order and equality.
fn has_order(data_type: &DataType) -> bool {
    use DataType::{Boolean, FixedSizeBinary, Interval};
    !matches!(data_type, Interval(_))
        && (data_type.is_primitive()
            || data_type.is_string()
            || data_type.is_binary()
            || matches!(data_type, Boolean | FixedSizeBinary(_)))
}

impl fmt::Display for FunctionSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{}", self.function.name(), if self.distinct { "(DISTINCT)" } else { "" })
    }
}

impl FunctionSpec {
    /// Whether it keeps the values of each group.
    pub fn keeps_values(&self) -> bool {
        self.distinct || matches!(self.function.name(), "min" | "max")
    }

    /// What is kept of it, over rows of `input`.
    pub fn state(&self, input: &SchemaRef) -> Result<Box<dyn State>> {
        let types = self.arguments.iter().map(|at| input.field(*at).data_type().clone());
        let types = types.collect::<Vec<_>>();
        let name = self.function.name();
        let Some(kind) = Kind::of(name, self.distinct, &types) else {
            return plan_err!("rows can't be taken back from {name} of {types:?}");
        };
        let state: Box<dyn State> = match kind {
            Kind::Count => Box::new(ByGroup::new(Count)),
            Kind::Floats(answer) => Box::new(ByGroup::new(Floats(answer))),
            Kind::Moments(statistic) => Box::new(Moments::new(statistic)),
            Kind::Booleans { is_and } => Box::new(ByGroup::new(Booleans { is_and })),
            // Each value once has the same first and last.
            Kind::Extreme { is_max } => return multiset::extreme(&types[0], is_max),
            Kind::Sum => sum(self.physical(input)?.field().data_type())?,
            Kind::Average => average(self.physical(input)?, &types[0])?,
            Kind::Xor => xor(&types[0])?,
        };
        if self.distinct { multiset::distinct(&types[0], state) } else { Ok(state) }
    }

    /// The function over each row, not each value.
    fn physical(&self, input: &SchemaRef) -> Result<Arc<AggregateFunctionExpr>> {
        let arguments =
            self.arguments.iter().map(|at| Arc::new(Column::new(input.field(*at).name(), *at)) as _);
        let function = AggregateExprBuilder::new(Arc::clone(&self.function), arguments.collect());
        Ok(Arc::new(function.schema(Arc::clone(input)).alias(self.function.name()).build()?))
    }
}

fn sum(data_type: &DataType) -> Result<Box<dyn State>> {
    macro_rules! of {
        ($t:ty) => {
            Ok(Box::new(ByGroup::new(Sum::<$t>::new(data_type))))
        };
    }
    match data_type {
        DataType::Int64 => of!(Int64Type),
        DataType::UInt64 => of!(UInt64Type),
        DataType::Decimal32(..) => of!(Decimal32Type),
        DataType::Decimal64(..) => of!(Decimal64Type),
        DataType::Decimal128(..) => of!(Decimal128Type),
        DataType::Decimal256(..) => of!(Decimal256Type),
        DataType::Duration(TimeUnit::Second) => of!(DurationSecondType),
        DataType::Duration(TimeUnit::Millisecond) => of!(DurationMillisecondType),
        DataType::Duration(TimeUnit::Microsecond) => of!(DurationMicrosecondType),
        DataType::Duration(TimeUnit::Nanosecond) => of!(DurationNanosecondType),
        other => plan_err!("rows can't be taken back from a sum of {other}"),
    }
}

fn average(function: Arc<AggregateFunctionExpr>, argument: &DataType) -> Result<Box<dyn State>> {
    // Its state is how many there are, and their sum.
    let data_type = function.state_fields()?.pop().map(|sum| sum.data_type().clone());
    macro_rules! of {
        ($t:ty, $sum:expr) => {
            Ok(Box::new(ByGroup::new(Average::<$t>::new($sum, argument, function))))
        };
    }
    match &data_type {
        Some(sum @ DataType::Decimal32(..)) => of!(Decimal32Type, sum),
        Some(sum @ DataType::Decimal64(..)) => of!(Decimal64Type, sum),
        Some(sum @ DataType::Decimal128(..)) => of!(Decimal128Type, sum),
        Some(sum @ DataType::Decimal256(..)) => of!(Decimal256Type, sum),
        Some(sum @ DataType::Duration(TimeUnit::Second)) => of!(DurationSecondType, sum),
        Some(sum @ DataType::Duration(TimeUnit::Millisecond)) => of!(DurationMillisecondType, sum),
        Some(sum @ DataType::Duration(TimeUnit::Microsecond)) => of!(DurationMicrosecondType, sum),
        Some(sum @ DataType::Duration(TimeUnit::Nanosecond)) => of!(DurationNanosecondType, sum),
        other => plan_err!("rows can't be taken back from an average of {other:?}"),
    }
}

fn xor(data_type: &DataType) -> Result<Box<dyn State>> {
    macro_rules! of {
        ($t:ty) => {
            Ok(Box::new(ByGroup::new(Xor::<$t>(PhantomData))))
        };
    }
    match data_type {
        DataType::Int8 => of!(Int8Type),
        DataType::Int16 => of!(Int16Type),
        DataType::Int32 => of!(Int32Type),
        DataType::Int64 => of!(Int64Type),
        DataType::UInt8 => of!(UInt8Type),
        DataType::UInt16 => of!(UInt16Type),
        DataType::UInt32 => of!(UInt32Type),
        DataType::UInt64 => of!(UInt64Type),
        other => plan_err!("rows can't be taken back from BIT_XOR of {other}"),
    }
}
