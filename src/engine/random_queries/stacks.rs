//! Draws queries of several levels: each is made of smaller ones, down to sources, reference tables and views. The
//! columns of each are `c0`, `c1`, …; its rows have one meaning whatever the order of its input.

use rand::prelude::*;

use super::data::SOURCES;
use super::draw::Draw;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Int,
    Text,
    Float,
    Decimal,
    Time,
}

use Type::{Decimal, Float, Int, Text, Time};

/// A query, its columns, and the queries that it is made of.
#[derive(Clone, Debug)]
pub struct Query {
    pub sql: String,
    pub columns: Vec<Type>,
    pub parts: Vec<Query>,
}

/// No query has more columns.
const COLUMNS_MAX: usize = 5;

const ROW_COLUMNS: [(&str, Type); 16] = [
    ("id", Int),
    ("x", Int),
    ("x", Int),
    ("CAST(i AS BIGINT)", Int),
    ("i", Int),
    ("x % 3", Int),
    ("CAST(u AS BIGINT)", Int),
    ("k", Text),
    ("k", Text),
    ("g", Text),
    ("s", Text),
    // Which zero stands for both is nobody's promise.
    ("CASE WHEN f = 0.0 THEN 0.0 ELSE f END", Float),
    ("d", Decimal),
    ("at", Time),
    ("date_bin(INTERVAL '20 seconds', at)", Time),
    ("CASE WHEN x > 2 THEN id ELSE i END", Int),
];

/// Draws queries of one engine.
pub struct Stacks<'a> {
    pub draw: &'a mut Draw,
    /// The views so far, with their names in the place of their SQL.
    pub views: Vec<Query>,
}

