//! Integers of any length times a power of two: what becomes of exact sums before they are rounded, once.

use std::cmp::Ordering;

const FLOAT_BITS: i32 = 53;
const LOWEST: i32 = -1074;

/// ± `limbs` · 2 to the `exponent`.
#[derive(Clone, Debug)]
pub struct Dyadic {
    negative: bool,
    /// Lowest first, and none above that is 0.
    limbs: Vec<u64>,
    exponent: i32,
}

impl Dyadic {
    /// ± `limbs`, lowest first, times 2 to the `exponent`.
    pub fn new(negative: bool, mut limbs: Vec<u64>, exponent: i32) -> Self {
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        Dyadic { negative, limbs, exponent }
    }

    /// Their product.
    pub fn times(&self, other: &Dyadic) -> Dyadic {
        let mut limbs = vec![0; self.limbs.len() + other.limbs.len()];
        for (i, a) in self.limbs.iter().enumerate() {
            let mut carry = 0;
            for (j, b) in other.limbs.iter().enumerate() {
                let sum = u128::from(*a) * u128::from(*b) + u128::from(limbs[i + j]) + u128::from(carry);
                (limbs[i + j], carry) = (sum as u64, (sum >> 64) as u64);
            }
            limbs[i + other.limbs.len()] = carry;
        }
        Dyadic::new(self.negative != other.negative, limbs, self.exponent + other.exponent)
    }

    /// It so many times.
    pub fn times_integer(&self, count: u64) -> Dyadic {
        self.times(&Dyadic::new(false, vec![count], 0))
    }

    /// Their difference.
    pub fn minus(&self, other: &Dyadic) -> Dyadic {
        let exponent = self.exponent.min(other.exponent);
        let (mut a, mut b) = (self.at(exponent), other.at(exponent));
        if self.negative != other.negative {
            return Dyadic::new(self.negative, add(a, &b), exponent);
        }
        let mut negative = self.negative;
        if compare(&a, &b) == Ordering::Less {
            (a, b) = (b, a);
            negative = !negative;
        }
        Dyadic::new(negative, subtract(a, &b), exponent)
    }

    /// The float nearest to it divided by `count`.
    pub fn divided_by(&self, count: u64) -> f64 {
        // Two limbs more below: the quotient has more bits than a float.
        const BELOW: usize = 2;
        let mut limbs = vec![0; BELOW];
        limbs.extend(&self.limbs);
        let mut rest = 0;
        for limb in limbs.iter_mut().rev() {
            let part = u128::from(rest) << 64 | u128::from(*limb);
            (*limb, rest) = ((part / u128::from(count)) as u64, (part % u128::from(count)) as u64);
        }
        let quotient = Dyadic::new(self.negative, limbs, self.exponent - 64 * BELOW as i32);
        let (magnitude, exponent, below) = quotient.highest();
        nearest(self.negative, magnitude, exponent, below || rest != 0)
    }

    /// The float nearest to it, between 1 and 2 in size, and the power of two to be multiplied with.
    pub fn scaled(&self) -> Scaled {
        let (magnitude, exponent, below) = self.highest();
        if magnitude == 0 {
            return Scaled { mantissa: 0.0, exponent: 0 };
        }
        let bits = 127 - magnitude.leading_zeros() as i32;
        Scaled { mantissa: nearest(self.negative, magnitude, -bits, below), exponent: exponent + bits }
    }

    /// Its highest 65 to 128 bits, the power of two of the lowest of them, and whether there is a bit below.
    fn highest(&self) -> (u128, i32, bool) {
        let from = self.limbs.len().saturating_sub(2);
        let limb = |i: usize| u128::from(self.limbs.get(from + i).copied().unwrap_or(0));
        let below = self.limbs[..from].iter().any(|limb| *limb != 0);
        (limb(1) << 64 | limb(0), self.exponent + 64 * from as i32, below)
    }

    /// Its limbs if its exponent were that smaller one.
    fn at(&self, exponent: i32) -> Vec<u64> {
        let by = (self.exponent - exponent) as u32;
        let mut limbs = vec![0; by as usize / 64];
        let bit = by % 64;
        let mut carry = 0;
        for limb in &self.limbs {
            let shifted = u128::from(*limb) << bit;
            limbs.push(shifted as u64 | carry);
            carry = (shifted >> 64) as u64;
        }
        limbs.push(carry);
        limbs
    }
}

/// A float times a power of two, so that nothing is too large or too small on the way.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    mantissa: f64,
    exponent: i32,
}

