//! The account the private Postgres runs as. Postgres refuses to run as root, so root hands it to
//! `postgres` or `nobody`; anybody else runs it themselves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};

/// Accounts to try, in this order.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// Who runs Postgres.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Account {
    /// Whoever runs this process.
    Own,
    /// Another account, since this process is root's.
    Other {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Account {
    /// The account for this process's user.
    pub(super) fn for_this_process() -> Result<Account> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Account::Own);
        }
        let passwd = Path::new("/etc/passwd");
        let accounts = fs::read_to_string(passwd).map_err(|e| Error::io("reading", passwd, e))?;
        ACCOUNTS.iter().find_map(|name| find(&accounts, name)).ok_or_else(|| {
            Error::postgres(
                "starting the private server",
                "Postgres refuses to run as root and there is no account `postgres` or `nobody` to run it as; \
                 run tally as an ordinary user",
            )
        })
    }

    /// Makes `command` run as this account.
    pub(super) fn apply(&self, command: &mut Command) {
        // Setting the uid as root also drops root's supplementary groups.
        if let Account::Other { uid, gid } = self {
            command.gid(*gid).uid(*uid);
        }
    }

    /// Gives a file or directory to this account.
    pub(super) fn own(&self, path: &Path) -> Result<()> {
        match self {
            Account::Own => Ok(()),
            Account::Other { uid, gid } => {
                chown(path, Some(*uid), Some(*gid)).map_err(|e| Error::io("changing the owner of", path, e))
            }
        }
    }

    /// Whether this account may execute the file, or enter the directory, at `path`.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        path.ancestors().all(|part| fs::metadata(part).is_ok_and(|metadata| self.may_execute(&metadata)))
    }

    fn may_execute(&self, metadata: &fs::Metadata) -> bool {
        let bit = match self {
            // What this process can't reach, it notices on use; no need to foretell it.
            Account::Own => 0o111,
            Account::Other { uid, .. } if metadata.uid() == *uid => 0o100,
            Account::Other { gid, .. } if metadata.gid() == *gid => 0o010,
            Account::Other { .. } => 0o001,
        };
        metadata.permissions().mode() & bit != 0
    }
}

fn find(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account::Other { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_an_account_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody2:x:7:7::/:\nnobody:x:65534:65533::/nonexistent:/bin/false\n";
        assert_eq!(find(passwd, "nobody"), Some(Account::Other { uid: 65534, gid: 65533 }));
        assert_eq!(find(passwd, "postgres"), None);
    }

    #[test]
    fn a_private_directory_is_out_of_reach_of_others() {
        let directory = tempfile::tempdir().expect("tempdir");
        let stranger = Account::Other { uid: 4_000_000, gid: 4_000_000 };
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        assert!(!stranger.reaches(directory.path()));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(stranger.reaches(directory.path()));
        assert!(!stranger.reaches(&directory.path().join("absent")));
    }
}
