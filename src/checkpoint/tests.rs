//! What is written and what is not, what is kept, and what torn, damaged and missing objects do.

use std::path::PathBuf;

use arrow::array::{Int64Array, RecordBatch};
use tempfile::TempDir;

use super::write::{Writer, Written};
use super::*;
use crate::epoch_log::Definitions;

fn table(values: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_from_iter([("n", std::sync::Arc::new(Int64Array::from_iter_values(values)) as _)])
        .unwrap()
}

fn header(epoch: u64) -> Header {
    let (program, engine_id) = (Header::this_program(), "test".to_string());
    Header { program, engine_id, epoch, at_ms: 0, entry: "e".into(), definitions: Definitions::default() }
}

async fn write(writer: &mut Writer, epoch: u64, tables: &[RecordBatch]) -> Result<Written> {
    let values = epoch.to_le_bytes().to_vec();
    writer.write(State { header: header(epoch), tables: tables.to_vec(), values }).await
}

struct Directory {
    root: TempDir,
    objects: Objects,
}

impl Directory {
    fn new() -> Directory {
        let root = TempDir::new().unwrap();
        let objects = Objects::open(root.path().to_str().unwrap(), "test").unwrap();
        Directory { root, objects }
    }

    fn writer(&self) -> Writer {
        Writer::new(self.objects.clone(), None)
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.root.path().join("checkpoints/test")).unwrap();
        let mut all: Vec<_> = all.map(|file| file.unwrap().path()).collect();
        all.sort();
        all
    }

    async fn tables(&self, found: &Found) -> Result<Vec<RecordBatch>> {
        let mut loader = found.read(&self.objects).await?;
        let count = found.manifest.tables.len();
        (0..count).map(|_| Ok(loader.any_rows()?)).collect()
    }
}

#[tokio::test]
async fn a_checkpoint_writes_only_what_is_new() {
    let directory = Directory::new();
    let mut writer = directory.writer();
    let (large, small) = (table(0..100_000), table(7..9));
    let first = write(&mut writer, 1, std::slice::from_ref(&large)).await.unwrap();
    assert!(first.new_bytes > 800_000, "{first:?}");
    let second = write(&mut writer, 2, &[large.clone(), small.clone()]).await.unwrap();
    assert!(second.new_bytes < 3_000 && second.bytes > 800_000, "{second:?}");
    // Other arrays of the same values are found by their bytes.
    let third = write(&mut writer, 3, &[table(0..100_000), small.clone()]).await.unwrap();
    assert!(third.new_bytes < 3_000, "{third:?}");
    let found = found(&directory.objects).await.unwrap();
    assert_eq!(found.iter().map(|found| found.header().epoch).collect::<Vec<_>>(), [3, 2]);
    for found in &found {
        assert_eq!(directory.tables(found).await.unwrap(), [large.clone(), small.clone()]);
    }
}

#[tokio::test]
async fn tables_of_the_same_arrays_keep_their_names() {
    let directory = Directory::new();
    let mut writer = directory.writer();
    let one = table(0..10);
    let other = RecordBatch::try_from_iter([("other", std::sync::Arc::clone(one.column(0)))]).unwrap();
    for epoch in 1..3 {
        write(&mut writer, epoch, &[one.clone(), other.clone()]).await.unwrap();
        let newest = found(&directory.objects).await.unwrap().remove(0);
        assert_eq!(directory.tables(&newest).await.unwrap(), [one.clone(), other.clone()]);
    }
}

#[tokio::test]
async fn an_array_that_is_gone_is_not_taken_for_a_later_one() {
    let directory = Directory::new();
    let mut writer = directory.writer();
    for epoch in 1..40 {
        // Each is freed before the next is made, often at the same place.
        let first = epoch as i64;
        write(&mut writer, epoch, &[table(first..first + 1000)]).await.unwrap();
        let newest = found(&directory.objects).await.unwrap().remove(0);
        assert_eq!(directory.tables(&newest).await.unwrap(), [table(first..first + 1000)]);
    }
}

