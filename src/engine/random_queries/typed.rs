//! Draws expressions over the columns of a query, by their types.

use rand::prelude::*;

use super::stacks::Type::{Decimal, Float, Int, Text, Time};
use super::stacks::{Query, Stacks, Type};

impl Stacks<'_> {
    /// The position of any column.
    pub fn any(&mut self, of: &Query) -> usize {
        self.draw.0.random_range(0..of.columns.len())
    }

    /// Two columns of one type.
    pub fn pair(&mut self, left: &Query, right: &Query) -> Option<(usize, usize)> {
        let all = (0..left.columns.len()).flat_map(|a| (0..right.columns.len()).map(move |b| (a, b)));
        let alike: Vec<_> = all.filter(|(a, b)| left.columns[*a] == right.columns[*b]).collect();
        alike.choose(&mut self.draw.0).copied()
    }

    /// A condition over the rows `a` and `b`.
    pub fn residual(&mut self, left: &Query, right: &Query) -> String {
        match self.pair(left, right) {
            Some((a, b)) if self.draw.chance(7) => {
                format!("a.c{a} {} b.c{b}", self.pick(&["<", ">=", "<>"]))
            }
            _ if self.draw.chance(5) => self.condition("a", left),
            _ => self.condition("b", right),
        }
    }

    /// A condition over the row `name`.
    pub fn condition(&mut self, name: &str, of: &Query) -> String {
        let any = self.any(of);
        let column = format!("{name}.c{any}");
        if self.draw.chance_of(1, 6) {
            return format!("{column} IS {}NULL", self.pick(&["", "NOT "]));
        }
        let condition = match of.columns[any] {
            Int => self.pick(&["> 1", "< 3", "% 2 = 0", "= 2", "<> 1", "BETWEEN 0 AND 5"]),
            Text => self.pick(&["= 'a'", "<> 'b'", "LIKE '%a%'", "IN ('a', 'b', 'n')"]),
            Float => self.pick(&["> 1.0", "<= 3.5"]),
            Decimal => self.pick(&["> 1.00", "= 0.00"]),
            Time => self.pick(&["> TIMESTAMP '2024-01-01 10:00:00'", "IS NOT NULL"]),
        };
        format!("{column} {condition}")
    }

    pub fn expression(&mut self, name: &str, of: &Query) -> (String, Type) {
        let any = self.any(of);
        let column = format!("{name}.c{any}");
        match (of.columns[any], self.draw.0.random_range(0..4)) {
            (Int, 0) => (format!("{column} * 2 - 1"), Int),
            (Int, 1) => (format!("CAST({column} AS VARCHAR)"), Text),
            (Int, 2) => (format!("COALESCE({column}, 0) % 3"), Int),
            (Int, 3) => {
                let condition = self.condition(name, of);
                (format!("CASE WHEN {condition} THEN {column} END"), Int)
            }
            (Text, 0) => (format!("COALESCE({column}, '?')"), Text),
            (Text, 1) => (format!("length({column})"), Int),
            (Text, 2) => (format!("{column} || 'b'"), Text),
            (Float, 0) => (format!("{column} / 2"), Float),
            (Time, 0) => (format!("date_trunc('minute', {column})"), Time),
            (kind, _) => (column, kind),
        }
    }

    /// An aggregate function of the rows `name`, maybe of a certain column.
    pub fn function(&mut self, name: &str, of: &Query, column: Option<usize>) -> (String, Type) {
        let any = column.unwrap_or_else(|| self.any(of));
        let (value, order) = (format!("{name}.c{any}"), self.order(name, of));
        match (of.columns[any], self.draw.0.random_range(0..10)) {
            (_, 0) => ("COUNT(*)".into(), Int),
            (_, 1) => (format!("COUNT({value})"), Int),
            (Int | Text | Time, 2) => (format!("COUNT(DISTINCT {value})"), Int),
            (kind, 3) => (format!("MIN({value})"), kind),
            (kind, 4) => (format!("MAX({value})"), kind),
            (kind, 5) => (format!("FIRST_VALUE({value} ORDER BY {order})"), kind),
            (Int, 6) => (format!("AVG({value})"), Float),
            (Int, 7) => (format!("BIT_XOR({value})"), Int),
            (Int, _) => (format!("SUM({value})"), Int),
            (Float, 6) => (format!("AVG({value})"), Float),
            (Float, 7) => (format!("STDDEV_POP({value})"), Float),
            (Float, _) => (format!("SUM({value})"), Float),
            (Decimal, 6..=9) => (format!("SUM({value})"), Decimal),
            (Text, 6 | 7) => (format!("STRING_AGG({value}, ',' ORDER BY {value})"), Text),
            (Text, 8) => (format!("array_to_string(ARRAY_AGG({value} ORDER BY {value} DESC), ',')"), Text),
            (_, 9) => (format!("CAST(BOOL_OR({value} IS NULL) AS INT)"), Int),
            (kind, _) => (format!("MAX({value})"), kind),
        }
    }

    /// An order of all columns, in which no two different rows are at one place.
    pub fn order(&mut self, name: &str, of: &Query) -> String {
        let mut columns: Vec<usize> = (0..of.columns.len()).collect();
        columns.shuffle(&mut self.draw.0);
        let by = columns.into_iter().map(|i| {
            let how = self.pick(&["", "", " DESC", " DESC NULLS LAST", " NULLS FIRST"]);
            format!("{name}.c{i}{how}")
        });
        by.collect::<Vec<_>>().join(", ")
    }

    /// `PARTITION BY …`, or nothing.
    pub fn partition(&mut self, name: &str, of: &Query) -> String {
        let keys: Vec<usize> = (0..of.columns.len()).filter(|i| of.columns[*i] != Float).collect();
        match keys.choose(&mut self.draw.0) {
            Some(key) if self.draw.chance(8) => format!("PARTITION BY {name}.c{key} "),
            _ => String::new(),
        }
    }
}
