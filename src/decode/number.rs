//! Numbers from their digits: a float in between would lose some.

use std::str::FromStr;

use arrow::datatypes::DecimalType;

/// More places than any decimal has.
const DIGITS_MAX: i64 = 100;

/// The integer that a JSON number is: `7`, `7.0` and `70e-1` are, `7.5` and `"7"` are not.
pub fn integer<N: FromStr>(number: &str) -> Option<N> {
    number.parse().ok().or_else(|| shift(number, 0)?.parse().ok())
}

/// The nearest float, if it is finite.
pub fn float(number: &str) -> Option<f64> {
    number.parse().ok().filter(|float: &f64| float.is_finite())
}

/// As `float`, rounded once.
pub fn float32(number: &str) -> Option<f32> {
    number.parse().ok().filter(|float: &f32| float.is_finite())
}

/// The decimal of `scale` places that a number is, if it has no more digits than `precision`.
pub fn decimal<T: DecimalType<Native: FromStr>>(number: &str, precision: u8, scale: i8) -> Option<T::Native> {
    let value = shift(number, scale.into())?.parse().ok()?;
    T::validate_decimal_precision(value, precision, scale).ok().map(|()| value)
}

/// The whole number of units of `10^-places` that a number is, if it is one.
pub fn units(number: &str, places: u32) -> Option<i128> {
    shift(number, places.into())?.parse().ok()
}

/// `number` with its point `places` further right, if it has no digits behind it then.
fn shift(number: &str, places: i64) -> Option<String> {
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |number| ("-", number));
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let point = whole.len() as i64 + i64::from(exponent) + places;
    digits.truncate(digits.trim_end_matches('0').len());
    let zeros = point - digits.len() as i64;
    let digits = digits.trim_start_matches('0');
    match zeros {
        _ if digits.is_empty() => Some("0".into()),
        0..=DIGITS_MAX => Some(format!("{sign}{digits}{}", "0".repeat(zeros as usize))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Decimal128Type, Decimal256Type};

    #[test]
    fn a_number_is_taken_by_its_digits_or_not_at_all() {
        for (number, value) in [("7", 7), ("-7.00", -7), ("70e-1", 7), ("1.25e2", 125), ("-0", 0), ("0e9", 0)]
        {
            assert_eq!(integer::<i64>(number), Some(value), "{number}");
        }
        assert_eq!(integer::<u64>("18446744073709551615.0"), Some(u64::MAX));
        assert_eq!(integer::<i8>("128"), None);
        for number in ["7.5", "1e-1", "1e99999", "1e99999999999", "\"7\"", "true", ".", ""] {
            assert_eq!(integer::<i64>(number), None, "{number}");
        }
        assert_eq!(float32("16777217.0000001"), Some(16777218.0), "rounded once");
        assert_eq!((float("1e400"), float32("1e39")), (None, None));
    }

    #[test]
    fn a_decimal_has_all_digits_of_its_number() {
        let decimal = |number| decimal::<Decimal128Type>(number, 5, 2);
        assert_eq!(decimal("123.45"), Some(12345));
        assert_eq!(decimal("-0.5"), Some(-50));
        assert_eq!(decimal("1.23456e2"), None, "it would lose its last digit");
        assert_eq!(decimal("1.234500e2"), Some(12345));
        assert_eq!(decimal("12345e-2"), Some(12345));
        assert_eq!(decimal("1000"), None);
        assert_eq!(decimal(&"9".repeat(260)), None);
        let large = "9".repeat(76);
        assert_eq!(super::decimal::<Decimal256Type>(&large, 76, 0).map(|v| v.to_string()), Some(large));
    }
}
