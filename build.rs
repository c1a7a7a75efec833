//! Builds again when a file that is built into the binary comes, changes or goes.

fn main() {
    for folder in ["examples", "migrations", "queries", "web"] {
        println!("cargo::rerun-if-changed={folder}");
    }
}
