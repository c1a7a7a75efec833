//! What is kept by group of one function, so that rows can be taken back.

use std::fmt::Debug;

use arrow::array::ArrayRef;
use datafusion::common::exec_err;
use datafusion::error::Result;

use crate::checkpoint::{Loader, Saver};

/// What is said of a row that was never there.
pub const NOT_THERE: &str = "a row is taken back that is not there";

/// Rows for one function.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The numbers of the groups that are touched.
    pub groups: &'a [u32],
    /// How many rows each of them has with these.
    pub group_weights: &'a [i64],
    /// Of each row, the position of its group in `groups`.
    pub positions: &'a [u32],
    /// Of each row, how often it comes, or goes; 0 where FILTER leaves it out.
    pub weights: &'a [i64],
    /// The function's arguments.
    pub arguments: &'a [ArrayRef],
}

impl Change<'_> {
    /// The number of a row's group.
    pub fn group(&self, row: usize) -> u32 {
        self.groups[self.positions[row] as usize]
    }

    /// Calls `add` with position, row and weight of each row that counts and of which no argument is NULL.
    pub fn each(&self, mut add: impl FnMut(usize, usize, i64) -> Result<()>) -> Result<()> {
        let nulls: Vec<_> = self.arguments.iter().filter_map(|column| column.logical_nulls()).collect();
        for (row, weight) in self.weights.iter().enumerate() {
            if *weight != 0 && nulls.iter().all(|nulls| nulls.is_valid(row)) {
                add(self.positions[row] as usize, row, *weight)?;
            }
        }
        Ok(())
    }
}

/// What a function answers for the touched groups.
#[derive(Debug)]
pub struct Answers {
    /// Without the rows of the change.
    pub before: ArrayRef,
    /// With them.
    pub after: ArrayRef,
}

/// A function's state by group.
pub trait State: Debug + Send + Sync {
    /// Prepares rows. Nothing is changed that a later call would see.
    fn prepare(&mut self, change: &Change<'_>) -> Result<Answers>;

    /// What was prepared for these groups counts.
    fn commit(&mut self, groups: &[u32]);

    /// Forgets a group.
    fn free(&mut self, group: u32);

    /// Gives all groups to a checkpoint: what is committed.
    fn save(&self, saver: &mut Saver) -> Result<()>;

    /// Takes the groups of a checkpoint in place of its own.
    fn load(&mut self, loader: &mut Loader) -> Result<()>;

    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// A function that rows are added to and taken from by weight.
pub trait Linear: Debug + Send + Sync {
    /// What is kept of a group, …
    type Kept: Clone + Default + Debug + Send + Sync;
    /// … and while rows are added, so wide that their order does not matter.
    type Open;

    /// To add rows to it.
    fn open(&self, kept: &Self::Kept) -> Self::Open;

    /// Adds the rows to their groups.
    fn add(&self, groups: &mut [Self::Open], change: &Change<'_>) -> Result<()>;

    /// How many rows it has: none if there is nothing in it.
    fn count(group: &Self::Open) -> i64;

    /// To keep it; an error if it is too large.
    fn close(&self, group: Self::Open) -> Result<Self::Kept>;

    /// The answers.
    fn evaluate(&self, groups: &[Self::Kept]) -> Result<ArrayRef>;

    /// Groups as columns, for a checkpoint.
    fn to_columns(groups: &[Self::Kept]) -> Result<[ArrayRef; 2]>;

    /// Groups of such columns.
    fn of_columns(columns: &[ArrayRef; 2]) -> Result<Vec<Self::Kept>>;

    /// Bytes held beside itself.
    fn heap_bytes(_: &Self::Kept) -> usize {
        0
    }
}

/// The groups of a linear function.
#[derive(Debug)]
pub struct ByGroup<L: Linear> {
    function: L,
    groups: Vec<L::Kept>,
    prepared: Vec<L::Kept>,
    heap_bytes: usize,
}

impl<L: Linear> ByGroup<L> {
    /// No group.
    pub fn new(function: L) -> Self {
        ByGroup { function, groups: Vec::new(), prepared: Vec::new(), heap_bytes: 0 }
    }
}

impl<L: Linear> State for ByGroup<L> {
    fn prepare(&mut self, change: &Change<'_>) -> Result<Answers> {
        let kept = |group: &u32| self.groups.get(*group as usize).cloned().unwrap_or_default();
        let kept: Vec<_> = change.groups.iter().map(kept).collect();
        let mut open: Vec<_> = kept.iter().map(|group| self.function.open(group)).collect();
        self.function.add(&mut open, change)?;
        let counts = open.iter().map(L::count).zip(change.group_weights);
        if counts.into_iter().any(|(count, weight)| count < 0 || count > *weight) {
            return exec_err!("{NOT_THERE}");
        }
        let closed = open.into_iter().map(|group| self.function.close(group));
        self.prepared = closed.collect::<Result<_>>()?;
        Ok(Answers { before: self.function.evaluate(&kept)?, after: self.function.evaluate(&self.prepared)? })
    }

    fn commit(&mut self, groups: &[u32]) {
        let highest = groups.iter().max().map_or(0, |group| *group as usize + 1);
        self.groups.resize_with(self.groups.len().max(highest), L::Kept::default);
        for (group, prepared) in groups.iter().zip(self.prepared.drain(..)) {
            let kept = &mut self.groups[*group as usize];
            self.heap_bytes += L::heap_bytes(&prepared);
            self.heap_bytes -= L::heap_bytes(kept);
            *kept = prepared;
        }
    }

    fn free(&mut self, group: u32) {
        if let Some(kept) = self.groups.get_mut(group as usize) {
            self.heap_bytes -= L::heap_bytes(kept);
            *kept = L::Kept::default();
        }
    }

    fn save(&self, saver: &mut Saver) -> Result<()> {
        let ByGroup { function: _, groups, prepared: _, heap_bytes: _ } = self;
        saver.columns(L::to_columns(groups)?.to_vec())
    }

    fn load(&mut self, loader: &mut Loader) -> Result<()> {
        self.groups = L::of_columns(&loader.columns()?)?;
        self.heap_bytes = self.groups.iter().map(L::heap_bytes).sum();
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<L::Kept>() + self.heap_bytes
    }
}
