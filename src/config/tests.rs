//! Layers of settings, their bounds, and what is shown of secrets.

use super::*;

/// Settings from this file, these variables and flags: the process's own variables are left alone, since
/// other tests' threads read them.
fn load(text: &str, env: &[(&str, &str)], flags: &Flags, command: &impl Serialize) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tally.toml");
    std::fs::write(&file, text).unwrap();
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::load_with(Environment(env.collect()), Some(&file), flags, command)
}

fn load_file(text: &str) -> Result<Config> {
    #[derive(Serialize)]
    struct Nothing {}
    load(text, &[], &Flags::default(), &Nothing {})
}

#[test]
fn a_later_layer_overrides_an_earlier_one_and_secrets_are_hidden() {
    let text = "listen = \"0.0.0.0:1\"\npartitions = 7\npostgres_url = \"postgres://me:s3cret@db/x\"\n[kafka]\n\
                bootstrap.servers = \"file:1\"\n\"sasl.username\" = \"file\"\nsasl.password = \"s3cret\"\n";
    let env = [
        ("TALLY_PARTITIONS", "9"),
        ("TALLY_TOKEN", "12345"),
        ("TALLY_KAFKA_SASL_USERNAME", "environment"),
        ("TALLY_KAFKA_SASL_MECHANISM", "PLAIN"),
        ("OTHER_PARTITIONS", "8"),
        // Of the tests, and no settings.
        ("TALLY_TEST_KAFKA", "127.0.0.1:1"),
        ("TALLY_ORACLE_CASES", "7"),
    ];
    #[derive(Serialize)]
    struct Command {
        listen: &'static str,
    }
    let flags = Flags { kafka_properties: vec!["security.protocol=SSL".into()], ..Flags::default() };
    let config = load(text, &env, &flags, &Command { listen: "127.0.0.1:3" }).unwrap();
    assert_eq!((config.listen.as_str(), config.partitions, config.batch_rows), ("127.0.0.1:3", 9, 50_000));
    assert_eq!(config.token.as_deref(), Some("12345"));
    assert_eq!(config.bootstrap_servers(), "file:1");
    assert_eq!(config.kafka["sasl.username"], "environment");
    assert_eq!(config.kafka["sasl.mechanism"], "PLAIN");
    assert_eq!(config.kafka["security.protocol"], "SSL");
    let shown = config.to_toml();
    assert!(!shown.contains("s3cret") && !shown.contains("12345"), "{shown}");
    assert!(shown.contains("postgres://me:********@db/x"), "{shown}");
    let error = load("", &[("TALLY_PARTITOINS", "9")], &flags, &Command { listen: "x:1" }).unwrap_err();
    assert!(error.to_string().contains("partitoins"), "{error}");
}

#[test]
fn a_wrong_setting_is_named() {
    for (wrong, reason) in [
        ("partitoins = 3", "partitoins"),
        ("partitions = \"many\"", "partitions"),
        ("batch_rows = 0", "at least 1"),
        ("sql_concurrency_max = 1000000", "sql_concurrency_max is 1000000; it must be at most 256"),
        ("trigger_ms = 9223372036854775807", "it must be at most 60000"),
        ("listen = \"8080\"", "HOST:PORT"),
        ("= 1", "TOML"),
    ] {
        let error = load_file(wrong).unwrap_err().to_string();
        assert!(error.contains(reason), "{wrong}: {error}");
    }
}

#[test]
fn a_url_is_shown_without_its_secrets() {
    for (url, shown) in [
        ("postgres://me:s3cret@db/x", "postgres://me:********@db/x"),
        ("postgres://me:s3@cret@db/x", "postgres://me:********@db/x"),
        (
            "postgres://db/x?user=u&password=s3cret&sslmode=require",
            "postgres://db/x?user=u&password=********&sslmode=require",
        ),
        ("postgres:///x?host=%2Frun&PASSWORD=s3cret", "postgres:///x?host=%2Frun&PASSWORD=********"),
        ("postgres://me@[::1]:5432/x", "postgres://me@[::1]:5432/x"),
        ("host=db password=s3cret", "********"),
        ("postgres:me:s3cret@db", "********"),
        ("postgres://me:s3cret@db:port/x", "********"),
    ] {
        assert_eq!(redacted_url(url), shown, "{url}");
    }
}

#[test]
fn no_kafka_secret_is_shown_nor_the_value_of_a_misspelt_property() {
    let text = "[kafka]\nssl.keystore.password = \"s3cret\"\nssl.key.pem = \"s3cret\"\n\
                ssl.key.location = \"/etc/key\"\nsasl.mechanism = \"PLAIN\"\n";
    let shown = load_file(text).unwrap().to_toml();
    assert!(!shown.contains("s3cret") && shown.contains("/etc/key") && shown.contains("PLAIN"), "{shown}");
    assert!(is_secret("sasl.oauthbearer.assertion.private.key.passphrase"));
    let error = load_file("[kafka]\nsasl.pasword = \"s3cret\"\n").unwrap_err().to_string();
    assert!(error.contains("kafka.sasl.pasword") && !error.contains("s3cret"), "{error}");
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (token, url) = (dir.path().join("token"), dir.path().join("url"));
    std::fs::write(&token, "open sesame\n").unwrap();
    std::fs::write(&url, "postgres://me:s3cret@db/x\n").unwrap();
    let text = format!("token = \"other\"\ntoken_file = {token:?}\npostgres_url_file = {url:?}\n");
    let config = load_file(&text).unwrap();
    assert_eq!(config.token.as_deref(), Some("open sesame"));
    assert_eq!(config.postgres_url, "postgres://me:s3cret@db/x");
    assert!(!config.to_toml().contains("sesame") && !config.to_toml().contains("s3cret"));
    std::fs::write(&token, "\n").unwrap();
    let error = load_file(&text).unwrap_err().to_string();
    assert!(error.contains("token_file") && error.contains("is empty"), "{error}");
    let error = load_file("postgres_url_file = \"/nowhere/at/all\"").unwrap_err().to_string();
    assert!(error.contains("postgres_url_file: /nowhere/at/all can't be read"), "{error}");
}

#[test]
fn names_are_a_list_or_a_text_with_commas() {
    #[derive(Serialize)]
    struct Nothing {}
    let list = load_file("hosts = [\"a.example\", \"b.example\"]").unwrap();
    let text = load("", &[("TALLY_HOSTS", "a.example, b.example")], &Flags::default(), &Nothing {}).unwrap();
    assert_eq!(list.hosts, ["a.example", "b.example"]);
    assert_eq!(list.hosts, text.hosts);
}
