//! Reads checkpoints: the newest first, until one is whole and fits.

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;

use super::manifest::{Header, Manifest};
use super::objects::Objects;
use super::parts::Loader;
use crate::error::{Error, Result};

/// A checkpoint that is there, of which only the manifest was read.
pub struct Found {
    /// The object of its manifest.
    pub name: String,
    /// What is in it.
    pub manifest: Manifest,
}

impl Found {
    /// What it is of.
    pub fn header(&self) -> &Header {
        &self.manifest.header
    }

    /// Bytes of its parts.
    pub fn bytes(&self) -> u64 {
        self.manifest.tables.iter().chain([&self.manifest.values]).map(|place| place.bytes).sum()
    }

    /// Reads it.
    ///
    /// # Errors
    /// A part is missing, or is not what was written.
    pub async fn read(&self, objects: &Objects) -> Result<Loader> {
        let Manifest { header: _, tables: places, values: place_of_values } = &self.manifest;
        let (mut tables, mut values) = (vec![None; places.len()], Vec::new());
        // One pack after the other: never all bytes beside all tables.
        for pack in self.manifest.packs() {
            let bytes = objects.get(pack).await?;
            for (table, place) in tables.iter_mut().zip(places).filter(|(_, place)| place.pack == pack) {
                *table = Some(decode(place.of(&bytes).map_err(Error::Checkpoint)?)?);
            }
            if place_of_values.pack == pack {
                values = place_of_values.of(&bytes).map_err(Error::Checkpoint)?.to_vec();
            }
        }
        Ok(Loader::new(tables.into_iter().flatten().collect(), values))
    }
}

/// The checkpoints that are there, the newest first. What can't be used is told and left out.
pub async fn found(objects: &Objects) -> Result<Vec<Found>> {
    let mut names: Vec<_> = objects.list().await?.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| Manifest::epoch_of(name).is_some());
    names.sort_unstable_by(|one, other| other.cmp(one));
    let mut found = Vec::new();
    for name in names {
        let manifest = match objects.get(&name).await {
            Ok(bytes) => Manifest::decode(&bytes),
            Err(error) => Err(error.to_string()),
        };
        match manifest {
            Ok(manifest) => found.push(Found { name, manifest }),
            Err(reason) => tracing::warn!("checkpoint {}/{name} is not used: {reason}", objects.place()),
        }
    }
    Ok(found)
}

pub(super) fn decode(bytes: &[u8]) -> Result<RecordBatch> {
    let mut reader = StreamReader::try_new(bytes, None)?;
    match reader.next() {
        Some(batch) => Ok(batch?),
        None => Err(Error::Checkpoint("a table has no rows where it must have some".into())),
    }
}
