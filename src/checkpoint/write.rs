//! Writes checkpoints. Tables that an earlier one has are not written again: by the same arrays, or by the same bytes.
//! New ones go into packs, objects of many tables; one of which little is used any more is left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamWriter;

use super::manifest::{Header, Manifest, Place};
use super::objects::Objects;
use crate::error::{Error, Result};
use crate::fault;
use crate::hash::{Hash, hash};

/// A pack is written once it has so many bytes.
const PACK_BYTES: usize = 32 << 20;
/// Checkpoints that are kept.
const KEPT: usize = 2;

/// A state to be written.
pub struct State {
    /// What it is of.
    pub header: Header,
    /// Its tables.
    pub tables: Vec<RecordBatch>,
    /// Its values.
    pub values: Vec<u8>,
}

/// What writing has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the whole checkpoint.
    pub bytes: u64,
    /// Those of them that were not there.
    pub new_bytes: u64,
}

/// Writes the checkpoints of one start, one after the other.
pub struct Writer {
    objects: Objects,
    run: String,
    packs: u64,
    /// Bytes of its packs.
    sizes: BTreeMap<String, u64>,
    known: Known,
    /// Manifests and their packs, the oldest first.
    kept: Vec<(String, BTreeSet<String>)>,
}

/// Where the parts of the newest checkpoint are.
#[derive(Default)]
struct Known {
    by_arrays: HashMap<Vec<usize>, KnownTable>,
    by_bytes: HashMap<Hash, usize>,
    places: Vec<(Place, Hash)>,
    /// Packs of which little is used.
    sparse: BTreeSet<String>,
}

/// A table that is written. While there is a weak reference to an array, no other one has its address.
struct KnownTable {
    _arrays: Vec<Weak<dyn Array>>,
    schema: SchemaRef,
    at: usize,
}

/// The parts of a checkpoint while it is written.
struct Parts<'a> {
    writer: &'a mut Writer,
    known: Known,
    /// Positions of the places, by that of the tables.
    tables: Vec<usize>,
    pack: Vec<u8>,
    name: String,
    new: Vec<String>,
    new_bytes: u64,
}

impl Writer {
    /// Nothing written yet. `kept`: the manifest that was gone on from, and its packs.
    pub fn new(objects: Objects, kept: Option<(String, BTreeSet<String>)>) -> Writer {
        let run = format!("{:08x}", rand::random::<u32>());
        Writer {
            objects,
            run,
            packs: 0,
            sizes: BTreeMap::new(),
            known: Known::default(),
            kept: kept.into_iter().collect(),
        }
    }

    /// Writes a checkpoint, and removes those that are no longer kept.
    ///
    /// # Errors
    /// The disk is full, or what else can't be written. What was written before is still there.
    pub async fn write(&mut self, state: State) -> Result<Written> {
        fault::point("checkpoint");
        let name = self.pack_name();
        let mut parts = Parts {
            writer: self,
            known: Known::default(),
            tables: Vec::with_capacity(state.tables.len()),
            pack: Vec::new(),
            name,
            new: Vec::new(),
            new_bytes: 0,
        };
        let written = parts.write(state).await;
        let (known, new) = (parts.known, parts.new);
        match written {
            Ok((manifest, written)) => {
                self.known = known;
                self.kept.push(manifest);
                self.tidy().await;
                Ok(written)
            }
            Err(error) => {
                for pack in new {
                    // It may not be there; what stays is removed after the next checkpoint.
                    if let Err(error) = self.objects.delete(&pack).await {
                        tracing::debug!("{error}");
                    }
                }
                Err(error)
            }
        }
    }

    fn pack_name(&mut self) -> String {
        self.packs += 1;
        format!("pack-{}-{:08}", self.run, self.packs)
    }

    /// Removes what no kept checkpoint needs. What can't be removed now is tried again the next time.
    async fn tidy(&mut self) {
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        if let Err(error) = self.objects.remove_staged() {
            tracing::warn!("{error}");
        }
        let (kept, sizes) = (&self.kept, &mut self.sizes);
        sizes.retain(|pack, _| kept.iter().any(|(_, packs)| packs.contains(pack)));
        let needed: BTreeSet<&String> =
            self.kept.iter().flat_map(|(manifest, packs)| packs.iter().chain([manifest])).collect();
        let names = match self.objects.list().await {
            Ok(names) => names,
            Err(error) => return tracing::warn!("old checkpoints are not removed: {error}"),
        };
        // Manifests first: one without its packs would be damaged.
        let (manifests, packs): (Vec<_>, Vec<_>) =
            names.into_iter().map(|(name, _)| name).partition(|name| Manifest::epoch_of(name).is_some());
        for name in manifests.iter().chain(&packs).filter(|name| !needed.contains(name)) {
            if let Err(error) = self.objects.delete(name).await {
                tracing::warn!("an old checkpoint is not removed: {error}");
            }
        }
    }
}

