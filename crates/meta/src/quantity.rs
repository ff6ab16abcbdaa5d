//! Resource quantities: upstream's grammar, canonical form and arithmetic.
//!
//! A value is kept in nano units; upstream rounds anything finer up and caps at 2^63-1, so this loses nothing.

use crate::json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;

/// Why a text is no quantity; the text of each is upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has the wrong form.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity was written, hence how it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notation {
    Decimal,
    Binary,
    Exponent,
}

/// An amount of a resource, such as `500m` or `1Gi`.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

impl Quantity {
    /// Zero.
    pub const ZERO: Quantity = Quantity { nanos: 0, notation: Notation::Decimal };

    /// A quantity of whole units.
    pub fn from_units(units: i64) -> Self {
        Quantity { nanos: i128::from(units) * NANO, notation: Notation::Decimal }
    }

    /// A quantity of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Quantity { nanos: i128::from(milli) * (NANO / 1000), notation: Notation::Decimal }
    }

    /// A quantity of bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANO, notation: Notation::Binary }
    }

    /// Parses a JSON string or number, the two forms a quantity may take in an object.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        scaled(self.nanos, NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        scaled(self.nanos, NANO / 1000)
    }

    /// The amount as a float, for ratios.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// True for zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// True below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// True when a whole number of units.
    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }
}

/// Division rounding away from zero, saturating.
fn scaled(nanos: i128, unit: i128) -> i64 {
    let quotient = round_up(nanos, unit);
    i64::try_from(quotient).unwrap_or(if quotient < 0 { i64::MIN } else { i64::MAX })
}

fn round_up(n: i128, unit: i128) -> i128 {
    n / unit + if n % unit != 0 { n.signum() } else { 0 }
}

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let tail = &suffix[letters..];
    let tail = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix })
}

/// `(base, exponent, notation)` of a suffix.
fn interpret(suffix: &str) -> Result<(i128, i32, Notation), QuantityError> {
    let decimal = |e| Ok((10, e, Notation::Decimal));
    let binary = |e| Ok((1024, e, Notation::Binary));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => match suffix.strip_prefix(['e', 'E']).and_then(|e| e.parse::<i32>().ok()) {
            Some(exponent) => Ok((10, exponent, Notation::Exponent)),
            None => Err(QuantityError::Suffix),
        },
    }
}

/// `digits × 10^exponent × factor` in nanos, rounded up and capped; `None` when beyond the cap.
fn nanos(digits: &str, exponent: i32, factor: i128) -> Option<i128> {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let magnitude = i64::from(exponent) + digits.len() as i64;
    if magnitude > 20 {
        return None;
    }
    if magnitude < -30 {
        return Some(1);
    }
    // Digits beyond the 38 that fit, and those that stand 38 places behind the nanos, only matter for rounding up.
    let behind = (i64::from(exponent) + 9).saturating_neg();
    let dropped = (digits.len() as i64 - 38).max(behind - 38).max(0);
    let kept = digits.len().saturating_sub(dropped as usize);
    let truncated = i128::from(digits[kept..].bytes().any(|b| b != b'0'));
    let mantissa: i128 = if kept == 0 { 0 } else { digits[..kept].parse().ok()? };
    let exponent = dropped - behind;
    if exponent >= 0 {
        let scale = 10i128.checked_pow(u32::try_from(exponent).ok()?)?;
        return mantissa.checked_mul(scale)?.checked_mul(factor)?.checked_add(truncated);
    }
    // Whole units and the rest apart, without the powers of two that cancel out: nothing below the cap overflows.
    let places = u32::try_from(-exponent).ok()?;
    let common = factor.trailing_zeros().min(places);
    let (factor, unit) = (factor >> common, 10i128.checked_pow(places)? >> common);
    let rest = round_up((mantissa % unit).checked_mul(factor)?.checked_add(truncated)?, unit);
    (mantissa / unit).checked_mul(factor)?.checked_add(rest)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let parts = split(text)?;
        let (base, exponent, notation) = interpret(parts.suffix)?;
        let digits = match parts.fraction {
            "" => Cow::Borrowed(parts.whole),
            fraction => Cow::Owned(format!("{}{fraction}", parts.whole)),
        };
        let point = -(parts.fraction.len() as i32);
        let amount = if base == 10 {
            nanos(&digits, point.saturating_add(exponent), 1)
        } else {
            nanos(&digits, point, 1i128 << (10 * exponent))
        };
        let amount = amount.unwrap_or(MAX_NANOS).min(MAX_NANOS);
        Ok(Quantity { nanos: if parts.negative { -amount } else { amount }, notation })
    }
}

