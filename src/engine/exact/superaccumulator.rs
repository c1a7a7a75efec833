//! Sums of floats that are not rounded: an integer times a power of two, as long as it must be (a superaccumulator,
//! as Kulisch has it). Its order does not matter, and what was added can be taken back.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, LargeBinaryBuilder};
use datafusion::error::Result;

use super::dyadic::{Dyadic, quotient};
use crate::checkpoint::bytes;

#[cfg(test)]
mod tests;

/// The bit of 1.0 in a sum of floats: the smallest float is 2⁻¹⁰⁷⁴.
pub const UNIT: i32 = 1074;
/// The same in a sum of products of two.
pub const PRODUCT_UNIT: i32 = 2 * UNIT;

const MANTISSA_BITS: u32 = 52;
const EXPONENT_MAX: u64 = 0x7ff;
/// In the head of an encoding, beside the base: numbers of NaN and infinities follow.
const HAS_SPECIALS: u16 = 1 << 15;

/// A sum of floats, or of products of two floats.
#[derive(Clone, Debug, Default)]
pub struct Superaccumulator {
    /// The sum, if it is not wide, divided by 2 to the `base`: halves of an `i128`, which would be aligned to 16 bytes.
    halves: [u64; 2],
    base: u16,
    wide: Option<Box<Wide>>,
}

/// A sum that does not fit into 128 bits, or has values that are no numbers.
#[derive(Clone, Debug, Default)]
struct Wide {
    /// The place of the first limb: it counts 2 to the 64 · `first`.
    first: usize,
    /// Two's complement, lowest first; the last is the sign only.
    limbs: Vec<u64>,
    specials: Specials,
}

/// How many values are no numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Specials {
    nan: i64,
    infinity: i64,
    negative_infinity: i64,
}

/// Sums as a column of bytes, for a checkpoint.
pub fn to_column<'a>(sums: impl IntoIterator<Item = &'a Superaccumulator>) -> ArrayRef {
    let (mut column, mut bytes) = (LargeBinaryBuilder::new(), Vec::new());
    for sum in sums {
        bytes.clear();
        sum.encode(&mut bytes);
        column.append_value(&bytes);
    }
    Arc::new(column.finish())
}

/// The sums of such a column.
pub fn of_column(column: &ArrayRef) -> Result<Vec<Superaccumulator>> {
    let column = bytes(column)?;
    let sum = |row: usize| {
        let mut sum = Superaccumulator::default();
        sum.merge_encoded(column.value(row));
        sum
    };
    Ok((0..column.len()).map(sum).collect())
}

impl Superaccumulator {
    /// Adds `value` so many times; takes it back where that is negative.
    #[inline]
    pub fn add(&mut self, value: f64, weight: i64) {
        let (mantissa, position, finite) = parts(value);
        if !finite {
            return self.add_special(value, weight);
        }
        self.add_integer(i128::from(mantissa).wrapping_mul(i128::from(weight)), position);
    }

    /// Adds the product of two numbers so many times, none of which is NaN or infinite.
    pub fn add_product(&mut self, x: f64, y: f64, weight: i64) {
        let ((x, x_position, _), (y, y_position, _)) = (parts(x), parts(y));
        let product = i128::from(x) * i128::from(y);
        let position = x_position + y_position;
        // A product has 106 bits: the weight goes in parts, of which each leaves room.
        const PART: u32 = 16;
        let (sign, mut weight, mut shift) = (weight.signum(), weight.unsigned_abs(), 0);
        while weight > 0 {
            let part = (weight & ((1 << PART) - 1)) as i64 * sign;
            self.add_integer(product * i128::from(part), position + shift);
            weight >>= PART;
            shift += PART as u16;
        }
    }

    /// Adds another sum.
    #[cfg(test)]
    pub fn merge(&mut self, other: &Superaccumulator) {
        match &other.wide {
            None => self.add_integer(other.narrow(), other.base),
            Some(wide) => {
                self.add_specials(wide.specials);
                let Some((sign, limbs)) = wide.limbs.split_last() else { return };
                for (i, limb) in limbs.iter().enumerate() {
                    self.add_integer(i128::from(*limb), place(wide.first + i));
                }
                self.add_integer(i128::from(*sign as i64), place(wide.first + limbs.len()));
            }
        }
    }

    /// NaN or an infinity, if that is the sum.
    pub fn special(&self) -> Option<f64> {
        let specials = self.wide.as_ref()?.specials;
        match (specials.nan, specials.infinity, specials.negative_infinity) {
            (0, 0, 0) => None,
            (0, _, 0) => Some(f64::INFINITY),
            (0, 0, _) => Some(f64::NEG_INFINITY),
            _ => Some(f64::NAN),
        }
    }

