//! Request bodies: JSON or YAML, and optional.

use axum::body::Body;
use http::Request;
use serde::de::DeserializeOwned;

use crate::status::{self, Refusal};

/// Options are a few fields.
const LIMIT: usize = 1 << 20;

/// The options in a request's body, or their defaults.
///
/// # Errors
/// 400 if the body is too large or does not describe `T`.
pub(crate) async fn read<T: DeserializeOwned + Default>(request: Request<Body>) -> Result<T, Refusal> {
    let bytes = axum::body::to_bytes(request.into_body(), LIMIT)
        .await
        .map_err(|error| status::bad_request(format!("cannot read the request's body: {}", status::chain(&error))))?;
    parse(&bytes)
}

fn parse<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    // JSON first: its errors are clearer, and only objects are options.
    let parsed = if bytes.trim_ascii_start().starts_with(b"{") {
        serde_json::from_slice::<Option<T>>(bytes).map_err(|error| error.to_string())
    } else {
        serde_yaml_ng::from_slice::<Option<T>>(bytes).map_err(|error| error.to_string())
    };
    match parsed {
        Ok(options) => Ok(options.unwrap_or_default()),
        Err(error) => Err(status::bad_request(format!(
            "Can not unmarshal Request body to struct, error: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrovirt_api::v1::StopOptions;

    #[test]
    fn bodies() {
        let grace = |text: &str| parse::<StopOptions>(text.as_bytes()).map(|options| options.grace_period);
        for (text, expected) in [
            ("", None),
            (" \n", None),
            ("null", None),
            ("{}", None),
            (r#"{"gracePeriod":5}"#, Some(5)),
            (r#"{"gracePeriod":null,"dryRun":null}"#, None),
            ("gracePeriod: 7\ndryRun: [All]\n", Some(7)),
        ] {
            assert_eq!(grace(text).unwrap(), expected, "{text}");
        }
        for text in [r#"{"gracePeriod":"x"}"#, "{", "[1]", "\u{1}"] {
            assert_eq!(grace(text).unwrap_err().code, Some(400), "{text}");
        }
    }
}
