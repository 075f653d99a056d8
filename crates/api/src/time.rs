//! Times as the API writes them: RFC 3339 in UTC with seconds, or with microseconds.

pub use jiff::Timestamp;

/// With seconds, as `2024-01-02T03:04:05Z`.
pub fn format(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// With microseconds, as `2024-01-02T03:04:05.000006Z`.
pub fn format_micro(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads RFC 3339 with any offset and fraction.
pub fn parse(s: &str) -> Option<Timestamp> {
    // RFC 3339 is stricter than what jiff reads: a full date, `T`, and an offset.
    let b = s.as_bytes();
    if b.len() < 20 || b.get(10) != Some(&b'T') {
        return None;
    }
    s.parse().ok()
}

/// A duration as kubectl shows ages: `5s`, `3m2s`, `4h`, `2d3h`, `400d`, `3y10d`.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let s = seconds.max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => two(m, "m", s % 60, "s"),
        600..10800 => format!("{m}m"),
        10800..28800 => two(h, "h", m % 60, "m"),
        28800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        691_200..63_072_000 => format!("{d}d"),
        63_072_000..252_288_000 => two(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

/// The age of something made at `then`, `<unknown>` without a time.
pub fn age(then: Option<&str>, now: Timestamp) -> String {
    match then.and_then(parse) {
        Some(t) => human_duration(now.as_second() - t.as_second()),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_ages() {
        let t = parse("2024-01-02T03:04:05.5+01:00").unwrap();
        assert_eq!(format(t), "2024-01-02T02:04:05Z");
        assert_eq!(format_micro(t), "2024-01-02T02:04:05.500000Z");
        for (s, want) in [
            (5, "5s"),
            (125, "2m5s"),
            (180, "3m"),
            (3600, "60m"),
            (4 * 3600, "4h"),
            (86400 * 3, "3d"),
        ] {
            assert_eq!(human_duration(s), want);
        }
    }
}
