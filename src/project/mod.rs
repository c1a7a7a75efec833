//! A project of one's own: a folder with `queries/`, sample rows and `tests/`. `init` writes one, `testing` runs its
//! tests, `dev` runs it on this machine and follows its edits.

mod dev;
mod init;
pub mod testing;

pub use self::dev::dev;
pub use self::init::{EXAMPLES, init};