    /// The sum of what are numbers, exactly; `unit` is the bit of 1.0.
    pub fn exact(&self, unit: i32) -> Dyadic {
        match &self.wide {
            None => {
                let magnitude = self.narrow().unsigned_abs();
                let limbs = vec![magnitude as u64, (magnitude >> 64) as u64];
                Dyadic::new(self.narrow() < 0, limbs, i32::from(self.base) - unit)
            }
            Some(wide) => {
                let negative = wide.is_negative();
                let mut limbs = wide.limbs.clone();
                if negative {
                    negate(&mut limbs);
                }
                Dyadic::new(negative, limbs, 64 * wide.first as i32 - unit)
            }
        }
    }

    /// The float nearest to the sum of floats divided by `count`.
    pub fn mean(&self, count: u64) -> f64 {
        if let Some(special) = self.special() {
            return special;
        }
        match &self.wide {
            None => {
                quotient(self.narrow() < 0, self.narrow().unsigned_abs(), i32::from(self.base) - UNIT, count)
            }
            Some(_) => self.exact(UNIT).divided_by(count),
        }
    }

    /// Appends the sum to `bytes`: the same sum is always the same bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match &self.wide {
            None => encode_narrow(self.narrow(), self.base, None, bytes),
            Some(wide) => wide.encode(bytes),
        }
    }

    /// Adds the sum that `encode` wrote.
    pub fn merge_encoded(&mut self, bytes: &[u8]) {
        let Some((head, mut bytes)) = bytes.split_first_chunk::<2>() else { return };
        let head = u16::from_le_bytes(*head);
        if head & HAS_SPECIALS != 0 {
            let mut next = || {
                let (count, rest) = bytes.split_first_chunk::<8>().expect("invariant: three counts");
                bytes = rest;
                i64::from_le_bytes(*count)
            };
            let specials = Specials { nan: next(), infinity: next(), negative_infinity: next() };
            self.add_specials(specials);
        }
        let base = head & !HAS_SPECIALS;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        if bytes.len() <= 16 {
            let mut all = [if negative { 0xff } else { 0 }; 16];
            all[..bytes.len()].copy_from_slice(bytes);
            return self.add_integer(i128::from_le_bytes(all), base);
        }
        let last = (bytes.len() - 1) / 8;
        for (i, limb) in bytes.chunks(8).enumerate() {
            let negative = negative && i == last;
            let mut all = [if negative { 0xff } else { 0 }; 8];
            all[..limb.len()].copy_from_slice(limb);
            let limb = u64::from_le_bytes(all);
            let signed = if i == last { i128::from(limb as i64) } else { i128::from(limb) };
            self.add_integer(signed, base + place(i));
        }
    }

    /// Whether it is 0, and nothing that is no number is in it.
    #[cfg(test)]
    pub fn is_zero(&self) -> bool {
        match &self.wide {
            None => self.halves == [0, 0],
            Some(wide) => wide.specials == Specials::default() && wide.limbs.iter().all(|limb| *limb == 0),
        }
    }

    /// Bytes held beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.wide.as_ref().map_or(0, |wide| size_of::<Wide>() + wide.limbs.capacity() * size_of::<u64>())
    }

    #[inline]
    fn narrow(&self) -> i128 {
        (u128::from(self.halves[1]) << 64 | u128::from(self.halves[0])) as i128
    }

    #[inline]
    fn set_narrow(&mut self, sum: i128, base: u16) {
        self.halves = [sum as u64, (sum >> 64) as u64];
        self.base = base;
    }

    /// Adds `integer` times 2 to the `position`.
    #[inline]
    fn add_integer(&mut self, integer: i128, position: u16) {
        if self.wide.is_none()
            && position >= self.base
            && let Some(shifted) = shifted(integer, u32::from(position - self.base))
            && let Some(sum) = self.narrow().checked_add(shifted)
        {
            let base = self.base;
            return self.set_narrow(sum, base);
        }
        if integer != 0 {
            self.add_far(integer, position);
        }
    }

    #[cold]
    fn add_far(&mut self, integer: i128, position: u16) {
        let (sum, base) = (self.narrow(), self.base);
        match &mut self.wide {
            Some(wide) => wide.add(integer, position),
            None if sum == 0 => self.set_narrow(integer, position),
            None if position < base
                && let Some(sum) = shifted(sum, u32::from(base - position))
                && let Some(sum) = sum.checked_add(integer) =>
            {
                self.set_narrow(sum, position);
            }
            None => {
                let wide = self.widen();
                wide.add(integer, position);
            }
        }
    }

    fn widen(&mut self) -> &mut Wide {
        let (sum, base) = (self.narrow(), self.base);
        self.wide.get_or_insert_with(|| {
            let mut wide = Box::<Wide>::default();
            wide.add(sum, base);
            wide
        })
    }

    #[cold]
    fn add_special(&mut self, value: f64, weight: i64) {
        let count = |is: bool| if is { weight } else { 0 };
        self.add_specials(Specials {
            nan: count(value.is_nan()),
            infinity: count(value == f64::INFINITY),
            negative_infinity: count(value == f64::NEG_INFINITY),
        });
    }

    fn add_specials(&mut self, more: Specials) {
        if more == Specials::default() {
            return;
        }
        let specials = &mut self.widen().specials;
        specials.nan += more.nan;
        specials.infinity += more.infinity;
        specials.negative_infinity += more.negative_infinity;
    }
}

