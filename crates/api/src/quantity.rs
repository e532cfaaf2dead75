//! `resource.Quantity`: a number with a decimal or binary suffix.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A Kubernetes quantity, kept as it was written.
///
/// Reads strings and plain numbers; `bytes` and `millis` give its value. The notation is that of
/// `k8s.io/apimachinery/pkg/api/resource`: a signed decimal with an exponent or one of the suffixes
/// `n u m k M G T P E Ki Mi Gi Ti Pi Ei`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

/// Why a string is no quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseQuantityError(String);

impl fmt::Display for ParseQuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not a quantity such as 128Mi or 500m", self.0)
    }
}

impl std::error::Error for ParseQuantityError {}

impl Quantity {
    /// The value in thousandths, rounded up.
    ///
    /// # Errors
    /// The text is not a quantity, or does not fit.
    pub fn millis(&self) -> Result<i128, ParseQuantityError> {
        let error = || ParseQuantityError(self.0.clone());
        let text = self.0.trim();
        let end = text
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (mul, pow10): (i128, i32) = match suffix {
            "" => (1, 0),
            "n" => (1, -9),
            "u" => (1, -6),
            "m" => (1, -3),
            "k" => (1, 3),
            "M" => (1, 6),
            "G" => (1, 9),
            "T" => (1, 12),
            "P" => (1, 15),
            "E" => (1, 18),
            "Ki" => (1 << 10, 0),
            "Mi" => (1 << 20, 0),
            "Gi" => (1 << 30, 0),
            "Ti" => (1 << 40, 0),
            "Pi" => (1 << 50, 0),
            "Ei" => (1 << 60, 0),
            other => {
                let exponent = other.strip_prefix(['e', 'E']).ok_or_else(error)?;
                (1, exponent.parse::<i8>().map_err(|_| error())?.into())
            }
        };
        let (negative, digits) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
            return Err(error());
        }
        let mantissa: i128 = format!("{whole}{fraction}").parse().map_err(|_| error())?;
        let value = mantissa.checked_mul(mul).ok_or_else(error)?;
        let shift = pow10 + 3 - i32::try_from(fraction.len()).map_err(|_| error())?;
        let power = 10i128.checked_pow(shift.unsigned_abs()).ok_or_else(error)?;
        let millis = if shift >= 0 {
            value.checked_mul(power).ok_or_else(error)?
        } else {
            value.div_euclid(power) + i128::from(value.rem_euclid(power) != 0)
        };
        Ok(if negative { -millis } else { millis })
    }

    /// The value as a whole number (bytes, for memory and storage), rounded up.
    ///
    /// # Errors
    /// The text is not a quantity, or does not fit into 63 bits.
    pub fn bytes(&self) -> Result<i64, ParseQuantityError> {
        let millis = self.millis()?;
        let whole = millis.div_euclid(1000) + i128::from(millis.rem_euclid(1000) != 0);
        i64::try_from(whole).map_err(|_| ParseQuantityError(self.0.clone()))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.0)
    }
}

impl From<k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    fn from(quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Self {
        Self(quantity.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity: a string or a number")
            }
            fn visit_str<E>(self, v: &str) -> Result<Quantity, E> {
                Ok(Quantity(v.to_owned()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true
        })
    }
}