const DECIMAL_SUFFIXES: [(i32, &str); 10] =
    [(-9, "n"), (-6, "u"), (-3, "m"), (0, ""), (3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E")];
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that leaves none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.notation == Notation::Binary && !small && self.is_integer() {
            let (mut number, mut power) = (self.nanos / NANO, 0);
            while number % 1024 == 0 && power < 6 {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", BINARY_SUFFIXES[power]);
        }
        let (mut number, mut step) = (self.nanos, 0);
        while number % 1000 == 0 && step < DECIMAL_SUFFIXES.len() - 1 {
            number /= 1000;
            step += 1;
        }
        let (exponent, suffix) = DECIMAL_SUFFIXES[step];
        match self.notation {
            Notation::Exponent if exponent != 0 => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{suffix}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Quantity;
    /// Keeps the left notation, or the right one when the left is zero.
    fn add(self, other: Quantity) -> Quantity {
        let notation = if self.nanos == 0 { other.notation } else { self.notation };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), notation }
    }
}

impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        let notation = if self.nanos == 0 { other.notation } else { self.notation };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), notation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().map_or_else(|e| e.to_string(), |q| q.to_string())
    }

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1500Ki", "1500Ki"),
            ("100000", "100k"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("12e5", "1200e3"),
            ("-1.5", "-1500m"),
            ("0.0000000001", "1n"),
            ("100E", "9223372036854775807"),
            ("+3", "3"),
            (".5", "500m"),
            ("1.0001Ki", "1024102400u"),
        ] {
            assert_eq!(canonical(text), want, "{text}");
        }
    }

    #[test]
    fn malformed() {
        let form = QuantityError::Format.to_string();
        for text in ["", "a", "1 Gi", "1..2", "5x", "1Gi "] {
            assert_eq!(canonical(text), form, "{text}");
        }
        assert_eq!(canonical("1KM"), QuantityError::Suffix.to_string());
    }

    #[test]
    fn arithmetic() {
        let q = |s: &str| s.parse::<Quantity>().expect(s);
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!((q("1Gi") + q("1024Mi")).to_string(), "2Gi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
        assert_eq!(q("1500u").milli_value(), 2);
        assert_eq!(q("1.2").value(), 2);
        assert_eq!(q("250m").milli_value(), 250);
    }

    #[test]
    fn long_numbers_are_exact() {
        let nanos = |text: &str| text.parse::<Quantity>().unwrap().nanos;
        assert_eq!(nanos("1000799917193433547556383622n"), 1_000_799_917_193_433_547_556_383_622);
        for (long, short) in [
            ("1.0000000000000000000000000000Pi", "1Pi"),
            ("0.50000000000000000000000000000000000000000000Ei", "512Pi"),
            ("1000000000000000000000000000000000000000e-39", "1"),
        ] {
            assert_eq!(nanos(long), nanos(short), "{long}");
        }
        assert_eq!(nanos("0.00000000000000000000000000000000000000000001Ki"), 1);
        let shown = "888.88888888888Pi".parse::<Quantity>().unwrap();
        assert_eq!(nanos(&shown.to_string()), shown.nanos);
    }
}
