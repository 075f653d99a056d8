//! Values that are an integer or a string, most often a percentage.

use crate::object::Value;

/// The percentage in `25%`.
pub fn percent(v: &Value) -> Option<i64> {
    let digits = v.as_str()?.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The value scaled to `total`, percentages rounded up or down.
pub fn scaled(v: &Value, total: i64, round_up: bool) -> Option<i64> {
    if let Some(i) = v.as_int() {
        return Some(i);
    }
    let product = percent(v)?.checked_mul(total)?;
    Some(if round_up {
        product.div_euclid(100) + i64::from(product % 100 != 0)
    } else {
        product / 100
    })
}

/// The integer, 0 for a percentage of a string.
pub fn int_or_zero(v: &Value) -> i64 {
    v.as_int().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_scale() {
        assert_eq!(scaled(&Value::from("25%"), 10, true), Some(3));
        assert_eq!(scaled(&Value::from("25%"), 10, false), Some(2));
        assert_eq!(scaled(&Value::from(4_i64), 10, false), Some(4));
        assert_eq!(scaled(&Value::from("x%"), 10, false), None);
    }
}
