//! Resource quantities: exact decimal numbers with SI or binary suffixes.

use std::cmp::Ordering;
use std::fmt;

/// Which suffixes a quantity was written with; kept for its canonical text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `1e3`
    Exponent,
    /// `1Ki`
    Binary,
    /// `1k`
    Decimal,
}

/// A quantity, exact to a billionth.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// Billionths.
    nanos: i128,
    format: Format,
}

/// What a malformed quantity is told.
pub const PARSE_ERROR: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

const NANO: i128 = 1_000_000_000;

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// A whole number.
    pub const fn of(n: i64) -> Self {
        Self { nanos: n as i128 * NANO, format: Format::Decimal }
    }

    /// Thousandths.
    pub const fn of_milli(n: i64) -> Self {
        Self { nanos: n as i128 * (NANO / 1000), format: Format::Decimal }
    }

    /// Reads `100m`, `1.5Gi`, `1e3`, …
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let body = text.strip_prefix(['+', '-']).unwrap_or(text);
        let digits = body.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = body.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(PARSE_ERROR);
        }
        let (format, base, exponent) = suffix_scale(suffix).ok_or(PARSE_ERROR)?;
        let nanos = scale(whole, fraction, base, exponent);
        let nanos = if text.starts_with('-') { -nanos } else { nanos };
        Ok(Self { nanos, format })
    }

    /// The value rounded up to a whole number.
    pub fn value(self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        clamp(div_up(self.nanos, NANO / 1000))
    }

    /// As a float.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// Rounded up to thousandths.
    #[must_use]
    pub fn round_up_to_milli(self) -> Self {
        let unit = NANO / 1000;
        Self { nanos: div_up(self.nanos, unit) * unit, format: self.format }
    }

    /// The sum; keeps this one's format unless this is zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    /// The difference; keeps this one's format.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

/// Format, base and exponent of a suffix.
fn suffix_scale(suffix: &str) -> Option<(Format, u32, i32)> {
    Some(match suffix {
        "Ki" => (Format::Binary, 2, 10),
        "Mi" => (Format::Binary, 2, 20),
        "Gi" => (Format::Binary, 2, 30),
        "Ti" => (Format::Binary, 2, 40),
        "Pi" => (Format::Binary, 2, 50),
        "Ei" => (Format::Binary, 2, 60),
        "n" => (Format::Decimal, 10, -9),
        "u" => (Format::Decimal, 10, -6),
        "m" => (Format::Decimal, 10, -3),
        "" => (Format::Decimal, 10, 0),
        "k" => (Format::Decimal, 10, 3),
        "M" => (Format::Decimal, 10, 6),
        "G" => (Format::Decimal, 10, 9),
        "T" => (Format::Decimal, 10, 12),
        "P" => (Format::Decimal, 10, 15),
        "E" => (Format::Decimal, 10, 18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit())
            {
                return None;
            }
            (Format::Exponent, 10, exponent.parse().ok()?)
        }
    })
}

/// As many billionths as 64 bits hold ones.
const CAP: i128 = i64::MAX as i128 * NANO;
/// More digits than this are more than [`CAP`].
const CAP_DIGITS: usize = 28;

/// Digits times base^exponent in billionths, rounded up, capped at [`CAP`].
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if base == 2 { binary(whole, fraction, exponent) } else { decimal(whole, fraction, exponent) }
}

fn decimal(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let shift = exponent.saturating_add(9).saturating_sub(places);
    let zeros = usize::try_from(shift).unwrap_or(0);
    // What lies behind the last billionth only rounds up.
    let behind = usize::try_from(shift.saturating_neg()).unwrap_or(0);
    let digits = || whole.bytes().chain(fraction.bytes()).skip_while(|digit| *digit == b'0');
    let count = digits().count();
    let kept = count.saturating_sub(behind);
    if kept > 0 && kept.saturating_add(zeros) > CAP_DIGITS {
        return CAP;
    }
    let tens = if kept > 0 { zeros } else { 0 };
    let n = number(digits().take(kept)) * 10_i128.pow(tens as u32);
    (n + i128::from(digits().skip(kept).any(|digit| digit != b'0'))).min(CAP)
}

/// The number that at most [`CAP_DIGITS`] digits write.
fn number(digits: impl Iterator<Item = u8>) -> i128 {
    digits.fold(0, |n, digit| n * 10 + i128::from(digit - b'0'))
}

fn binary(whole: &str, fraction: &str, exponent: i32) -> i128 {
    const PLACES: usize = 12;
    if whole.len() > CAP_DIGITS - 9 {
        return CAP;
    }
    // More places than these cannot matter beyond rounding up.
    let (kept, lost) = fraction.split_at(fraction.len().min(PLACES));
    let digits = whole.bytes().chain(kept.bytes().chain(std::iter::repeat(b'0')).take(PLACES));
    let Some(n) = number(digits).checked_mul(1 << exponent) else { return CAP };
    let n = n.saturating_add(i128::from(!lost.is_empty()));
    div_up(n, 1000).min(CAP)
}

fn div_up(n: i128, d: i128) -> i128 {
    n.div_euclid(d) + i128::from(n.rem_euclid(d) != 0)
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
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

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Binary suffixes need a whole number of at least 1024, otherwise the decimal form is used.
        if self.format == Format::Binary
            && self.nanos % NANO == 0
            && self.nanos.unsigned_abs() >= 1024 * NANO as u128
        {
            let (mut n, mut i) = (self.nanos / NANO, 0);
            while n % 1024 == 0 && i < 6 {
                n /= 1024;
                i += 1;
            }
            return write!(f, "{n}{}", BINARY[i]);
        }
        let (mut n, mut i) = (self.nanos, 0);
        while n % 1000 == 0 && i < 9 {
            n /= 1000;
            i += 1;
        }
        if self.format == Format::Exponent && i != 3 {
            return write!(f, "{n}e{}", (i as i32 - 3) * 3);
        }
        write!(f, "{n}{}", DECIMAL[i])
    }
}

/// The canonical text of a quantity, `None` if it is malformed.
pub fn canonical(text: &str) -> Option<String> {
    Quantity::parse(text).ok().map(|q| q.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1.5Gi", "1536Mi"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("2000k", "2M"),
            ("0.5Gi", "512Mi"),
            ("0Gi", "0"),
            ("-1", "-1"),
            ("500Ki", "500Ki"),
            (".5", "500m"),
            ("1.", "1"),
            ("1000Mi", "1000Mi"),
            ("0.5Ki", "512"),
            ("12e6", "12e6"),
            ("1n", "1n"),
            ("0.0000000001", "1n"),
            ("0e9999", "0"),
            ("1e-9999", "1e-9"),
            ("1063382396627382085148538307n", "1063382396627382085148538307n"),
            ("1.0000000000001E", "1000000000000100k"),
            ("0.0000000000000000001E", "100m"),
            ("9223372036854775808", "9223372036854775807"),
            ("1e9999", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(want), "{text}");
        }
        for bad in ["", "x", "1.2.3", "1 ", "1ki", "1e", "--1", "1mm"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }

    #[test]
    fn order_and_sum() {
        let q = |s| Quantity::parse(s).unwrap();
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1").plus(q("500m")).to_string(), "1500m");
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("1500m").milli_value(), 1500);
    }
}
