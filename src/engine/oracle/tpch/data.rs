//! TPC-H's tables with some hundred rows, and how these change. The values are such that each of the queries finds some
//! rows: few dates, nations and kinds of parts, those that the queries ask for among them.

use std::collections::BTreeMap;

use chrono::{Days, NaiveDate};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// A row: a text for each column.
pub type Row = Vec<String>;
/// What a message says: the row that it takes back, and the one that comes.
pub type Change = (Option<Row>, Option<Row>);

const SUPPLIERS: i64 = 12;
const PARTS: i64 = 40;
const CUSTOMERS: i64 = 40;
const ORDERS: i64 = 120;

const REGIONS: [&str; 5] = ["AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE EAST"];
/// Number, name and region.
const NATIONS: [(i64, &str, usize); 8] = [
    (2, "BRAZIL", 1),
    (3, "CANADA", 1),
    (6, "FRANCE", 3),
    (7, "GERMANY", 3),
    (8, "INDIA", 2),
    (14, "KENYA", 0),
    (18, "CHINA", 2),
    (20, "SAUDI ARABIA", 4),
];
const COLORS: [&str; 4] = ["forest", "green", "almond", "ivory"];
const BRANDS: [&str; 4] = ["Brand#12", "Brand#23", "Brand#23", "Brand#45"];
const TYPES: [&str; 5] = [
    "ECONOMY ANODIZED STEEL",
    "STANDARD POLISHED BRASS",
    "LARGE BURNISHED BRASS",
    "PROMO BRUSHED COPPER",
    "MEDIUM POLISHED TIN",
];
const SIZES: [&str; 6] = ["3", "9", "14", "15", "15", "49"];
const CONTAINERS: [&str; 5] = ["SM CASE", "MED BOX", "MED BOX", "LG CASE", "JUMBO JAR"];
const SEGMENTS: [&str; 3] = ["BUILDING", "MACHINERY", "FURNITURE"];
const PRIORITIES: [&str; 5] = ["1-URGENT", "2-HIGH", "3-MEDIUM", "4-NOT SPECIFIED", "5-LOW"];
const INSTRUCTIONS: [&str; 3] = ["DELIVER IN PERSON", "DELIVER IN PERSON", "NONE"];
const MODES: [&str; 5] = ["AIR", "REG AIR", "MAIL", "SHIP", "REG AIR"];
/// When orders are made: first day, and how many days.
const SEASONS: [(&str, u64); 6] = [
    ("1993-07-01", 184),
    ("1994-01-01", 365),
    ("1994-12-01", 104),
    ("1995-06-01", 122),
    ("1995-10-01", 150),
    ("1992-01-01", 2405),
];

/// The rows that are there, by table.
pub struct Data {
    random: ChaCha8Rng,
    pub tables: BTreeMap<&'static str, Vec<Row>>,
}

impl Data {
    /// Every table with its first rows.
    pub fn new(seed: u64) -> Data {
        let mut data = Data { random: ChaCha8Rng::seed_from_u64(seed), tables: BTreeMap::new() };
        let region = |(key, name): (usize, &&str)| vec![key.to_string(), name.to_string(), "none".into()];
        data.tables.insert("region", REGIONS.iter().enumerate().map(region).collect());
        let nation = |(key, name, region): &(i64, &str, usize)| {
            vec![key.to_string(), name.to_string(), region.to_string(), "none".into()]
        };
        data.tables.insert("nation", NATIONS.iter().map(nation).collect());
        let rows = (1..=SUPPLIERS).map(|key| data.supplier(key)).collect();
        data.tables.insert("supplier", rows);
        let rows = (1..=PARTS).map(|key| data.part(key)).collect();
        data.tables.insert("part", rows);
        let of_parts =
            (1..=PARTS).flat_map(|part| (0..4).map(move |i| (part, (part + i * 3) % SUPPLIERS + 1)));
        let rows = of_parts.map(|(part, supplier)| data.partsupp(part, supplier)).collect();
        data.tables.insert("partsupp", rows);
        let rows = (1..=CUSTOMERS).map(|key| data.customer(key)).collect();
        data.tables.insert("customer", rows);
        let orders: Vec<Row> = (1..=ORDERS).map(|key| data.order(key)).collect();
        let mut lines = Vec::new();
        for order in &orders {
            let is_large = data.chance(10);
            let count = if is_large { 7 } else { data.random.random_range(1..=6) };
            lines.extend((1..=count).map(|number| data.line(order, number, is_large)));
        }
        data.tables.insert("orders", orders);
        data.tables.insert("lineitem", lines);
        data
    }

