//! Durations as Go writes them.

use jiff::SignedDuration;

/// Reads Go's notation of a duration, such as `1h30m0s`; `None` for anything else, and for negative ones.
#[must_use]
pub fn parse(text: &str) -> Option<SignedDuration> {
    if text == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut total = SignedDuration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(SignedDuration::try_from_secs_f64(number * unit).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("24h", Some(86_400_000)),
            ("1h30m0s", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("90s", Some(90_000)),
            ("500ms", Some(500)),
            ("2000us", Some(2)),
            ("0", Some(0)),
            ("", None),
            ("7d", None),
            ("h", None),
            ("12", None),
            ("-1s", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(parse(text).map(|d| d.as_millis()), milliseconds, "{text}");
        }
    }
}
