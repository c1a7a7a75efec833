//! Notices edits of the `.sql` files of a folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::queries::{self, QueryFile};

const POLL: Duration = Duration::from_millis(300);

/// What the files of a folder are, or why they can't be read.
pub type Found = Result<Vec<(PathBuf, String)>, String>;

/// A folder that is looked at again and again.
pub struct Edits {
    folder: PathBuf,
    told: Found,
}

impl Edits {
    /// Of a folder as it is now.
    pub fn of(folder: &Path) -> Edits {
        Edits { folder: folder.into(), told: look(folder) }
    }

    /// The folder as it was told last.
    pub fn told(&self) -> &Found {
        &self.told
    }

    /// Waits for an edit, and until the files stay as they are: an editor may write several, or in parts.
    pub async fn next(&mut self) {
        let mut before = self.told.clone();
        loop {
            tokio::time::sleep(POLL).await;
            let now = look(&self.folder);
            if now == before && now != self.told {
                self.told = now;
                return;
            }
            before = now;
        }
    }
}

fn look(folder: &Path) -> Found {
    let (_, files) = queries::load(Some(folder)).map_err(|error| error.to_string())?;
    Ok(files.into_iter().map(|QueryFile { path, text }| (path, text)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_edit_is_noticed_and_what_is_no_sql_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        file("a.sql", "1");
        let mut edits = Edits::of(folder.path());
        file("a.sql~", "2");
        assert!(tokio::time::timeout(4 * POLL, edits.next()).await.is_err());
        file("b.sql", "2");
        edits.next().await;
        std::fs::remove_file(folder.path().join("a.sql")).unwrap();
        edits.next().await;
        std::fs::remove_file(folder.path().join("b.sql")).unwrap();
        edits.next().await;
        assert!(edits.told.unwrap_err().contains("no .sql file"));
    }
}
