//! Draws SQL: views over `events` and `clicks`, alone or with reference tables, of every kind that can be kept up to
//! date.

use rand::prelude::*;
use rand::rngs::ChaCha8Rng;

use super::data::Declared;
use super::expressions::{FAILING, FILTERS, INTEGERS, KEYS, VALUES};
use super::stacks::{Query, Stacks};
use super::{is_known, is_refusal};
use crate::engine::oracle::{Pair, runs_as_a_batch};

/// A view.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub name: String,
    options: Vec<String>,
    query: String,
    /// What its query is made of: smaller queries.
    parts: Vec<Query>,
}

impl View {
    fn new(query: String) -> View {
        View { name: "v".into(), options: Vec::new(), query, parts: Vec::new() }
    }

    /// The same view over each of the queries that its own is made of.
    pub fn smaller(&self) -> impl Iterator<Item = View> + '_ {
        self.parts.iter().map(|part| View {
            name: self.name.clone(),
            options: Vec::new(),
            query: part.sql.clone(),
            parts: part.parts.clone(),
        })
    }

    /// Whether it reads the view of that name.
    pub fn reads(&self, name: &str) -> bool {
        self.query.contains(&format!(" {name}"))
    }

    fn with(mut self, option: &str) -> View {
        self.options.push(option.into());
        self
    }

    fn holding(self) -> View {
        self.with("hold_rows = 10000")
    }

    fn is_holding(&self) -> bool {
        self.options.iter().any(|option| option.starts_with("hold_rows"))
    }

    /// Its declaration.
    pub fn sql(&self) -> String {
        let options = match self.options.as_slice() {
            [] => String::new(),
            some => format!(" WITH ({})", some.join(", ")),
        };
        format!("CREATE MATERIALIZED VIEW {}{options} AS {}", self.name, self.query)
    }
}