impl Parts<'_> {
    async fn write(&mut self, state: State) -> Result<((String, BTreeSet<String>), Written)> {
        let State { header, tables, values } = state;
        for table in tables {
            let place = self.table(&table).await?;
            self.tables.push(place);
        }
        let values = self.bytes(values).await?;
        self.finish_pack().await?;
        let places = &self.known.places;
        let tables = self.tables.iter().map(|at| places[*at].0.clone()).collect();
        let manifest = Manifest { header, tables, values: places[values].0.clone() };
        let name = Manifest::name(manifest.header.epoch, &self.writer.run);
        let encoded =
            manifest.encode().map_err(|e| Error::Checkpoint(format!("a manifest can't be written: {e}")))?;
        self.new_bytes += encoded.len() as u64;
        let bytes = places.iter().map(|(place, _)| place.bytes).sum::<u64>() + encoded.len() as u64;
        self.writer.objects.put(&name, encoded, "checkpoint_rename").await?;
        self.note_sparse();
        let packs = manifest.packs().into_iter().map(String::from).collect();
        Ok(((name, packs), Written { bytes, new_bytes: self.new_bytes }))
    }

    /// The position of a table's place.
    async fn table(&mut self, table: &RecordBatch) -> Result<usize> {
        let arrays: Vec<usize> =
            table.columns().iter().map(|column| Arc::as_ptr(column).cast::<()>() as usize).collect();
        // Tables may share arrays and name them otherwise.
        let is_same = |known: &&KnownTable| !arrays.is_empty() && known.schema == table.schema();
        if let Some(known) = self.known.by_arrays.get(&arrays).filter(is_same) {
            return Ok(known.at);
        }
        let before = &self.writer.known;
        let same = before.by_arrays.get(&arrays).filter(is_same).map(|known| before.places[known.at].clone());
        let at = match same.filter(|(place, _)| !before.sparse.contains(&place.pack)) {
            Some((place, hash)) => self.note(place, hash),
            None => self.bytes(encode(table)?).await?,
        };
        let _arrays = table.columns().iter().map(Arc::downgrade).collect();
        self.known.by_arrays.insert(arrays, KnownTable { _arrays, schema: table.schema(), at });
        Ok(at)
    }

    /// The position of the place of some bytes, which are written if they are new.
    async fn bytes(&mut self, bytes: Vec<u8>) -> Result<usize> {
        let hash = hash(&bytes);
        if let Some(at) = self.known.by_bytes.get(&hash) {
            return Ok(*at);
        }
        let before = &self.writer.known;
        let same = before.by_bytes.get(&hash).map(|at| before.places[*at].clone());
        let at = match same.filter(|(place, _)| !before.sparse.contains(&place.pack)) {
            Some((place, _)) => self.note(place, hash),
            None => {
                let place = Place {
                    pack: self.name.clone(),
                    offset: self.pack.len() as u64,
                    bytes: bytes.len() as u64,
                    crc: crc32fast::hash(&bytes),
                };
                self.pack.extend_from_slice(&bytes);
                self.new_bytes += place.bytes;
                let at = self.note(place, hash);
                if self.pack.len() >= PACK_BYTES {
                    self.finish_pack().await?;
                }
                at
            }
        };
        Ok(at)
    }

    fn note(&mut self, place: Place, hash: Hash) -> usize {
        self.known.places.push((place, hash));
        let at = self.known.places.len() - 1;
        self.known.by_bytes.insert(hash, at);
        at
    }

    async fn finish_pack(&mut self) -> Result<()> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let next = self.writer.pack_name();
        let name = std::mem::replace(&mut self.name, next);
        self.new.push(name.clone());
        self.writer.sizes.insert(name.clone(), self.pack.len() as u64);
        self.writer.objects.put(&name, std::mem::take(&mut self.pack), "checkpoint_pack").await
    }

    /// Packs of which less than half is used are left behind the next time.
    fn note_sparse(&mut self) {
        let mut used: BTreeMap<&String, u64> = BTreeMap::new();
        for (place, _) in &self.known.places {
            *used.entry(&place.pack).or_default() += place.bytes;
        }
        let is_sparse =
            |(pack, used): &(&String, u64)| used * 2 < self.writer.sizes.get(*pack).copied().unwrap_or(0);
        self.known.sparse = used.into_iter().filter(is_sparse).map(|(pack, _)| pack.clone()).collect();
    }
}

pub(super) fn encode(table: &RecordBatch) -> Result<Vec<u8>> {
    let mut writer = StreamWriter::try_new(Vec::new(), &table.schema())?;
    writer.write(table)?;
    Ok(writer.into_inner()?)
}