    /// A nation joins another region.
    pub fn move_a_nation(&mut self) {
        let nation = self.random.random_range(0..NATIONS.len());
        let region = self.random.random_range(0..REGIONS.len());
        self.tables.get_mut("nation").expect("a table")[nation][2] = region.to_string();
    }

    /// A row of a table comes, changes or goes.
    pub fn change(&mut self, table: &'static str) -> Change {
        let there = self.tables[table].len();
        let place = self.random.random_range(0..there);
        let before = self.tables[table][place].clone();
        match self.random.random_range(0..10) {
            0..4 => {
                let row = self.new_row(table);
                let same = self.tables[table].iter().position(|other| is_same_key(table, other, &row));
                let rows = self.tables.get_mut(table).expect("a table");
                let before = same.map(|place| rows.swap_remove(place));
                rows.push(row.clone());
                (before, Some(row))
            }
            4..8 => {
                let row = self.changed(table, &before);
                self.tables.get_mut(table).expect("a table")[place] = row.clone();
                (Some(before), Some(row))
            }
            _ => (Some(self.tables.get_mut(table).expect("a table").swap_remove(place)), None),
        }
    }

    /// A row of a key that is not there, or by chance one that is.
    fn new_row(&mut self, table: &str) -> Row {
        let rows = &self.tables[table];
        let next = rows.iter().map(|row| row[0].parse::<i64>().expect("a number")).max().unwrap_or(0) + 1;
        match table {
            "supplier" => self.supplier(next),
            "part" => self.part(next),
            "partsupp" => {
                let part = self.random.random_range(1..=PARTS + 1);
                let supplier = self.random.random_range(1..=SUPPLIERS);
                self.partsupp(part, supplier)
            }
            "customer" => self.customer(next),
            "orders" => self.order(next),
            _ => {
                let order = self.any("orders");
                let number = self.random.random_range(1..=7);
                let is_large = self.chance(30);
                self.line(&order, number, is_large)
            }
        }
    }

    /// Another row of the same key.
    fn changed(&mut self, table: &str, row: &Row) -> Row {
        let key = |column: usize| row[column].parse().expect("a number");
        match table {
            "supplier" => self.supplier(key(0)),
            "part" => self.part(key(0)),
            "partsupp" => self.partsupp(key(0), key(1)),
            "customer" => self.customer(key(0)),
            "orders" => self.order(key(0)),
            _ => {
                let order = self.tables["orders"].iter().find(|order| order[0] == row[0]).cloned();
                // The order may have gone.
                let order = order.unwrap_or_else(|| self.order(key(0)));
                self.line(&order, key(3), false)
            }
        }
    }

    fn supplier(&mut self, key: i64) -> Row {
        let comment = if self.chance(20) { "Customer was heard, Complaints were many" } else { "quick" };
        let (nation, phone) = self.nation_and_phone(key);
        let name = format!("Supplier#{key:09}");
        let street = self.number(1, 99);
        vec![key.to_string(), name, street, nation, phone, self.money(-999, 9999), comment.into()]
    }

    fn part(&mut self, key: i64) -> Row {
        let (first, second) = (self.one(&COLORS), self.one(&COLORS));
        let brand = self.one(&BRANDS);
        vec![
            key.to_string(),
            format!("{first} {second}"),
            format!("Manufacturer#{}", &brand[6..7]),
            brand,
            self.one(&TYPES),
            self.one(&SIZES),
            self.one(&CONTAINERS),
            self.money(900, 2000),
            "sleeps".into(),
        ]
    }

    fn partsupp(&mut self, part: i64, supplier: i64) -> Row {
        let (available, cost) = (self.number(1, 200), self.money(1, 40));
        vec![part.to_string(), supplier.to_string(), available, cost, "even".into()]
    }

