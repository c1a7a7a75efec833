//! Expressions over a row `e` of `events`, to be drawn.

/// Integers of a row; none fails, whatever the row has.
pub const INTEGERS: [&str; 12] = [
    "e.x",
    "e.x",
    "e.x",
    "e.i",
    "e.u",
    "e.id - e.x",
    "e.x * 2 + 1",
    "e.x / NULLIF(e.i, 0)",
    "e.x % NULLIF(e.i, 0)",
    "TRY_CAST(e.s AS BIGINT)",
    "CAST(e.d AS BIGINT)",
    "CAST(e.at AS BIGINT) / 1000000000",
];
/// Integers that some rows have none of: a row is then in no view that asks for them.
pub const FAILING: [&str; 5] =
    ["e.x / e.i", "e.x % e.u", "CAST(e.s AS BIGINT)", "CAST(e.x AS TINYINT UNSIGNED)", "CAST(e.f AS INT)"];
/// Other values of a row.
pub const VALUES: [&str; 12] = [
    "e.f",
    "e.f / 2",
    "CAST(e.x AS DOUBLE)",
    "e.d",
    "e.d * 2",
    "e.at",
    "e.z",
    "e.day",
    "e.k",
    "e.s",
    "CAST(e.x AS VARCHAR)",
    "CAST(e.at AS DATE)",
];
pub const KEYS: [&str; 22] = [
    "e.k",
    "e.k",
    "e.g",
    "e.x % 3",
    "e.i",
    "e.u",
    "e.f",
    "e.d",
    "e.day",
    "e.k IS NULL",
    "CAST(e.x AS VARCHAR)",
    "TRY_CAST(e.s AS INT)",
    "date_bin(INTERVAL '1 minute', e.at)",
    "date_bin(INTERVAL '1 minute', e.at)",
    "date_trunc('minute', e.at)",
    "date_trunc('hour', e.z)",
    "CAST(e.at AS DATE)",
    "e.at",
    "date_bin(INTERVAL '20 seconds', e.at) + INTERVAL '1 hour'",
    "date_bin(INTERVAL '1 hour', CAST(e.at AS DATE))",
    "e.at AT TIME ZONE 'Europe/Berlin'",
    "date_bin(INTERVAL '30 seconds', CAST(e.at AS TIMESTAMP(0)))",
];
pub const FILTERS: [&str; 12] = [
    "e.x > 2",
    "e.k IS NOT NULL",
    "e.k LIKE '%a%'",
    "e.x IN (1, 2, 3, 5)",
    "e.x % 2 = 0 OR e.k = 'b'",
    "e.x BETWEEN 0 AND 6",
    "e.x > (SELECT MIN(size) FROM sizes)",
    "NOT (e.g = 'n')",
    "e.f = 0.0",
    "e.f > 3.0",
    "CAST(e.at AS DATE) = DATE '2024-01-01'",
    "e.k = 'a' OR e.k = 'b'",
];