#[tokio::test]
async fn the_last_two_are_kept_and_packs_of_which_little_is_used_are_left_behind() {
    let directory = Directory::new();
    let mut writer = directory.writer();
    let stays = table(0..10);
    for epoch in 1..6 {
        let first = epoch as i64 * 1_000_000;
        write(&mut writer, epoch, &[stays.clone(), table(first..first + 50_000)]).await.unwrap();
        let manifests = found(&directory.objects).await.unwrap();
        assert_eq!(manifests.len(), if epoch == 1 { 1 } else { 2 });
        for found in &manifests {
            assert_eq!(directory.tables(found).await.unwrap()[0], stays);
        }
    }
    let bytes: u64 = directory.files().iter().map(|file| file.metadata().unwrap().len()).sum();
    // A pack is left behind one checkpoint after little of it is used.
    assert!(bytes < 3 * 450_000, "{bytes} bytes are kept of two checkpoints of 400,000");
    // Of an earlier start nothing is kept that was not gone on from, nor what a crash has left.
    let left = directory.root.path().join("checkpoints/test");
    std::fs::write(left.join("pack-x.unfinished#1"), "half").unwrap();
    std::fs::write(left.join("manifest-9-x.unfinished"), "half").unwrap();
    write(&mut directory.writer(), 9, std::slice::from_ref(&stays)).await.unwrap();
    assert_eq!(directory.files().len(), 2, "a manifest and a pack");
}

#[tokio::test]
async fn what_is_torn_damaged_or_missing_is_noticed_and_the_one_before_is_whole() {
    type Damage = fn(&PathBuf);
    let flip = |file: &PathBuf, at: usize| {
        let mut bytes = std::fs::read(file).unwrap();
        bytes[at] ^= 0x10;
        std::fs::write(file, bytes).unwrap();
    };
    let damages: [(&str, Damage); 4] = [
        ("torn", |file| {
            let bytes = std::fs::read(file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("empty", |file| std::fs::write(file, "").unwrap()),
        ("missing", |file| std::fs::remove_file(file).unwrap()),
        ("zeroed", |file| std::fs::write(file, vec![0; std::fs::read(file).unwrap().len()]).unwrap()),
    ];
    let check = async |what: String, damage: &dyn Fn(&PathBuf)| {
        for object in ["manifest", "pack"] {
            let directory = Directory::new();
            let mut writer = directory.writer();
            write(&mut writer, 1, &[table(0..100)]).await.unwrap();
            let before = directory.files();
            write(&mut writer, 2, &[table(500..600)]).await.unwrap();
            let is_new = |file: &&PathBuf| !before.contains(file) && file.to_str().unwrap().contains(object);
            damage(directory.files().iter().find(is_new).unwrap());
            let found = found(&directory.objects).await.unwrap();
            let mut whole = Vec::new();
            for found in &found {
                whole.extend(directory.tables(found).await.ok());
            }
            assert_eq!(whole, [[table(0..100)]], "{object} {what}");
        }
    };
    for (what, damage) in damages {
        check(what.into(), &damage).await;
    }
    for at in [0, 3, 20, 40, 90, 200] {
        check(format!("with a bit flipped at {at}"), &|file| flip(file, at)).await;
    }
}

#[tokio::test]
async fn each_flipped_bit_of_a_pack_is_noticed() {
    let directory = Directory::new();
    write(&mut directory.writer(), 1, &[table(0..20)]).await.unwrap();
    let pack = directory.files().into_iter().find(|file| file.to_str().unwrap().contains("pack")).unwrap();
    let whole = std::fs::read(&pack).unwrap();
    let found = found(&directory.objects).await.unwrap().remove(0);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&pack, bytes).unwrap();
        assert!(directory.tables(&found).await.is_err(), "byte {at}");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_the_checkpoint_before() {
    let mut directory = Directory::new();
    let mut writer = directory.writer();
    write(&mut writer, 1, &[table(0..100)]).await.unwrap();
    let before = directory.files();
    directory.objects.free_bytes = Some(1 << 20);
    let mut full = Writer::new(directory.objects.clone(), None);
    let error = write(&mut full, 2, &[table(0..1000)]).await.unwrap_err().to_string();
    assert!(error.contains("has 1 MiB free") && error.contains("make room"), "{error}");
    assert_eq!(directory.files(), before);
}

#[tokio::test]
async fn a_newer_version_and_a_store_of_a_cloud_are_told() {
    let manifest = manifest::Manifest {
        header: header(1),
        tables: Vec::new(),
        values: manifest::Place { pack: "p".into(), offset: 0, bytes: 0, crc: 0 },
    };
    let bytes = manifest.encode().unwrap();
    assert_eq!(manifest::Manifest::decode(&bytes).unwrap(), manifest);
    let newer = String::from_utf8(bytes).unwrap().replacen(" 1 ", " 2 ", 1);
    let reason = manifest::Manifest::decode(newer.as_bytes()).unwrap_err();
    assert!(reason.contains("newer version of tally") && reason.contains("run that one"), "{reason}");
    let error = Objects::open("s3://bucket/tally", "test").unwrap_err().to_string();
    assert!(error.contains("data_dir is s3://bucket/tally") && error.contains("name one"), "{error}");
    assert!(Objects::open("memory:///", "test").is_ok(), "a URL of a store that is there");
}