impl Scaled {
    /// No number.
    pub const NAN: Scaled = Scaled { mantissa: f64::NAN, exponent: 0 };

    /// Whether it is 0.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0.0
    }

    /// Their product.
    pub fn times(self, other: Scaled) -> Scaled {
        Scaled { mantissa: self.mantissa * other.mantissa, exponent: self.exponent + other.exponent }
    }

    /// Their quotient.
    pub fn over(self, other: Scaled) -> Scaled {
        Scaled { mantissa: self.mantissa / other.mantissa, exponent: self.exponent - other.exponent }
    }

    /// It divided by a number that is not too large.
    pub fn over_float(self, other: f64) -> Scaled {
        Scaled { mantissa: self.mantissa / other, exponent: self.exponent }
    }

    /// Its square root.
    pub fn root(self) -> Scaled {
        let odd = self.exponent.rem_euclid(2);
        let mantissa = if odd == 0 { self.mantissa } else { self.mantissa * 2.0 };
        Scaled { mantissa: mantissa.sqrt(), exponent: (self.exponent - odd) / 2 }
    }

    /// The float.
    pub fn value(self) -> f64 {
        const STEP: i32 = 1000;
        let power = |exponent: i32| f64::from_bits(((exponent + 1023) as u64) << 52);
        let (mut value, mut exponent) = (self.mantissa, self.exponent);
        while exponent.abs() > STEP && value != 0.0 && value.is_finite() {
            value *= power(STEP * exponent.signum());
            exponent -= STEP * exponent.signum();
        }
        value * power(exponent.clamp(-STEP, STEP))
    }
}

/// The float nearest to ± `magnitude` · 2 to the `exponent`, divided by `count`.
pub fn quotient(negative: bool, magnitude: u128, exponent: i32, count: u64) -> f64 {
    if count == 1 || magnitude == 0 {
        return nearest(negative, magnitude, exponent, false);
    }
    let up = magnitude.leading_zeros();
    let (shifted, count) = (magnitude << up, u128::from(count));
    nearest(negative, shifted / count, exponent - up as i32, !shifted.is_multiple_of(count))
}

/// The float nearest to ± `magnitude` · 2 to the `exponent`; `below`: a little more than that. Of two equally near ones the even.
fn nearest(negative: bool, magnitude: u128, exponent: i32, below: bool) -> f64 {
    if magnitude == 0 {
        return 0.0;
    }
    let bits = 128 - magnitude.leading_zeros() as i32;
    let lowest = (exponent + bits - FLOAT_BITS).max(LOWEST);
    let dropped = lowest - exponent;
    let mantissa = if dropped <= 0 {
        (magnitude << -dropped) as u64
    } else if dropped > bits {
        0
    } else {
        let kept = magnitude.checked_shr(dropped as u32).unwrap_or(0) as u64;
        let half = 1 << (dropped - 1);
        let rest = magnitude & (half | (half - 1));
        let up = rest > half || rest == half && (below || kept & 1 == 1);
        kept + u64::from(up)
    };
    let sign = u64::from(negative) << 63;
    let biased = (lowest - LOWEST) as u64;
    // A mantissa that was rounded up to one bit more carries over into the exponent.
    let float = if biased > 2045 { f64::INFINITY.to_bits() } else { (biased << 52) + mantissa };
    let value = f64::from_bits(float | sign);
    if value == 0.0 { 0.0 } else { value }
}

fn add(mut a: Vec<u64>, b: &[u64]) -> Vec<u64> {
    a.resize(a.len().max(b.len()) + 1, 0);
    let mut carry = false;
    for (i, limb) in a.iter_mut().enumerate() {
        let (sum, first) = limb.overflowing_add(b.get(i).copied().unwrap_or(0));
        let (sum, second) = sum.overflowing_add(u64::from(carry));
        (*limb, carry) = (sum, first | second);
    }
    a
}

/// `a` is not less than `b`.
fn subtract(mut a: Vec<u64>, b: &[u64]) -> Vec<u64> {
    let mut borrow = false;
    for (i, limb) in a.iter_mut().enumerate() {
        let (rest, first) = limb.overflowing_sub(b.get(i).copied().unwrap_or(0));
        let (rest, second) = rest.overflowing_sub(u64::from(borrow));
        (*limb, borrow) = (rest, first | second);
    }
    a
}

fn compare(a: &[u64], b: &[u64]) -> Ordering {
    let limb = |limbs: &[u64], i: usize| limbs.get(i).copied().unwrap_or(0);
    let highest = (0..a.len().max(b.len())).rev();
    highest.map(|i| limb(a, i).cmp(&limb(b, i))).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}
