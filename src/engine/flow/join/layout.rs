//! What a join puts out: pairs of rows, and beside them rows of one side by whether they match.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{JoinType, plan_err};
use datafusion::error::Result;

use super::super::Delta;

/// What a side puts out beside the pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing.
    Nothing,
    /// The rows that match none, with NULLs for the other side.
    Pad,
    /// The rows that match some.
    Semi,
    /// The rows that match none.
    Anti,
    /// All rows, with whether they match some.
    Mark,
}

impl Role {
    /// Of each side, and whether pairs are put out.
    pub fn of(kind: JoinType) -> ([Role; 2], bool) {
        use Role::{Anti, Mark, Nothing, Pad, Semi};
        match kind {
            JoinType::Inner => ([Nothing, Nothing], true),
            JoinType::Left => ([Pad, Nothing], true),
            JoinType::Right => ([Nothing, Pad], true),
            JoinType::Full => ([Pad, Pad], true),
            JoinType::LeftSemi => ([Semi, Nothing], false),
            JoinType::RightSemi => ([Nothing, Semi], false),
            JoinType::LeftAnti => ([Anti, Nothing], false),
            JoinType::RightAnti => ([Nothing, Anti], false),
            JoinType::LeftMark => ([Mark, Nothing], false),
            JoinType::RightMark => ([Nothing, Mark], false),
        }
    }

    /// Whether a row is put out that matches some, or none.
    pub fn shows(self, matched: bool) -> bool {
        match self {
            Role::Nothing => false,
            Role::Pad | Role::Anti => !matched,
            Role::Semi => matched,
            Role::Mark => true,
        }
    }
}

/// The columns that a join puts out.
#[derive(Debug)]
pub struct Layout {
    /// Positional, and all may be NULL.
    pub schema: SchemaRef,
    columns: Vec<Source>,
    /// The columns of each side that are put out.
    pub needed: [Vec<usize>; 2],
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// A side, and a position among its columns that are needed.
    Side(usize, usize),
    Mark,
}

impl Layout {
    /// `output` selects from the columns that a join of that kind has.
    pub fn new(kind: JoinType, sides: [&SchemaRef; 2], output: &[usize]) -> Result<Layout> {
        let (roles, pairs) = Role::of(kind);
        let shown: Vec<usize> = (0..2).filter(|side| pairs || roles[*side] != Role::Nothing).collect();
        let all = shown.iter().flat_map(|side| (0..sides[*side].fields().len()).map(|i| (*side, i)));
        let all: Vec<(usize, usize)> = all.collect();
        let (mut needed, mut columns, mut fields) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
        for (at, output) in output.iter().enumerate() {
            let name = format!("c{at}");
            if let Some((side, column)) = all.get(*output) {
                let known = needed[*side].iter().position(|other| other == column);
                columns.push(Source::Side(*side, known.unwrap_or(needed[*side].len())));
                if known.is_none() {
                    needed[*side].push(*column);
                }
                fields.push(sides[*side].field(*column).clone().with_name(name).with_nullable(true));
            } else if *output == all.len() && roles.contains(&Role::Mark) {
                columns.push(Source::Mark);
                fields.push(Field::new(name, DataType::Boolean, true));
            } else {
                return plan_err!("a {kind} join has no column {output}");
            }
        }
        Ok(Layout { schema: Arc::new(Schema::new(fields)), columns, needed })
    }

    /// Rows of the columns that are needed of each side, in their order; of a side that is not there all are NULL.
    pub fn rows(
        &self,
        sides: [Option<&[ArrayRef]>; 2],
        mark: Option<&BooleanArray>,
        weights: Int64Array,
    ) -> Result<Delta> {
        let columns = self.columns.iter().zip(self.schema.fields()).map(|(source, field)| {
            let there: Option<ArrayRef> = match source {
                Source::Side(side, column) => sides[*side].map(|columns| Arc::clone(&columns[*column])),
                Source::Mark => mark.map(|mark| Arc::new(mark.clone()) as ArrayRef),
            };
            there.unwrap_or_else(|| new_null_array(field.data_type(), weights.len()))
        });
        let options = RecordBatchOptions::new().with_row_count(Some(weights.len()));
        let columns = columns.collect();
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        Ok(Delta { rows, weights })
    }
}
