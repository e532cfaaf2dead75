//! Durations on the command line.

use std::time::Duration;

/// A bare number of minutes, or Go's notation: `30s`, `5m`, `1h30m`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(minutes) => Ok(Duration::from_secs(u64::from(minutes) * 60)),
        Err(_) => go(text, "minutes"),
    }
}

/// A bare number of seconds, or Go's notation.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(u64::from(seconds))),
        Err(_) => go(text, "seconds"),
    }
}

fn go(text: &str, bare: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: give {bare}, or for example 30s, 5m, 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(wrong()),
        };
        total = unit
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("5", 300),
            ("0", 0),
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5400),
            ("5m0s", 300),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_seconds("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_seconds("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "x", "5x", "-1", "s", "1m5", "99999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
