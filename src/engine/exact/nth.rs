//! NTH_VALUE with ORDER BY that sorts by itself: DataFusion's relies on rows that come sorted, over all batches, and
//! refuses two orders in one query.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{ScalarValue, exec_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::array_agg::array_agg_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, ReversedUDAF, Signature,
};
use datafusion::physical_expr::expressions::Literal;

/// NTH_VALUE.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct SortedNth {
    inner: Arc<AggregateUDF>,
}

impl SortedNth {
    /// In place of DataFusion's `inner`.
    pub fn new(inner: Arc<AggregateUDF>) -> Self {
        SortedNth { inner }
    }
}

impl AggregateUDFImpl for SortedNth {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::NotSupported
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Beneficial
    }

    fn with_beneficial_ordering(self: Arc<Self>, _: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        Ok(Some(self))
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let n = args.exprs.get(1).and_then(|n| n.downcast_ref::<Literal>()).map(|n| n.value());
        let Some(ScalarValue::Int64(Some(n))) = n else {
            // It says what it needs.
            return self.inner.accumulator(args);
        };
        if args.order_bys.is_empty() || *n == 0 {
            return self.inner.accumulator(args);
        }
        let data_type = args.expr_fields[0].data_type().clone();
        let (n, exprs, expr_fields) = (*n, &args.exprs[..1], &args.expr_fields[..1]);
        let list = array_agg_udaf().accumulator(AccumulatorArgs { exprs, expr_fields, ..args })?;
        Ok(Box::new(Nth { list, n, data_type }))
    }
}

/// The rows in order, of which only those that can be the answer are kept from one state to the next.
#[derive(Debug)]
struct Nth {
    list: Box<dyn Accumulator>,
    n: i64,
    data_type: DataType,
}

impl Nth {
    /// The rows of a list with one entry up to the n-th, or from it on if that is counted from the end.
    fn needed(&self, list: &ScalarValue) -> Result<ArrayRef> {
        let ScalarValue::List(list) = list else { return exec_err!("nth_value of no list") };
        let values = list.value(0);
        let needed = usize::try_from(self.n.unsigned_abs()).unwrap_or(usize::MAX).min(values.len());
        let first = if self.n > 0 { 0 } else { values.len() - needed };
        Ok(values.slice(first, needed))
    }
}

impl Accumulator for Nth {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        // Between value and order is n.
        let values: Vec<_> = values.iter().take(1).chain(values.iter().skip(2)).cloned().collect();
        self.list.update_batch(&values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.list.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let lists = self.list.state()?;
        let lists = lists.iter().map(|list| {
            let list = SingleRowListArrayBuilder::new(self.needed(list)?);
            Ok(list.build_list_scalar())
        });
        lists.collect()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let list = self.list.evaluate()?;
        let needed = self.needed(&list)?;
        if (needed.len() as u64) < self.n.unsigned_abs() {
            return ScalarValue::try_from(&self.data_type);
        }
        ScalarValue::try_from_array(&needed, if self.n > 0 { needed.len() - 1 } else { 0 })
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.list.size()
    }
}