impl Wide {
    fn is_negative(&self) -> bool {
        self.limbs.last().is_some_and(|limb| *limb != 0)
    }

    fn add(&mut self, integer: i128, position: u16) {
        let (limb, bit) = (usize::from(position) / 64, u32::from(position) % 64);
        if self.limbs.is_empty() {
            self.first = limb;
        }
        if limb < self.first {
            self.limbs.splice(0..0, std::iter::repeat_n(0, self.first - limb));
            self.first = limb;
        }
        let at = limb - self.first;
        let sign = self.limbs.last().copied().unwrap_or(0);
        // Three limbs take the integer, one more the carry.
        self.limbs.resize(self.limbs.len().max(at + 4), sign);
        let low = (integer as u128) << bit;
        let high = if bit == 0 { integer >> 127 } else { integer >> (128 - bit) };
        let parts = [low as u64, (low >> 64) as u64, high as u64];
        let sign = (integer >> 127) as u64;
        let mut carry = false;
        for (i, limb) in self.limbs[at..].iter_mut().enumerate() {
            let part = parts.get(i).copied().unwrap_or(sign);
            // From here on nothing changes.
            if i >= parts.len() && part == if carry { u64::MAX } else { 0 } {
                break;
            }
            let (sum, first) = limb.overflowing_add(part);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, first | second);
        }
        let top = self.limbs.last().copied().unwrap_or(0);
        if top != 0 && top != u64::MAX {
            self.limbs.push((top as i64 >> 63) as u64);
        }
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let specials = (self.specials != Specials::default()).then_some(self.specials);
        let Some(lowest) = self.limbs.iter().position(|limb| *limb != 0) else {
            return encode_narrow(0, 0, specials, bytes);
        };
        let zeros = self.limbs[lowest].trailing_zeros();
        let limbs = &self.limbs[lowest..];
        let sign = limbs.last().copied().unwrap_or(0);
        let base = place(self.first + lowest) + zeros as u16;
        encode_head(base, specials, bytes);
        let start = bytes.len();
        for (i, limb) in limbs.iter().enumerate() {
            let above = limbs.get(i + 1).copied().unwrap_or(sign);
            let shifted = (u128::from(above) << 64 | u128::from(*limb)) >> zeros;
            bytes.extend((shifted as u64).to_le_bytes());
        }
        // As short as its sign allows.
        while let [.., next, last] = bytes[start..]
            && last == if next & 0x80 == 0 { 0 } else { 0xff }
        {
            bytes.pop();
        }
    }
}

/// Mantissa with sign, and place of its lowest bit; whether the value is a number.
#[inline]
fn parts(value: f64) -> (i64, u16, bool) {
    let bits = value.to_bits();
    let exponent = bits >> MANTISSA_BITS & EXPONENT_MAX;
    let normal = exponent != 0;
    let mantissa = bits & ((1 << MANTISSA_BITS) - 1) | u64::from(normal) << MANTISSA_BITS;
    let negative = (bits as i64) >> 63;
    let signed = (mantissa as i64 ^ negative).wrapping_sub(negative);
    (signed, (exponent - u64::from(normal)) as u16, exponent != EXPONENT_MAX)
}

/// `integer` shifted up, if its bits stay.
#[inline]
fn shifted(integer: i128, by: u32) -> Option<i128> {
    let free = (integer ^ integer >> 127).leading_zeros() - 1;
    (by <= free).then(|| integer.wrapping_shl(by))
}

fn place(limb: usize) -> u16 {
    64 * limb as u16
}

fn negate(limbs: &mut [u64]) {
    let mut carry = true;
    for limb in limbs {
        (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
    }
}

fn encode_head(base: u16, specials: Option<Specials>, bytes: &mut Vec<u8>) {
    bytes.extend((base | if specials.is_some() { HAS_SPECIALS } else { 0 }).to_le_bytes());
    if let Some(specials) = specials {
        for count in [specials.nan, specials.infinity, specials.negative_infinity] {
            bytes.extend(count.to_le_bytes());
        }
    }
}

fn encode_narrow(sum: i128, base: u16, specials: Option<Specials>, bytes: &mut Vec<u8>) {
    if sum == 0 {
        if specials.is_some() {
            encode_head(0, specials, bytes);
        }
        return;
    }
    let zeros = sum.trailing_zeros();
    let odd = sum >> zeros;
    let length = (128 - (odd ^ odd >> 127).leading_zeros()) as usize / 8 + 1;
    let base = base + zeros as u16;
    if specials.is_some() {
        encode_head(base, specials, bytes);
        return bytes.extend(&odd.to_le_bytes()[..length]);
    }
    // At once: this is what most sums are.
    let mut all = [0; 18];
    all[..2].copy_from_slice(&base.to_le_bytes());
    all[2..].copy_from_slice(&odd.to_le_bytes());
    bytes.extend_from_slice(&all[..2 + length]);
}
