//! The private server as its users see it: it answers, it is theirs alone, and nothing is left of it.

use sqlx::Row;

use super::*;

async fn one(url: &str, query: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.expect("connect");
    sqlx::raw_sql(query).fetch_one(&mut connection).await.expect("query").get(0)
}

#[tokio::test]
async fn it_answers_and_leaves_nothing_behind() {
    let postgres = Postgres::start(&|line| println!("{line}")).await.expect("start");
    let url = postgres.url().to_owned();
    assert_eq!(one(&url, "SELECT current_database()::text").await, "voting");
    assert_eq!(one(&url, "SHOW server_encoding").await, "UTF8");
    assert_eq!(one(&url, "SHOW timezone").await, "UTC");
    let wrong = url.replace("postgres:", "postgres:x");
    assert!(PgConnection::connect(&wrong).await.is_err(), "a wrong password must be refused");

    // A client that stays connected must not keep the server from stopping.
    let _lingering = PgConnection::connect(&url).await.expect("connect");
    let directory = postgres.directory.path().to_owned();
    assert!(directory.exists());
    postgres.stop().await.expect("stop");
    assert!(!directory.exists());
    assert!(PgConnection::connect(&url).await.is_err(), "it must be gone");
}

#[tokio::test]
async fn dropping_it_ends_it() {
    let postgres = Postgres::start(&|_| {}).await.expect("start");
    let (url, directory) = (postgres.url().to_owned(), postgres.directory.path().to_owned());
    drop(postgres);
    assert!(!directory.exists());
    assert!(PgConnection::connect(&url).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_reported_so_that_another_is_tried() {
    let account = Account::for_this_process().expect("account");
    let binaries = Binaries::find(&account, &|_| {}).await.expect("binaries");
    let cluster = Cluster::create(binaries, account).expect("cluster");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let port = taken.local_addr().expect("address").port();
    let server =
        Server::spawn(cluster.server(port).expect("command"), cluster.directory.path()).expect("spawn");
    let reason =
        create_database(&server, &cluster.connect_options(port)).await.expect_err("the port is taken");
    assert!(reason.contains("Address already in use"), "{reason}");
}

#[test]
fn the_directories_of_dead_runs_are_removed() {
    let parent = tempfile::tempdir().expect("tempdir");
    let mut child = Command::new("true").spawn().expect("spawn");
    let dead = parent.path().join(format!("{PREFIX}{}-abc", child.id()));
    child.wait().expect("wait");
    let live = parent.path().join(format!("{PREFIX}{}-abc", std::process::id()));
    let foreign = parent.path().join("tally-pg-notes-abc");
    for directory in [&dead, &live, &foreign] {
        fs::create_dir(directory).expect("mkdir");
    }
    remove_stale(parent.path());
    assert!(!dead.exists());
    assert!(live.exists() && foreign.exists());
}

/// By hand, since it needs the internet: `cargo test --release download -- --ignored`.
#[tokio::test]
#[ignore = "downloads Postgres"]
async fn without_an_installed_server_one_is_downloaded() {
    let account = Account::for_this_process().expect("account");
    let began = Instant::now();
    let binaries = Binaries::downloaded(&account, &|line| println!("{line}")).await.expect("download");
    println!("Postgres {} after {:?}", binaries.version, began.elapsed());
    let postgres = Postgres::start_with(binaries, account).await.expect("start");
    println!("ready after {:?}", began.elapsed());
    assert!(one(postgres.url(), "SELECT version()").await.starts_with("PostgreSQL"));
    postgres.stop().await.expect("stop");
}

/// By hand: kill -9 this test while it sleeps; no `postgres` process may be left.
#[tokio::test]
#[ignore = "for killing by hand"]
async fn runs_until_killed() {
    let began = Instant::now();
    let postgres = Postgres::start(&|line| println!("{line}")).await.expect("start");
    println!("pid {} ready after {:?} {}", std::process::id(), began.elapsed(), postgres.url());
    tokio::time::sleep(Duration::from_secs(600)).await;
}
