//! Which of a view's rows a caller wants: `?sort=`, `order`, `limit`, `offset`, `format`, and any other parameter
//! as a column that must have a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, Scalar, StringArray, UInt32Array};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{
    CastOptions, SortColumn, SortOptions, cast_with_options, filter_record_batch, is_null,
    lexsort_to_indices, or_kleene, take_record_batch,
};
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use axum::http::{HeaderMap, StatusCode};
use datafusion::error::DataFusionError;

use super::formats::Format;
use super::problem::Problem;

/// Rows of a page that asks for no number.
const LIMIT_DEFAULT: usize = 1_000;

/// Most rows of a page.
const LIMIT_MAX: usize = 100_000;

/// The parameters that are no columns.
const PARAMETERS: [&str; 5] = ["sort", "order", "limit", "offset", "format"];

/// The rows that are wanted, and how.
#[derive(Debug)]
pub(super) struct Page {
    /// Column, and whether its greatest value comes first.
    sort: Option<(String, bool)>,
    limit: usize,
    offset: usize,
    format: Option<Format>,
    /// Columns, and of each the values that it may have.
    filters: BTreeMap<String, Vec<String>>,
}

impl Page {
    /// From a URL's parameters.
    pub(super) fn new(parameters: Vec<(String, String)>) -> Result<Page, Problem> {
        let mut own: BTreeMap<&str, String> = BTreeMap::new();
        let mut filters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in parameters {
            match PARAMETERS.iter().find(|known| **known == name) {
                Some(known) if own.contains_key(known) => return Err(bad(format!("{known} is there twice"))),
                Some(known) => drop(own.insert(known, value)),
                None => filters.entry(name).or_default().push(value),
            }
        }
        let number = |name: &str| match own.get(name).map(|text| (text, text.parse::<usize>())) {
            Some((_, Ok(number))) => Ok(Some(number)),
            Some((text, Err(_))) => Err(bad(format!("{name} is {text:?}; it must be a number, 0 or more"))),
            None => Ok(None),
        };
        let limit = number("limit")?.unwrap_or(LIMIT_DEFAULT);
        if limit > LIMIT_MAX {
            let detail = format!("limit is {limit}; at most {LIMIT_MAX} rows come at once: page with offset");
            return Err(bad(detail));
        }
        let descends = match own.get("order").map(String::as_str) {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(other) => return Err(bad(format!("order is {other:?}; it must be asc or desc"))),
        };
        let sort = own.get("sort").map(|sort| match sort.rsplit_once(':') {
            Some((column, "desc")) => (column.to_string(), true),
            Some((column, "asc")) => (column.to_string(), false),
            _ => (sort.clone(), descends),
        });
        Ok(Page {
            sort,
            limit,
            offset: number("offset")?.unwrap_or(0),
            format: own.get("format").map(|name| Format::named(name)).transpose()?,
            filters,
        })
    }

    /// The format that is asked for: in the path, by the parameter, or by the `Accept` header.
    pub(super) fn format(&self, of_path: Option<Format>, headers: &HeaderMap) -> Format {
        self.format.or(of_path).unwrap_or_else(|| Format::accepted(headers))
    }

    /// Refuses names that the view does not have.
    pub(super) fn check(&self, schema: &Schema) -> Result<(), Problem> {
        let columns = || schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        if let Some((column, _)) = self.sort.as_ref().filter(|(column, _)| schema.index_of(column).is_err()) {
            return Err(bad(format!(
                "there is no column {column:?} to sort by; the columns are: {}",
                columns()
            )));
        }
        if let Some(name) = self.filters.keys().find(|name| schema.index_of(name).is_err()) {
            let known = PARAMETERS.join(", ");
            let detail = format!(
                "there is no column or parameter {name:?}; the parameters are: {known}; the columns are: {}",
                columns()
            );
            return Err(bad(detail));
        }
        Ok(())
    }

    /// How many rows there are that may be wanted, and those of the page. Equal rows keep the view's order, so that
    /// pages neither overlap nor miss any.
    pub(super) fn cut(&self, batch: &RecordBatch) -> Result<(usize, RecordBatch), Problem> {
        let mut batch = batch.clone();
        for (column, values) in &self.filters {
            batch = having(&batch, column, values)?;
        }
        let rows = batch.num_rows();
        let offset = self.offset.min(rows);
        let limit = self.limit.min(rows - offset);
        let Some((column, descending)) = &self.sort else {
            return Ok((rows, batch.slice(offset, limit)));
        };
        let values = batch.column_by_name(column).cloned().ok_or_else(|| no_column(column))?;
        let options = SortOptions { descending: *descending, nulls_first: false };
        let by_place = UInt32Array::from_iter_values((0..rows).map(|row| row as u32));
        let columns = [
            SortColumn { values, options: Some(options) },
            SortColumn { values: Arc::new(by_place), options: None },
        ];
        let indices = lexsort_to_indices(&columns, Some(offset + limit))
            .map_err(|e| bad(format!("column {column:?} can't be sorted by: {e}")))?;
        let page = take_record_batch(&batch, &indices.slice(offset, limit)).map_err(DataFusionError::from)?;
        Ok((rows, page))
    }
}

/// The rows whose column has one of the values. No text at all is NULL, and in a column of text also an empty one.
fn having(batch: &RecordBatch, column: &str, values: &[String]) -> Result<RecordBatch, Problem> {
    let array = batch.column_by_name(column).ok_or_else(|| no_column(column))?;
    let mut wanted = BooleanArray::from(vec![false; batch.num_rows()]);
    for value in values {
        let equal = equal(array, value).map_err(|e| {
            bad(format!(
                "column {column:?} is {}, and {value:?} is none: {e}",
                super::json::type_name(array.data_type())
            ))
        })?;
        wanted = or_kleene(&wanted, &equal).map_err(DataFusionError::from)?;
    }
    Ok(filter_record_batch(batch, &wanted).map_err(DataFusionError::from)?)
}

fn equal(array: &ArrayRef, value: &str) -> Result<BooleanArray, ArrowError> {
    let is_text = matches!(array.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if value.is_empty() && !is_text {
        return is_null(array);
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let text = cast_with_options(&StringArray::from(vec![value]), array.data_type(), &options)?;
    let equal = eq(array, &Scalar::new(text))?;
    if value.is_empty() { or_kleene(&equal, &is_null(array)?) } else { Ok(equal) }
}

fn no_column(column: &str) -> Problem {
    bad(format!("there is no column {column:?}"))
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
