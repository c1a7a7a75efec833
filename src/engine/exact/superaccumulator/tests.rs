//! Sums of floats of all sizes against another way to add them exactly: by pairs of a float and its rounding error.

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::*;

/// The float nearest to the sum, by partial sums that do not overlap.
fn by_partials(values: &[f64]) -> f64 {
    let mut partials: Vec<f64> = Vec::new();
    for value in values {
        let mut sum = *value;
        let mut kept = Vec::new();
        for partial in partials {
            let (large, small) = if sum.abs() < partial.abs() { (partial, sum) } else { (sum, partial) };
            sum = large + small;
            let error = small - (sum - large);
            if error != 0.0 {
                kept.push(error);
            }
        }
        kept.push(sum);
        partials = kept;
    }
    let Some(mut sum) = partials.pop() else { return 0.0 };
    let mut error = 0.0;
    while let Some(next) = partials.pop() {
        let before = sum;
        sum = before + next;
        error = next - (sum - before);
        if error != 0.0 {
            break;
        }
    }
    // In the middle between two floats what is further below decides.
    if let Some(next) = partials.last()
        && (error < 0.0) == (*next < 0.0)
    {
        let twice = error * 2.0;
        let other = sum + twice;
        if twice == other - sum {
            sum = other;
        }
    }
    sum
}

fn sum_of(values: &[f64]) -> Superaccumulator {
    let mut sum = Superaccumulator::default();
    values.iter().for_each(|value| sum.add(*value, 1));
    sum
}

fn encoded(sum: &Superaccumulator) -> Vec<u8> {
    let mut bytes = Vec::new();
    sum.encode(&mut bytes);
    bytes
}

/// Floats whose exponents are at most so far apart.
fn draw(random: &mut ChaCha8Rng, spread: u64) -> f64 {
    let lowest = random.random_range(0..2000u64.saturating_sub(spread).max(1));
    let exponent = lowest + random.random_range(0..spread);
    let mantissa = match random.random_range(0..4) {
        0 => 0,
        1 => random.random_range(0..4u64) << 50,
        _ => random.random_range(0..1u64 << 52),
    };
    f64::from_bits(u64::from(random.random::<bool>()) << 63 | exponent << 52 | mantissa)
}

fn draw_all(random: &mut ChaCha8Rng) -> Vec<f64> {
    let spread = [1, 4, 40, 200, 2000][random.random_range(0..5)];
    let start = draw(random, 2000).abs();
    let near = |random: &mut ChaCha8Rng| {
        let far = random.random_range(0..spread) - spread / 2;
        let value = start * 2f64.powi(far) * random.random_range(-1.0..1.0);
        if value.is_finite() && value.abs() < 1e300 { value } else { draw(random, 1) }
    };
    let count = random.random_range(0..40);
    let mut values: Vec<f64> = (0..count)
        .map(|_| if random.random_range(0..10) == 0 { draw(random, 2000) } else { near(random) })
        .collect();
    // Some that leave little.
    for i in 0..values.len() {
        if random.random_range(0..3) == 0 {
            values.push(-values[i]);
        }
    }
    values
}

#[test]
fn a_sum_is_rounded_once() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..20_000 {
        let values = draw_all(&mut random);
        let right = by_partials(&values);
        assert_eq!(sum_of(&values).mean(1).to_bits(), (right + 0.0).to_bits(), "{values:?}");
    }
}

#[test]
fn neither_order_nor_what_came_and_went_changes_a_sum() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..5_000 {
        let mut values = draw_all(&mut random);
        let sum = sum_of(&values);
        values.shuffle(&mut random);
        let cut = random.random_range(0..=values.len());
        let others = draw_all(&mut random);
        let mut again = sum_of(&others);
        values[..cut].iter().for_each(|value| again.add(*value, 3));
        let rest = sum_of(&values[cut..]);
        if random.random() {
            again.merge(&rest);
        } else {
            again.merge_encoded(&encoded(&rest));
        }
        let mut restored = Superaccumulator::default();
        restored.merge_encoded(&encoded(&again));
        assert_eq!(encoded(&restored), encoded(&again));
        others.iter().for_each(|value| restored.add(*value, -1));
        values[..cut].iter().for_each(|value| restored.add(*value, -2));
        assert_eq!(encoded(&restored), encoded(&sum), "{values:?} and {others:?}");
        assert_eq!(restored.mean(1).to_bits(), sum.mean(1).to_bits());
        assert_eq!(restored.mean(7).to_bits(), sum.mean(7).to_bits());
        values.iter().for_each(|value| restored.add(*value, -1));
        assert!(restored.is_zero());
    }
}

#[test]
fn what_is_no_number_can_be_taken_back() {
    let mut sum = sum_of(&[1e300, f64::INFINITY]);
    assert_eq!(sum.mean(1), f64::INFINITY);
    sum.add(f64::NEG_INFINITY, 1);
    assert!(sum.mean(1).is_nan());
    let mut restored = Superaccumulator::default();
    restored.merge_encoded(&encoded(&sum));
    restored.add(f64::INFINITY, -1);
    assert_eq!(restored.mean(2), f64::NEG_INFINITY);
    restored.add(f64::NAN, 1);
    assert!(restored.mean(1).is_nan());
    restored.add(f64::NAN, -1);
    restored.add(f64::NEG_INFINITY, -1);
    assert_eq!(restored.mean(1), 1e300);
    assert_eq!(encoded(&restored), encoded(&sum_of(&[1e300])));
}

#[test]
fn the_ends_of_the_floats() {
    let tiny = f64::from_bits(1);
    assert_eq!(sum_of(&[f64::MAX, f64::MAX]).mean(1), f64::INFINITY);
    assert_eq!(sum_of(&[f64::MAX, f64::MAX]).mean(2), f64::MAX);
    assert_eq!(sum_of(&[f64::MAX, f64::MAX, -f64::MAX]).mean(1), f64::MAX);
    assert_eq!(sum_of(&[f64::MIN, tiny]).mean(1), f64::MIN);
    assert_eq!(sum_of(&[tiny; 3]).mean(2), 2.0 * tiny, "of 1 and 2 the even one");
    assert_eq!(sum_of(&[tiny]).mean(2).to_bits(), 0);
    assert_eq!(sum_of(&[-tiny]).mean(3).to_bits(), 0, "no negative zero");
    assert_eq!(sum_of(&[-0.0]).mean(1).to_bits(), 0);
    assert_eq!(sum_of(&[1e16, 1.0, -1e16]).mean(1), 1.0);
    assert_eq!(sum_of(&[0.1; 10]).mean(10), 0.1);
}

#[test]
fn products_are_exact_by_weight() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..5_000 {
        let (x, y) = (draw(&mut random, 2000), draw(&mut random, 2000));
        let weight = random.random_range(-1_000_000_000_000..1_000_000_000_000i64);
        let mut sum = Superaccumulator::default();
        sum.add_product(x, y, weight);
        sum.add_product(-x, y, weight - 1);
        let product = sum.exact(PRODUCT_UNIT);
        assert_eq!(product.divided_by(1).to_bits(), (x * y + 0.0).to_bits(), "{x} {y}");
        sum.add_product(y, x, -1);
        assert!(sum.is_zero());
    }
}
