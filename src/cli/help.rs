//! The examples that `--help` ends with.

/// Of `tally`.
pub(super) const EXAMPLES: &str = "\
Examples:
  tally demo                                     a whole election night, nothing else needed
  tally demo --rate 500 --faulty 0.05            votes from everywhere at a steady rate, some of them bad
  tally init shop                                a project of your own, with
  tally test shop                                its tests, and
  tally dev --input orders=data/orders.ndjson    its run on this machine, which follows your edits
  tally topics -b kafka:9092                     with real Kafka and Postgres: topics,
  tally seed --voters 1000000                    candidates and voters,
  tally run                                      the engine and the dashboard,
  tally vote --rate 1000                         and votes
  tally config                                   the effective settings
  tally check --queries queries                  what each view keeps and costs; no server needed
  tally replay --queries queries --input votes_topic=votes.ndjson --table candidates=candidates.csv \
               --table voters=voters.csv --view votes_per_candidate

Settings come from tally.toml, then TALLY_* variables (TALLY_LISTEN, TALLY_POSTGRES_URL,
TALLY_KAFKA_BOOTSTRAP_SERVERS, TALLY_KAFKA_SECURITY_PROTOCOL, …), then flags; the later wins.
RUST_LOG sets what is logged, for example RUST_LOG=tally=debug.";

/// Of `tally init`.
pub(super) const INIT_EXAMPLES: &str = "\
Examples:
  tally init shop                      orders and shipments
  tally init visits --example clicks   session windows
  tally init weather --example sensors late data, and a Postgres table
  tally init copy --example cdc        rows that change and go";

/// Of `tally test`.
pub(super) const TEST_EXAMPLES: &str = "\
A test is a file tests/NAME.slt, in which each INSERT is a micro-batch, or a folder tests/NAME:
  given/orders.ndjson          messages of a source: one micro-batch
  given/2-customers.csv        all rows that a reference table has from then on; numbers say in which order
  expected/revenue.csv         a view at the end, as .csv or .ndjson
  expected/revenue.changes.csv every change of it
  expected/dead_letters.csv    what was not counted

Examples:
  tally test                           the project here
  tally test examples/shop             another one
  tally test tests/revenue.slt         one test
  tally test --update                  write what comes out; then look at the difference
  tally test --junit report.xml        for CI";

/// Of `tally dev`.
pub(super) const DEV_EXAMPLES: &str = "\
Examples:
  tally dev
  tally dev --input orders=data/orders.ndjson --rate 5
  tally dev --input clicks=data/clicks.ndjson --rate 100 --loop
  tail -f app.log | tally dev --input clicks=-
  tally dev --table customers=data/customers.csv";
