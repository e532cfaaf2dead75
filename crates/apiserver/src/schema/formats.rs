//! The formats of OpenAPI that Kubernetes checks. Unknown formats are not checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Number;

/// Whether `text` is of string format `format`.
pub(super) fn text_fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "byte" => STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text
            .split_once('/')
            .and_then(|(ip, bits)| Some((ip.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?)))
            .is_some_and(|(ip, bits)| bits <= if ip.is_ipv4() { 32 } else { 128 }),
        "mac" => is_mac(text),
        "uri" => text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) || text.starts_with('/'),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::try_parse(text).is_ok(),
        "duration" => is_duration(text),
        "quantity" => is_quantity(text),
        _ => true,
    }
}

/// Whether a number is in the range of number format `format`.
pub(super) fn number_fits(format: &str, number: &Number) -> bool {
    let Some(value) = number.as_i128() else { return true };
    match format {
        "int32" => i32::try_from(value).is_ok(),
        "int64" => i64::try_from(value).is_ok(),
        _ => true,
    }
}

fn is_mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok())
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Go's durations: `1h30m`, `2.5s`, `300ms`, `0`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"].into_iter().rfind(|unit| {
            tail.strip_prefix(unit)
                .is_some_and(|t| t.is_empty() || t.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        });
        let Some(unit) = unit.filter(|_| number.parse::<f64>().is_ok()) else {
            return false;
        };
        rest = &tail[unit.len()..];
        parts += 1;
    }
    parts > 0
}

/// Kubernetes' quantities: a decimal number with a binary or decimal suffix, or an exponent.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 16] = [
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    let number = text.strip_prefix(['-', '+']).unwrap_or(text);
    let end = number
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(number.len());
    let (digits, suffix) = number.split_at(end);
    let exponent = suffix
        .strip_prefix(['e', 'E'])
        .is_some_and(|e| e.parse::<i16>().is_ok());
    digits.contains(|c: char| c.is_ascii_digit())
        && digits.matches('.').count() <= 1
        && (exponent || SUFFIXES.contains(&suffix))
}