    fn customer(&mut self, key: i64) -> Row {
        let (nation, phone) = self.nation_and_phone(key);
        let name = format!("Customer#{key:09}");
        let (street, balance) = (self.number(1, 99), self.money(-999, 9999));
        vec![key.to_string(), name, street, nation, phone, balance, self.one(&SEGMENTS), "bold".into()]
    }

    /// A third of the customers order nothing.
    fn order(&mut self, key: i64) -> Row {
        let customer = self.random.random_range(0..CUSTOMERS * 2 / 3) * 3 / 2 + 1;
        let (first, days) = SEASONS[self.random.random_range(0..SEASONS.len())];
        let date = day(first) + Days::new(self.random.random_range(0..days));
        let status = if date < day("1995-03-01") {
            "F"
        } else if date < day("1995-06-17") {
            "P"
        } else {
            "O"
        };
        let comment = if self.chance(15) { "some special and slow requests" } else { "silent" };
        let (price, clerk) = (self.money(1000, 400_000), format!("Clerk#{}", self.number(1, 5)));
        let priority = self.one(&PRIORITIES);
        vec![
            key.to_string(),
            customer.to_string(),
            status.into(),
            price,
            date.to_string(),
            priority,
            clerk,
            "0".into(),
            comment.into(),
        ]
    }

    fn line(&mut self, order: &Row, number: i64, is_large: bool) -> Row {
        let ordered = day(&order[4]);
        let of_part = self.any("partsupp");
        let quantity = match is_large {
            true => self.random.random_range(43..=50),
            false if self.chance(30) => self.random.random_range(1..=3),
            false => self.random.random_range(1..=50),
        };
        let price_cents = quantity * self.random.random_range(90_000..200_000);
        let mut after =
            |from: NaiveDate, days: (u64, u64)| from + Days::new(self.random.random_range(days.0..=days.1));
        let shipped = after(ordered, (1, 121));
        let (committed, received) = (after(ordered, (60, 120)), after(shipped, (1, 30)));
        let today = day("1995-06-17");
        let returned = if received > today { "N" } else { self.one_of(&["R", "A"]) };
        let discount = format!("0.{:02}", self.random.random_range(0..=10));
        let tax = format!("0.{:02}", self.random.random_range(0..=8));
        vec![
            order[0].clone(),
            of_part[0].clone(),
            of_part[1].clone(),
            number.to_string(),
            quantity.to_string(),
            cents(price_cents),
            discount,
            tax,
            returned.into(),
            if shipped > today { "O" } else { "F" }.into(),
            shipped.to_string(),
            committed.to_string(),
            received.to_string(),
            self.one(&INSTRUCTIONS),
            self.one(&MODES),
            "fluffy".into(),
        ]
    }

    fn nation_and_phone(&mut self, key: i64) -> (String, String) {
        // Mostly one that goes with the key, so that all nations have some.
        let any = self.random.random_range(0..NATIONS.len());
        let nation = if self.chance(80) { key.unsigned_abs() as usize % NATIONS.len() } else { any };
        let (nation, ..) = NATIONS[nation];
        (nation.to_string(), format!("{}-{}", nation + 10, self.number(100, 999)))
    }

    fn any(&mut self, table: &str) -> Row {
        let rows = &self.tables[table];
        rows[self.random.random_range(0..rows.len())].clone()
    }

    fn one(&mut self, of: &[&'static str]) -> String {
        self.one_of(of).to_string()
    }

    fn one_of(&mut self, of: &[&'static str]) -> &'static str {
        of[self.random.random_range(0..of.len())]
    }

    fn number(&mut self, least: i64, most: i64) -> String {
        self.random.random_range(least..=most).to_string()
    }

    fn money(&mut self, least: i64, most: i64) -> String {
        cents(self.random.random_range(least * 100..=most * 100))
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }
}

/// Whether two rows have one key; those of a table without a key are told apart by all columns.
fn is_same_key(table: &str, one: &Row, other: &Row) -> bool {
    match table {
        "partsupp" => false,
        "lineitem" => one[0] == other[0] && one[3] == other[3],
        _ => one[0] == other[0],
    }
}

fn day(text: &str) -> NaiveDate {
    text.parse().expect("a day")
}

fn cents(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}