pub struct Draw(pub ChaCha8Rng);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn chance(&mut self, of_ten: u32) -> bool {
        self.chance_of(of_ten, 10)
    }

    pub fn chance_of(&mut self, chances: u32, of: u32) -> bool {
        self.0.random_range(0..of) < chances
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).expect("a choice")
    }

    /// Some of the list, at least one, each once, in any order.
    fn some(&mut self, of: &[&str], most: usize) -> Vec<String> {
        let count = self.0.random_range(1..=most);
        let mut chosen: Vec<String> = Vec::new();
        for _ in 0..count {
            let one = self.one(of).to_string();
            if !chosen.contains(&one) {
                chosen.push(one);
            }
        }
        chosen
    }

    /// The views of one engine: accepted ones, or one that is refused for no good reason.
    pub fn views(&mut self, declared: &Declared) -> Vec<View> {
        let wanted = [1, 1, 2, 3][self.0.random_range(0..4)];
        let mut views = Vec::new();
        while views.len() < wanted {
            let drawn = match self.chance(1) {
                true => self.twins(),
                false => vec![self.view(declared)],
            };
            let accepted = drawn.into_iter().filter_map(|view| accepted(view, &declared.sql()));
            views.extend(accepted.filter(|view| !is_known(&view.sql())));
        }
        named(views)
    }

    /// The views of one engine whose sources take rows back: of several levels, one over the other, and of the kinds
    /// that are drawn over sources whose rows only come.
    pub fn views_of_levels(&mut self, declared: &Declared) -> Vec<View> {
        let wanted = self.0.random_range(1..4);
        let (mut views, mut known): (Vec<View>, Vec<Query>) = (Vec::new(), Vec::new());
        while views.len() < wanted {
            let name = format!("v{}", views.len());
            let (view, columns) = if self.chance(2) {
                (View { name: name.clone(), ..self.view(declared) }, Vec::new())
            } else {
                let levels = self.0.random_range(1..5);
                let mut stacks = Stacks { draw: self, views: known.clone() };
                let Query { sql, columns, parts } = stacks.query(levels);
                (View { name: name.clone(), parts, ..View::new(sql) }, columns)
            };
            // What an expression says of a row that comes and goes again is not drawn.
            let is_failing = |part: &&str| view.query.contains(part);
            if FAILING.iter().chain(&["e.x / e.i > 0"]).any(is_failing) || is_known(&view.query) {
                continue;
            }
            let before = views.iter().map(|view| view.sql() + ";\n").collect::<String>();
            let Some(view) = accepted(view, &(declared.sql() + ";\n" + &before)) else { continue };
            views.push(view);
            if !columns.is_empty() {
                known.push(Query { sql: name, columns, parts: Vec::new() });
            }
        }
        views
    }

    fn view(&mut self, declared: &Declared) -> View {
        match self.0.random_range(0..20) {
            0..=8 => View::new(self.over_aggregates()),
            9 | 10 => {
                let (sql, keys, _) = self.aggregate();
                let view = View::new(sql);
                match self.chance(5) {
                    true if declared.has_watermark => view.with("mode = 'append'"),
                    _ if !keys.is_empty() => view.with("mode = 'complete'"),
                    _ => view,
                }
            }
            11..=13 => self.over_sessions(),
            14 if declared.has_watermark && !declared.takes_back() => self.held_for_a_time(),
            _ => self.over_rows(),
        }
    }

    /// A FROM item named `e` that has events' columns, and further columns to group by.
    fn from(&mut self) -> (String, Vec<&'static str>) {
        let seconds = self.one(&["20", "60", "90"]);
        match self.0.random_range(0..16) {
            0..=2 => ("events e".into(), vec![]),
            3 => ("events e JOIN places p ON p.k = e.k".into(), vec!["p.name"]),
            4 => ("events e LEFT JOIN places p ON p.k = e.k".into(), vec!["p.name"]),
            5 => (
                "events e JOIN places p ON p.k = e.k LEFT JOIN sizes s ON s.g = e.g".into(),
                vec!["p.name", "s.size"],
            ),
            6 => ("(SELECT * FROM events UNION ALL SELECT * FROM clicks) e".into(), vec![]),
            7 => ("(SELECT *, UNNEST(tags) AS tag FROM events) e".into(), vec!["e.tag"]),
            8 => (
                format!("tumble(events, at, INTERVAL '{seconds} seconds') e"),
                vec!["e.window_start", "e.window_end"],
            ),
            9 => (
                format!("hop(events, at, INTERVAL '20 seconds', INTERVAL '{seconds} seconds') e"),
                vec!["e.window_start", "e.window_end"],
            ),
            10 => (
                "tumble(events, at, INTERVAL '1 minute') e JOIN places p ON p.k = e.k".into(),
                vec!["e.window_start", "p.name"],
            ),
            11 => ("(SELECT * FROM events WHERE k IN (SELECT k FROM places)) e".into(), vec![]),
            12 => {
                let sql =
                    "(SELECT * FROM events v WHERE NOT EXISTS (SELECT 1 FROM places p WHERE p.k = v.k)) e";
                (sql.into(), vec![])
            }
            13 => (
                "(SELECT *, date_bin(INTERVAL '30 seconds', at) AS half FROM events WHERE x > 0) e".into(),
                vec!["e.half"],
            ),
            14 => ("events e LEFT SEMI JOIN sizes s ON s.g = e.g AND s.size > e.x".into(), vec![]),
            _ => ("events e LEFT JOIN places p ON p.k IS NOT DISTINCT FROM e.k".into(), vec!["p.name"]),
        }
    }

    /// A condition of which some rows have none, for where each row is looked at by itself; or one of `filter`.
    fn failing_filter(&mut self) -> String {
        if self.chance_of(1, 30) {
            return " WHERE e.i <> 0 AND e.x / e.i > 0".into();
        }
        self.filter()
    }

    fn filter(&mut self) -> String {
        if self.chance(4) { format!(" WHERE {}", self.one(&FILTERS)) } else { String::new() }
    }

    /// An aggregate function, and whether its answer is exact whatever the order of rows.
    fn function(&mut self, may_fail: bool) -> (String, bool) {
        let integers = if may_fail && self.chance(1) { &FAILING[..] } else { &INTEGERS };
        let (integer, other) = (self.one(integers), self.one(&VALUES));
        let any = if self.chance(6) { integer } else { other };
        let number = self.one(&["e.x", "e.i", "e.f", "e.d", "e.u"]);
        let order = self.one(&["e.id", "e.id DESC", "e.x DESC NULLS LAST, e.id"]);
        let filter = self.one(&["", "", " FILTER (WHERE e.x > 2)", " FILTER (WHERE e.k = 'a')"]);
        let exact = match self.0.random_range(0..19) {
            0 => format!("COUNT(*){filter}"),
            1 => format!("COUNT({any}){filter}"),
            2 => format!("SUM({integer}){filter}"),
            3 => format!("SUM({}){filter}", self.one(&["e.d", "e.d * 2", "e.u"])),
            4 => format!("AVG({}){filter}", self.one(&["e.x", "e.i", "e.d", "e.u"])),
            5 => format!("MIN({any}){filter}"),
            6 => format!("MAX({any}){filter}"),
            7 => format!("COUNT(DISTINCT {any}){filter}"),
            8 => format!("SUM(DISTINCT {integer}){filter}"),
            9 => {
                format!("{}(DISTINCT {integer}){filter}", self.one(&["BIT_XOR", "BIT_OR", "BIT_AND", "AVG"]))
            }
            10 => format!("{}({integer}){filter}", self.one(&["BIT_XOR", "BIT_OR", "BIT_AND", "MEDIAN"])),
            11 => format!("{}(e.x > {})", self.one(&["BOOL_OR", "BOOL_AND"]), self.one(&["0", "4"])),
            12 | 13 => format!("ARRAY_AGG({any} ORDER BY {order})"),
            14 => format!("STRING_AGG(CAST({any} AS VARCHAR), ',' ORDER BY {order}){filter}"),
            15 => format!("FIRST_VALUE({any} ORDER BY {order}){filter}"),
            16 => format!("LAST_VALUE({any} ORDER BY {order}){filter}"),
            17 => format!("NTH_VALUE({any}, 2 ORDER BY {order})"),
            _ => {
                let two = ["VAR_POP", "VAR_SAMP", "STDDEV", "AVG", "SUM"];
                let sql = match self.0.random_range(0..5) {
                    0 => format!("{}({number})", self.one(&two)),
                    1 => format!("{}(0.1)", self.one(&two)),
                    2 => format!("{}({number}, e.x)", self.one(&["CORR", "COVAR_POP", "REGR_SLOPE"])),
                    3 => format!("REGR_SLOPE({number}, 0.1)"),
                    _ => format!("APPROX_DISTINCT({integer})"),
                };
                return (sql, false);
            }
        };
        (exact, true)
    }

    /// Aggregate functions as columns `a0`, `a1`, …; the first is exact.
    fn aggregates(&mut self, may_fail: bool) -> (Vec<String>, Vec<String>) {
        let mut functions = Vec::new();
        let count = self.0.random_range(1..=3);
        while functions.len() < count {
            // One that no view above asks for is not computed.
            let (sql, is_exact) = self.function(may_fail && functions.is_empty());
            if is_exact || !functions.is_empty() {
                functions.push(sql);
            }
        }
        let names = (0..functions.len()).map(|i| format!("a{i}")).collect();
        (functions.iter().enumerate().map(|(i, sql)| format!("{sql} AS a{i}")).collect(), names)
    }

    /// An aggregate: SQL, names of its keys, and of its results.
    fn aggregate(&mut self) -> (String, Vec<String>, Vec<String>) {
        let (from, more) = self.from();
        let mut keys: Vec<String> = if self.chance(1) { vec![] } else { self.some(&KEYS, 3) };
        if !more.is_empty() && !keys.is_empty() && self.chance(7) {
            keys[0] = self.one(&more).to_string();
        }
        if self.chance_of(1, 25) {
            keys = vec![self.one(&FAILING).into()];
        }
        if self.chance_of(1, 25) {
            keys = vec!["e.x + (SELECT MIN(x) FROM clicks)".into()];
        }
        let sets = keys.len() > 1 && self.chance(2);
        if sets {
            keys.truncate(2);
        }
        let (results, names) = self.aggregates(true);
        let named: Vec<String> = keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}")).collect();
        let group = match keys.len() {
            0 => String::new(),
            _ if !sets => format!(" GROUP BY {}", keys.join(", ")),
            _ => self.grouping_sets(&keys),
        };
        let having = match keys.len() {
            1.. if self.chance(2) => {
                format!(
                    " HAVING {}",
                    self.one(&["COUNT(*) > 1", "SUM(e.x) % 2 = 0", "MAX(e.x) > 3", "10 / SUM(e.x) > 1"])
                )
            }
            _ => String::new(),
        };
        let columns = [named, results].concat().join(", ");
        let keys: Vec<String> = (0..keys.len()).map(|i| format!("k{i}")).collect();
        (format!("SELECT {columns} FROM {from}{}{group}{having}", self.failing_filter()), keys, names)
    }

    fn grouping_sets(&mut self, keys: &[String]) -> String {
        let all = keys.join(", ");
        match self.0.random_range(0..3) {
            0 => format!(" GROUP BY ROLLUP ({all})"),
            1 => format!(" GROUP BY CUBE ({all})"),
            _ => format!(
                " GROUP BY GROUPING SETS ({})",
                keys.iter().map(|key| format!("({key})")).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    /// A view over aggregates.
    fn over_aggregates(&mut self) -> String {
        let (sql, keys, results) = self.aggregate();
        let all = [keys.clone(), results.clone()].concat().join(", ");
        let (first, key) = (&results[0], keys.first().cloned());
        match self.0.random_range(0..14) {
            0 => format!("SELECT *, RANK() OVER (ORDER BY {first}) AS r, COUNT(*) OVER () AS c FROM ({sql})"),
            1 => format!("SELECT COUNT(*) AS n, COUNT({first}) AS m, MIN({first}) AS lo FROM ({sql})"),
            2 => format!("{sql} ORDER BY {all} LIMIT 3"),
            3 => format!("SELECT DISTINCT {first} FROM ({sql})"),
            4 => match key {
                Some(key) => format!(
                    "SELECT p.k, p.name, t.{first} FROM places p LEFT JOIN ({sql}) t ON CAST(t.{key} AS VARCHAR) = p.k"
                ),
                None => format!("SELECT p.k, t.{first} FROM places p CROSS JOIN ({sql}) t"),
            },
            5 => format!(
                "SELECT CAST({first} AS VARCHAR) AS v FROM ({sql}) UNION ALL SELECT k FROM events GROUP BY k"
            ),
            6 => format!(
                "SELECT CAST({first} AS VARCHAR) AS v FROM ({sql}) EXCEPT SELECT CAST(x AS VARCHAR) FROM clicks"
            ),
            7 => format!(
                "WITH t AS ({sql}) SELECT a.{first} AS one, b.{first} AS other FROM t a JOIN t b ON a.{first} = b.{first}"
            ),
            8 => format!("SELECT * FROM ({sql}) WHERE {first} IS NOT NULL"),
            9 => format!("{sql} ORDER BY {first} DESC, {all}"),
            _ => sql,
        }
    }

    /// A view over session windows.
    fn over_sessions(&mut self) -> View {
        let (by, keys) = [("", vec![]), (", k", vec!["e.k"]), (", k, g", vec!["e.k", "e.g"])]
            .choose(&mut self.0)
            .cloned()
            .expect("a choice");
        let gap = self.one(&["5", "12", "25"]);
        let from = format!("session(events, at, INTERVAL '{gap} seconds'{by}) e");
        let (mut results, _) = self.aggregates(false);
        if self.chance(3) {
            results.push(format!(
                "{} AS w",
                self.one(&[
                    "COUNT(DISTINCT e.window_start)",
                    "MAX(e.window_end - e.window_start)",
                    "COUNT(*) FILTER (WHERE e.at = e.window_start)",
                    "FIRST_VALUE(e.window_end ORDER BY e.id)",
                ])
            ));
        }
        let window = self.one(&[
            "e.window_start",
            "e.window_end",
            "e.window_start, e.window_end",
            "e.window_start",
            "e.window_start + INTERVAL '1 hour'",
            "e.g",
        ]);
        let mut keys: Vec<String> = keys.into_iter().map(String::from).collect();
        if self.chance(9) {
            keys.extend(window.split(", ").filter(|key| !key.is_empty()).map(String::from));
        }
        keys.dedup();
        let group = match keys.len() {
            0 => String::new(),
            _ if self.chance(1) => self.grouping_sets(&keys),
            _ => format!(" GROUP BY {}", keys.join(", ")),
        };
        let named = keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}"));
        let columns = named.chain(results).collect::<Vec<_>>().join(", ");
        let filter = if self.chance(2) { self.filter() } else { String::new() };
        let view = View::new(format!("SELECT {columns} FROM {from}{filter}{group}"));
        if self.chance(1) { view.with("mode = 'append'") } else { view }
    }

    /// A view that passes rows on, or needs them held.
    fn over_rows(&mut self) -> View {
        let (from, _) = self.from();
        let filter = self.filter();
        let values = [&INTEGERS[..], &INTEGERS, &VALUES, &VALUES, &FAILING][self.0.random_range(0..5)];
        let value = self.one(values);
        let held = match self.0.random_range(0..11) {
            0..=2 => {
                return View::new(format!("SELECT e.id, {value} AS y, e.k FROM {from}{filter}"));
            }
            3 => format!("SELECT e.id, c.id AS other FROM {from} JOIN clicks c ON c.k = e.k{filter}"),
            4 => format!(
                "SELECT e.id, ROW_NUMBER() OVER (PARTITION BY e.g ORDER BY e.x, e.id) AS r FROM events e{filter}"
            ),
            5 => format!("SELECT e.id, {value} AS y FROM events e{filter} ORDER BY y DESC, e.id LIMIT 4"),
            6 => "SELECT id, x FROM events WHERE x > (SELECT AVG(x) FROM events)".into(),
            7 => "SELECT e.g, COUNT(*) AS n FROM events e LEFT JOIN clicks c ON c.k = e.k AND c.x < e.x GROUP BY e.g".into(),
            8 => "SELECT id FROM events WHERE k IN (SELECT k FROM clicks GROUP BY k HAVING COUNT(*) > 1)".into(),
            9 => "SELECT e.window_start, COUNT(*) AS n FROM tumble(events, at, INTERVAL '20 seconds') e JOIN clicks c ON c.k = e.k GROUP BY e.window_start".into(),
            _ => "SELECT e.id, e.window_start, ROW_NUMBER() OVER (PARTITION BY e.window_start ORDER BY e.id) AS r FROM tumble(events, at, INTERVAL '20 seconds') e".into(),
        };
        View::new(held).holding()
    }

    /// A view that lets rows go by event time.
    fn held_for_a_time(&mut self) -> View {
        let query = match self.0.random_range(0..4) {
            0 => "SELECT id, x, k FROM events".to_string(),
            1 => format!("SELECT e.id, e.k FROM events e WHERE {}", self.one(&["e.x > 2", "e.k = 'a'"])),
            2 => "SELECT e.id, c.id AS other FROM events e JOIN clicks c ON c.k = e.k".into(),
            _ => "SELECT id, ROW_NUMBER() OVER (PARTITION BY g ORDER BY x, id) AS r FROM events".into(),
        };
        let duration = self.one(&["5 seconds", "30 seconds", "1 minute"]);
        View::new(query).holding().with(&format!("hold_for = '{duration}'"))
    }

    /// Two views that differ in little: what they keep must not be taken for one.
    fn twins(&mut self) -> Vec<View> {
        let values =
            |last: &str| format!("(VALUES ('b', 1), ('c', 2), ('ba', 3), ('', 4), ('z', 5), {last}) v(k, n)");
        let join = self.one(&["JOIN", "LEFT JOIN", "LEFT SEMI JOIN", "LEFT ANTI JOIN"]);
        let (one, other) = match self.0.random_range(0..5) {
            0 => (
                format!("FROM events e JOIN {} ON v.k = e.k", values("('a', 6)")),
                format!("FROM events e JOIN {} ON v.k = e.k", values("('q', 6)")),
            ),
            1 => (
                format!("FROM events e {join} places p ON p.k = e.k"),
                format!("FROM events e {join} places p ON p.k IS NOT DISTINCT FROM e.k"),
            ),
            2 => (
                "FROM events e WHERE e.k = 'a' OR e.k = 'b'".into(),
                r#"FROM events e WHERE e.k = 'a") OR e.k = Utf8("b'"#.into(),
            ),
            3 => (
                "FROM events e JOIN generate_series(1, 6) t(v) ON t.v = e.x".into(),
                "FROM events e JOIN generate_series(1, 7) t(v) ON t.v = e.x".into(),
            ),
            _ => (
                "FROM tumble(events, at, INTERVAL '20 seconds') e".into(),
                "FROM hop(events, at, INTERVAL '20 seconds', INTERVAL '40 seconds') e".into(),
            ),
        };
        let (results, _) = self.aggregates(true);
        let key = self.one(&["e.k", "e.g"]);
        let view =
            |from| View::new(format!("SELECT {key} AS k0, {} {from} GROUP BY {key}", results.join(", ")));
        vec![view(one), view(other)]
    }
}

fn named(views: Vec<View>) -> Vec<View> {
    let name = |(i, view)| View { name: format!("v{i}"), ..view };
    views.into_iter().enumerate().map(name).collect()
}

/// The view after the declarations `before` as the engine takes it: with rows held if it must be, or without the mode
/// that it can't have. None: it is refused with good reason, or DataFusion can't run the query at all.
fn accepted(view: View, before: &str) -> Option<View> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let texts = |view: &View| [before.trim_end_matches([';', '\n']), &view.sql()].join(";\n");
    let refusal = |view: &View| runtime.block_on(async { Pair::new().declare(&texts(view)).await }).err();
    let is_good = |view: &View| refusal(view).is_some_and(|error| is_refusal(&error.to_string()));
    let mut taken = view.clone();
    if is_good(&view) {
        taken.options.clear();
        if !view.is_holding() {
            taken = taken.holding();
        }
        if is_good(&taken) {
            return None;
        }
    }
    runtime.block_on(runs_as_a_batch(&texts(&taken))).then_some(taken)
}
