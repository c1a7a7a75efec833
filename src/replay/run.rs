//! `tally replay`: files and tables, as they come, through the engine, and what is told of it.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;

use super::files::read_table;
use super::input::{InputFile, Lines};
use super::print::{Printer, Show, print};
use super::{Format, Replay};
use crate::engine::ViewChange;
use crate::epoch::EpochOutput;
use crate::error::{Error, Result};
use crate::source::RawBatch;

/// Rows that a reference table has from some message on.
#[derive(Clone, Debug)]
pub struct TableFile {
    /// The table.
    pub name: String,
    /// How many messages of all inputs come before.
    pub after: u64,
    /// A `.csv` file with a header, or JSON objects, one a line.
    pub path: PathBuf,
}

/// What is replayed, and what is printed.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// The messages; several files are read in turn, a micro-batch of each.
    pub inputs: Vec<InputFile>,
    /// How reference tables change meanwhile.
    pub tables: Vec<TableFile>,
    /// Most lines of a micro-batch.
    pub batch_rows: usize,
    /// Views and changelogs.
    pub shows: Vec<Show>,
    /// How they are printed.
    pub format: Format,
}

/// What became of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Messages.
    pub received: usize,
    /// Those that their source did not count.
    pub rejected: usize,
    /// Those, and what views left out: as late, or as what an expression can't take.
    pub told: usize,
}

/// Runs files through the engine and prints what was asked for to `out`; lines that are not counted go to
/// `errors` with their file, line and reason.
pub async fn replay(
    replay: Replay,
    script: &Script,
    out: &mut (dyn Write + Send),
    errors: &mut (dyn Write + Send),
) -> Result<Replayed> {
    let printer = |show: &Show| Ok(Printer::new(show.clone(), replay.view(show.view())?.schema.clone()));
    let printers = script.shows.iter().map(printer).collect::<Result<_>>()?;
    let mut readers = Vec::new();
    for input in &script.inputs {
        readers.push((replay.source_of(&input.topic)?, Lines::open(input)?));
    }
    let mut tables = script.tables.clone();
    tables.sort_by_key(|table| table.after);
    for table in &tables {
        if !replay.table_schemas().contains_key(&table.name) {
            let known: Vec<_> = replay.table_schemas().keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(Error::Config(format!(
                "table {0} changes, and is not known from the start: declare it, or give --table {0}=FILE too (known: \
                 {known})",
                table.name
            )));
        }
    }
    let mut run = Run { replay, printers, tables: tables.into(), replayed: Replayed::default() };
    let started = run.replay.start().await?;
    run.take(started.epoch, &started.changes)?;
    // The room of a micro-batch serves the next one: memory that is new each time costs more than the copying.
    let mut room = RawBatch::default();
    while !readers.is_empty() {
        let mut open = Vec::new();
        for (source, mut input) in readers {
            let until_change = run.change_tables().await?.unwrap_or(usize::MAX);
            let lines = input.next(script.batch_rows.min(until_change), std::mem::take(&mut room))?;
            if lines.is_empty() {
                continue;
            }
            let output = run.replay.feed(source, lines).await?;
            room = run.count(output, input.file(), errors)?;
            open.push((source, input));
        }
        readers = open;
    }
    run.change_tables().await?;
    let last = run.replay.retry().await;
    run.take(last.epoch, &last.changes)?;
    write_all(out, &print(&run.printers, script.format)?)?;
    let Replayed { received, rejected, .. } = run.replayed;
    let counted = received - rejected;
    let text = format!("{received} messages: {counted} counted, {rejected} rejected\n");
    write_all(errors, text.as_bytes())?;
    if let Some(TableFile { name, after, .. }) = run.tables.front() {
        return Err(Error::Config(format!(
            "table {name} was to change after {after} messages, and only {received} came"
        )));
    }
    script.shows.iter().try_for_each(|show| run.replay.check_shown(show.view()))?;
    Ok(run.replayed)
}

struct Run {
    replay: Replay,
    printers: Vec<Printer>,
    /// Changes to come.
    tables: VecDeque<TableFile>,
    replayed: Replayed,
}

impl Run {
    fn take(&mut self, epoch: u64, changes: &[ViewChange]) -> Result<()> {
        self.printers.iter_mut().try_for_each(|printer| printer.take(epoch, changes))
    }

    /// Changes the tables that are due; how many messages there are until the next change.
    async fn change_tables(&mut self) -> Result<Option<usize>> {
        let received = self.replayed.received as u64;
        while let Some(table) = self.tables.pop_front_if(|table| table.after <= received) {
            let rows = read_table(self.replay.table_schemas(), &table.name, &table.path)?;
            if let Some(output) = self.replay.set_table(&table.name, rows.batches).await? {
                self.take(output.epoch, &output.changes)?;
            }
        }
        Ok(self.tables.front().map(|table| (table.after - received) as usize))
    }

    /// Notes what became of a micro-batch of a file, whose room it gives back.
    fn count(
        &mut self,
        output: EpochOutput,
        file: &InputFile,
        errors: &mut (dyn Write + Send),
    ) -> Result<RawBatch> {
        self.take(output.epoch, &output.changes)?;
        let Some(counted) = output.counted else { return Ok(RawBatch::default()) };
        self.replayed.received += counted.raw.len();
        self.replayed.rejected += counted.raw.len() - counted.rows;
        self.replayed.told += counted.rejects.len();
        for reject in &counted.rejects {
            // A line's offset is its number.
            let (path, line) = (file.path.display(), counted.raw.origin(reject.message).offset);
            let text = format!("{path}:{line}: {}: {}\n", reject.rule, reject.reason);
            write_all(errors, text.as_bytes())?;
        }
        Ok(counted.raw)
    }
}

fn write_all(out: &mut (dyn Write + Send), bytes: &[u8]) -> Result<()> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|source| Error::Io { action: "writing".into(), source })
}
