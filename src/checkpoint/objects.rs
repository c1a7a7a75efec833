//! Where checkpoints are: the objects of a directory, or of what else a URL names. An object that is there is whole: it is
//! written under another name, made durable, and renamed.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

use crate::error::{Error, Result};
use crate::fault;

/// What stays free on a disk, in bytes: other programs need some too.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Ends the name of an object that is not whole yet.
const UNFINISHED: &str = ".unfinished";

/// The checkpoints' objects of one engine.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The directory, if it is one of this machine.
    directory: Option<PathBuf>,
    /// For messages.
    place: String,
    /// Bytes that are taken for free, instead of asking the disk.
    #[cfg(test)]
    pub free_bytes: Option<u64>,
}

impl Objects {
    /// Those of an engine in `data_dir`, a directory, which is made, or a URL.
    ///
    /// # Errors
    /// It can't be made or read, or is a URL of a store that this build does not know.
    pub fn open(data_dir: &str, engine_id: &str) -> Result<Objects> {
        let inner = format!("checkpoints/{engine_id}");
        let local = match Url::parse(data_dir) {
            Ok(url) if url.scheme() == "file" => url.to_file_path().ok(),
            Ok(url) if data_dir.contains("://") => return Objects::of_url(&url, data_dir, &inner),
            _ => Some(PathBuf::from(data_dir)),
        };
        let Some(directory) = local.map(|local| local.join(&inner)) else {
            return Err(Error::Config(format!(
                "data_dir is {data_dir}: that is no directory of this machine"
            )));
        };
        // Whoever reads it reads all that was counted.
        let mut private = std::fs::DirBuilder::new();
        private
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|e| Error::io("making data_dir, where checkpoints go,", &directory, e))?;
        let store =
            LocalFileSystem::new_with_prefix(&directory).map_err(|e| failed("opening", data_dir, e))?;
        Ok(Objects::of(Arc::new(store), Some(directory.clone()), directory.display().to_string()))
    }

    fn of_url(url: &Url, data_dir: &str, inner: &str) -> Result<Objects> {
        let (store, path) = object_store::parse_url(url).map_err(|error| {
            Error::Config(format!(
                "data_dir is {data_dir}: this build keeps checkpoints in a directory only ({error}); name one, which \
                 may be a bucket that is mounted"
            ))
        })?;
        let store = PrefixStore::new(store, path.join(inner));
        Ok(Objects::of(Arc::new(store), None, format!("{}/{inner}", data_dir.trim_end_matches('/'))))
    }

    fn of(store: Arc<dyn ObjectStore>, directory: Option<PathBuf>, place: String) -> Objects {
        Objects {
            store,
            directory,
            place,
            #[cfg(test)]
            free_bytes: None,
        }
    }

    /// Those of a store, for tests.
    #[cfg(test)]
    pub fn of_store(store: Arc<dyn ObjectStore>) -> Objects {
        Objects::of(store, None, "a test's store".into())
    }

    /// Where they are, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Writes an object: once this is done it is there whole, whatever happens. `step` names the moment before.
    pub async fn put(&self, name: &str, bytes: Vec<u8>, step: &str) -> Result<()> {
        self.check_free(bytes.len() as u64)?;
        let whole = Path::from(name);
        let failed = |error| failed("writing", &format!("{}/{name}", self.place), error);
        if self.directory.is_none() {
            // A store puts an object whole or not at all.
            fault::point(step);
            self.store.put(&whole, bytes.into()).await.map_err(failed)?;
            return Ok(());
        }
        let unfinished = Path::from(format!("{name}{UNFINISHED}"));
        self.store.put(&unfinished, bytes.into()).await.map_err(failed)?;
        self.sync(&format!("{name}{UNFINISHED}"))?;
        fault::point(step);
        self.store.rename(&unfinished, &whole).await.map_err(failed)?;
        self.sync("")
    }

    /// Waits until a file, or the directory, is on the disk.
    fn sync(&self, name: &str) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = if name.is_empty() { directory.clone() } else { directory.join(name) };
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(|error| Error::io("writing", &path, error))
    }

    fn check_free(&self, wanted: u64) -> Result<()> {
        let Some(free) = self.free_bytes()? else { return Ok(()) };
        if free >= wanted + FREE_BYTES_MIN {
            return Ok(());
        }
        Err(Error::Checkpoint(format!(
            "{} has {} MiB free, and {} MiB would be left of less than {} MiB: make room, or name another data_dir",
            self.place,
            free >> 20,
            free.saturating_sub(wanted) >> 20,
            FREE_BYTES_MIN >> 20
        )))
    }

    /// Bytes that can be written, if that is known.
    fn free_bytes(&self) -> Result<Option<u64>> {
        #[cfg(test)]
        if self.free_bytes.is_some() {
            return Ok(self.free_bytes);
        }
        let Some(directory) = &self.directory else { return Ok(None) };
        let disk = rustix::fs::statvfs(directory)
            .map_err(|error| Error::io("asking for the free room of", directory, error.into()))?;
        Ok(Some(disk.f_bavail.saturating_mul(disk.f_frsize)))
    }

    /// A whole object.
    pub async fn get(&self, name: &str) -> Result<Bytes> {
        let failed = |error| failed("reading", &format!("{}/{name}", self.place), error);
        let found = self.store.get(&Path::from(name)).await.map_err(failed)?;
        found.bytes().await.map_err(failed)
    }

    /// Names of all objects, unfinished ones too, with their bytes.
    pub async fn list(&self) -> Result<Vec<(String, u64)>> {
        let all: Vec<_> = self
            .store
            .list(None)
            .try_collect()
            .await
            .map_err(|error| failed("listing", &self.place, error))?;
        Ok(all.into_iter().map(|object| (object.location.to_string(), object.size)).collect())
    }

    /// Removes the files that a crash has left while they were written: the store does not list them.
    pub fn remove_staged(&self) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let failed = |error| Error::io("removing what was not finished in", directory, error);
        for file in std::fs::read_dir(directory).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.to_string_lossy().contains(&format!("{UNFINISHED}#")) {
                std::fs::remove_file(path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes an object.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let failed = |error| failed("removing", &format!("{}/{name}", self.place), error);
        self.store.delete(&Path::from(name)).await.map_err(failed)
    }
}

fn failed(action: &str, what: &str, error: object_store::Error) -> Error {
    Error::Checkpoint(format!("{action} {what}: {error}"))
}