impl Stacks<'_> {
    /// A query of so many levels, or fewer.
    pub fn query(&mut self, levels: usize) -> Query {
        if levels == 0 {
            return self.leaf();
        }
        match self.draw.0.random_range(0..24) {
            0 => self.filtered(levels),
            1 => self.projected(levels),
            2..=5 => self.joined(levels),
            6 | 7 => self.asking(levels),
            8 | 9 => self.with_scalar(levels),
            10..=14 => self.aggregated(levels),
            15 => self.different(levels),
            16 | 17 => self.first(levels),
            18 | 19 => self.numbered(levels),
            20 | 21 => self.windowed(levels),
            _ => self.combined(levels),
        }
    }

    /// A query below one of so many levels.
    fn below(&mut self, levels: usize) -> Query {
        let below = if self.draw.chance(7) { levels - 1 } else { 0 };
        self.query(below)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.draw.0).expect("a choice")
    }

    /// Two of them, which may be the same.
    fn two_below(&mut self, levels: usize) -> (Query, Query) {
        let left = self.below(levels);
        let right = if self.draw.chance(1) { left.clone() } else { self.below(levels) };
        (left, right)
    }

    fn leaf(&mut self) -> Query {
        if !self.views.is_empty() && self.draw.chance(3) {
            let view = self.views[self.draw.0.random_range(0..self.views.len())].clone();
            let columns = (0..view.columns.len()).map(|i| format!("c{i}")).collect::<Vec<_>>().join(", ");
            return Query { sql: format!("SELECT {columns} FROM {}", view.sql), parts: vec![], ..view };
        }
        match self.draw.0.random_range(0..14) {
            0 => table("SELECT k AS c0, name AS c1 FROM places", &[Text, Text]),
            1 => table("SELECT g AS c0, size AS c1 FROM sizes", &[Text, Int]),
            2 => {
                let source = self.pick(&SOURCES);
                let window = self.pick(&["tumble", "hop", "session"]);
                let length = self.pick(&["5", "10"]);
                let lengths =
                    if window == "hop" { format!("INTERVAL '{length} seconds', ") } else { "".into() };
                let size = if window == "session" { length } else { "20" };
                let sql = format!(
                    "SELECT window_start AS c0, x AS c1, k AS c2 FROM {window}({source}, at, {lengths}INTERVAL '{size} seconds')"
                );
                table(&sql, &[Time, Int, Text])
            }
            3 => {
                let sql = "SELECT column1 AS c0, column2 AS c1 FROM (VALUES ('a', 1), ('b', 2), ('b', 3), (NULL, 4))";
                table(sql, &[Text, Int])
            }
            _ => {
                let source = if self.draw.chance(7) { SOURCES[0] } else { SOURCES[1] };
                let (mut exprs, mut columns) = (Vec::new(), Vec::new());
                let must = [("x", Int), ("k", Text)];
                let more = self.draw.0.random_range(0..3);
                let chosen = (0..more).map(|_| self.pick(&ROW_COLUMNS)).collect::<Vec<_>>();
                for (expr, column) in must.into_iter().chain(chosen) {
                    exprs.push(format!("{expr} AS c{}", columns.len()));
                    columns.push(column);
                }
                let filter = match self.draw.chance(3) {
                    true => format!(
                        " WHERE {}",
                        self.pick(&["x > 2", "k IS NOT NULL", "k LIKE '%a%'", "g <> 'n'", "f > 0.0"])
                    ),
                    false => String::new(),
                };
                table(&format!("SELECT {} FROM {source}{filter}", exprs.join(", ")), &columns)
            }
        }
    }

    fn filtered(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        let condition = self.condition("t", &of);
        let sql = format!("SELECT {} FROM {} WHERE {condition}", own("t", &of), from(&of, "t"));
        Query { sql, columns: of.columns.clone(), parts: vec![of] }
    }

    fn projected(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        let mut columns = Vec::new();
        let exprs = (0..self.draw.0.random_range(1..4)).map(|_| {
            let (expr, column) = self.expression("t", &of);
            columns.push(column);
            expr
        });
        let exprs = exprs.collect::<Vec<_>>();
        Query { sql: format!("SELECT {} FROM {}", list(&exprs), from(&of, "t")), columns, parts: vec![of] }
    }

    fn joined(&mut self, levels: usize) -> Query {
        let (left, right) = self.two_below(levels);
        let kind = self.pick(&[
            "JOIN",
            "JOIN",
            "LEFT JOIN",
            "LEFT JOIN",
            "RIGHT JOIN",
            "FULL JOIN",
            "FULL JOIN",
            "LEFT SEMI JOIN",
            "RIGHT SEMI JOIN",
            "LEFT ANTI JOIN",
            "RIGHT ANTI JOIN",
        ]);
        let mut on = Vec::new();
        for _ in 0..[1, 1, 1, 2, 0][self.draw.0.random_range(0..5)] {
            if let Some((a, b)) = self.pair(&left, &right) {
                let equal = if self.draw.chance(1) { "IS NOT DISTINCT FROM" } else { "=" };
                on.push(format!("a.c{a} {equal} b.c{b}"));
            }
        }
        if on.is_empty() || self.draw.chance(3) {
            on.push(self.residual(&left, &right));
        }
        let side = |name: &'static str, of: &Query| {
            let columns = of.columns.iter().enumerate();
            columns.map(|(i, column)| (format!("{name}.c{i}"), *column)).collect::<Vec<_>>()
        };
        let mut columns = match kind.starts_with("RIGHT SEMI") || kind.starts_with("RIGHT ANTI") {
            true => side("b", &right),
            false if kind.contains("SEMI") || kind.contains("ANTI") => side("a", &left),
            false => [side("a", &left), side("b", &right)].concat(),
        };
        columns.shuffle(&mut self.draw.0);
        columns.truncate(COLUMNS_MAX);
        let (exprs, columns): (Vec<String>, Vec<Type>) = columns.into_iter().unzip();
        let sql = format!(
            "SELECT {} FROM {} {kind} {} ON {}",
            list(&exprs),
            from(&left, "a"),
            from(&right, "b"),
            on.join(" AND ")
        );
        Query { sql, columns, parts: vec![left, right] }
    }

    /// IN, EXISTS, ANY and ALL, and what is not, alone or beside another condition.
    fn asking(&mut self, levels: usize) -> Query {
        let (of, asked) = (self.below(levels), self.below(levels));
        let Some((a, b)) = self.pair(&of, &asked) else { return of };
        let not = self.pick(&["", "NOT "]);
        let condition = match self.draw.0.random_range(0..7) {
            0 => {
                let by = self.pick(&["= ANY", "> ANY", ">= ALL", "<> ALL"]);
                format!("a.c{a} {by} (SELECT b.c{b} FROM {})", from(&asked, "b"))
            }
            1 | 2 => {
                let filter = match self.draw.chance(3) {
                    true => format!(" WHERE {}", self.condition("b", &asked)),
                    false => String::new(),
                };
                format!("a.c{a} {not}IN (SELECT b.c{b} FROM {}{filter})", from(&asked, "b"))
            }
            3 | 4 => format!("{not}EXISTS (SELECT 1 FROM {} WHERE a.c{a} = b.c{b})", from(&asked, "b")),
            _ => {
                let residual = self.residual(&of, &asked);
                format!(
                    "{not}EXISTS (SELECT 1 FROM {} WHERE a.c{a} = b.c{b} AND {residual})",
                    from(&asked, "b")
                )
            }
        };
        let condition = match self.draw.chance(3) {
            true => format!("{} OR {condition}", self.condition("a", &of)),
            false => condition,
        };
        let sql = format!("SELECT {} FROM {} WHERE {condition}", own("a", &of), from(&of, "a"));
        Query { sql, columns: of.columns.clone(), parts: vec![of, asked] }
    }

    /// A scalar subquery, as a column or in a condition; correlated or not; and a cross join with one row.
    fn with_scalar(&mut self, levels: usize) -> Query {
        let (of, asked) = (self.below(levels), self.below(levels));
        let value = self.any(&asked);
        let (function, column) = self.function("b", &asked, Some(value));
        if self.draw.chance(3) {
            let sql = format!(
                "SELECT {}, o.v AS c{} FROM {} CROSS JOIN (SELECT {function} AS v FROM {}) o",
                own("a", &of),
                of.columns.len(),
                from(&of, "a"),
                from(&asked, "b")
            );
            return Query {
                sql,
                columns: [of.columns.clone(), vec![column]].concat(),
                parts: vec![of, asked],
            };
        }
        let correlated = match self.draw.chance(5) {
            true => self.pair(&of, &asked).map(|(a, b)| format!(" WHERE a.c{a} = b.c{b}")),
            false => None,
        };
        let scalar =
            format!("(SELECT {function} FROM {}{})", from(&asked, "b"), correlated.unwrap_or_default());
        let alike: Vec<usize> = (0..of.columns.len()).filter(|i| of.columns[*i] == column).collect();
        let compared = self.draw.chance(5) && !alike.is_empty();
        if compared {
            let i = self.pick(&alike);
            let by = self.pick(&["=", "<", ">=", "<>"]);
            let sql = format!("SELECT {} FROM {} WHERE a.c{i} {by} {scalar}", own("a", &of), from(&of, "a"));
            return Query { sql, columns: of.columns.clone(), parts: vec![of, asked] };
        }
        let sql =
            format!("SELECT {}, {scalar} AS c{} FROM {}", own("a", &of), of.columns.len(), from(&of, "a"));
        Query { sql, columns: [of.columns.clone(), vec![column]].concat(), parts: vec![of, asked] }
    }

    fn aggregated(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        let mut keys: Vec<usize> = (0..of.columns.len()).filter(|i| of.columns[*i] != Float).collect();
        keys.shuffle(&mut self.draw.0);
        keys.truncate([0, 1, 1, 1, 2][self.draw.0.random_range(0..5)]);
        let mut exprs: Vec<String> = keys.iter().map(|i| format!("t.c{i}")).collect();
        let mut columns: Vec<Type> = keys.iter().map(|i| of.columns[*i]).collect();
        let by = exprs.join(", ");
        let group = match keys.len() {
            0 => String::new(),
            2 if self.draw.chance(3) => match self.draw.0.random_range(0..3) {
                0 => format!(" GROUP BY ROLLUP ({by})"),
                1 => format!(" GROUP BY CUBE ({by})"),
                _ => format!(" GROUP BY GROUPING SETS (({}), ({}))", exprs[0], exprs[1]),
            },
            _ => format!(" GROUP BY {by}"),
        };
        for _ in 0..self.draw.0.random_range(1..4) {
            let (mut function, column) = self.function("t", &of, None);
            let is_call = !function.starts_with("CAST") && !function.starts_with("array_to_string");
            if is_call && self.draw.chance(2) {
                function = format!("{function} FILTER (WHERE {})", self.condition("t", &of));
            }
            exprs.push(function);
            columns.push(column);
        }
        let having = match !keys.is_empty() && self.draw.chance(2) {
            true => format!(" HAVING {}", self.pick(&["COUNT(*) > 1", "COUNT(*) % 2 = 1", "COUNT(*) < 3"])),
            false => String::new(),
        };
        exprs.truncate(COLUMNS_MAX);
        columns.truncate(COLUMNS_MAX);
        let sql = format!("SELECT {} FROM {}{group}{having}", list(&exprs), from(&of, "t"));
        Query { sql, columns, parts: vec![of] }
    }

    fn different(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        if self.draw.chance(5) {
            let first = self.draw.0.random_range(0..of.columns.len().min(2)) + 1;
            let exprs = (0..first).map(|i| format!("t.c{i}")).collect::<Vec<_>>();
            let sql = format!("SELECT DISTINCT {} FROM {}", list(&exprs), from(&of, "t"));
            return Query { sql, columns: of.columns[..first].to_vec(), parts: vec![of] };
        }
        let sql = format!(
            "SELECT DISTINCT ON (t.c0) {} FROM {} ORDER BY t.c0, {}",
            own("t", &of),
            from(&of, "t"),
            self.order("t", &of)
        );
        Query { sql, columns: of.columns.clone(), parts: vec![of] }
    }

    fn first(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        let offset = if self.draw.chance(3) { " OFFSET 1" } else { "" };
        let sql = format!(
            "SELECT {} FROM {} ORDER BY {} LIMIT {}{offset}",
            own("t", &of),
            from(&of, "t"),
            self.order("t", &of),
            self.draw.0.random_range(1..5)
        );
        Query { sql, columns: of.columns.clone(), parts: vec![of] }
    }

    fn numbered(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        let partition = self.partition("t", &of);
        let order = self.order("t", &of);
        let first = order.split(", ").next().unwrap_or_default().to_string();
        let number = match self.draw.0.random_range(0..3) {
            0 => format!("ROW_NUMBER() OVER ({partition}ORDER BY {order})"),
            1 => format!("RANK() OVER ({partition}ORDER BY {first})"),
            _ => format!("DENSE_RANK() OVER ({partition}ORDER BY {first})"),
        };
        let limit = self.pick(&["n <= 2", "n < 2", "n = 1", "n = 2", "2 >= n", "n <= 3 AND n > 1"]);
        let mut exprs: Vec<String> = (0..of.columns.len()).map(|i| format!("u.c{i}")).collect();
        let mut columns = of.columns.clone();
        if self.draw.chance(6) {
            exprs.push("CAST(u.n AS BIGINT)".into());
            columns.push(Int);
        }
        let sql = format!(
            "SELECT {} FROM (SELECT {}, {number} AS n FROM {}) u WHERE {limit}",
            list(&exprs),
            own("t", &of),
            from(&of, "t")
        );
        Query { sql, columns, parts: vec![of] }
    }

    fn windowed(&mut self, levels: usize) -> Query {
        let of = self.below(levels);
        let mut exprs: Vec<String> = (0..of.columns.len()).map(|i| format!("t.c{i}")).collect();
        let mut columns = of.columns.clone();
        for _ in 0..self.draw.0.random_range(1..3) {
            let (partition, order) = (self.partition("t", &of), self.order("t", &of));
            let first = order.split(", ").next().unwrap_or_default().to_string();
            let any = self.any(&of);
            let (value, of_value) = (format!("t.c{any}"), of.columns[any]);
            let (expr, column) = match self.draw.0.random_range(0..8) {
                0 => (format!("CAST(RANK() OVER ({partition}ORDER BY {first}) AS BIGINT)"), Int),
                1 => (format!("CAST(ROW_NUMBER() OVER ({partition}ORDER BY {order}) AS BIGINT)"), Int),
                2 => (format!("COUNT(*) OVER ({})", partition.trim_end()), Int),
                3 => (format!("LAG({value}) OVER ({partition}ORDER BY {order})"), of_value),
                4 => (format!("MAX({value}) OVER ({})", partition.trim_end()), of_value),
                5 => (
                    format!(
                        "COUNT({value}) OVER ({partition}ORDER BY {order} ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)"
                    ),
                    Int,
                ),
                6 => (format!("FIRST_VALUE({value}) OVER ({partition}ORDER BY {order})"), of_value),
                _ => (format!("MIN({value}) OVER ({partition}ORDER BY {first})"), of_value),
            };
            exprs.push(expr);
            columns.push(column);
        }
        Query { sql: format!("SELECT {} FROM {}", list(&exprs), from(&of, "t")), columns, parts: vec![of] }
    }

    /// UNION, INTERSECT and EXCEPT, with and without ALL.
    fn combined(&mut self, levels: usize) -> Query {
        let (left, right) = self.two_below(levels);
        let mut pairs = Vec::new();
        for _ in 0..self.draw.0.random_range(1..3) {
            pairs.extend(self.pair(&left, &right).filter(|(a, _)| left.columns[*a] != Float));
        }
        if pairs.is_empty() {
            return left;
        }
        let how = self.pick(&[
            "UNION ALL",
            "UNION ALL",
            "UNION",
            "UNION",
            "INTERSECT",
            "EXCEPT",
            "EXCEPT",
            "INTERSECT ALL",
            "EXCEPT ALL",
        ]);
        let of = |name: &str, places: &mut dyn Iterator<Item = usize>| {
            list(&places.map(|i| format!("{name}.c{i}")).collect::<Vec<_>>())
        };
        let sql = format!(
            "SELECT {} FROM {} {how} SELECT {} FROM {}",
            of("a", &mut pairs.iter().map(|(a, _)| *a)),
            from(&left, "a"),
            of("b", &mut pairs.iter().map(|(_, b)| *b)),
            from(&right, "b")
        );
        let columns = pairs.iter().map(|(a, _)| left.columns[*a]).collect();
        Query { sql, columns, parts: vec![left, right] }
    }
}

fn table(sql: &str, columns: &[Type]) -> Query {
    Query { sql: sql.into(), columns: columns.to_vec(), parts: Vec::new() }
}

fn from(of: &Query, name: &str) -> String {
    format!("({}) {name}", of.sql)
}

/// Expressions under the names `c0`, `c1`, ….
fn list(exprs: &[String]) -> String {
    exprs.iter().enumerate().map(|(i, expr)| format!("{expr} AS c{i}")).collect::<Vec<_>>().join(", ")
}

/// The columns of the row `name`, under their names.
fn own(name: &str, of: &Query) -> String {
    list(&(0..of.columns.len()).map(|i| format!("{name}.c{i}")).collect::<Vec<_>>())
}
