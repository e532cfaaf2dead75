//! Tables: what `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::jsonpath::JsonPath;

/// Where a cell's value comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A place in the object; dates become ages.
    Path(JsonPath),
    /// Computed from the object and the time.
    Computed(fn(&Value, Timestamp) -> Value),
}

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    /// As printed in the header, in any case.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub type_: String,
    /// OpenAPI format, often empty; `name` marks the name column.
    pub format: String,
    /// What the column means.
    pub description: String,
    /// 0 is always shown, others with `-o wide`.
    pub priority: i32,
    /// Where the cells come from.
    pub source: Source,
}

impl Column {
    /// A column that a function computes.
    #[must_use]
    pub fn computed(name: &str, priority: i32, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self {
            name: name.to_owned(),
            type_: "string".to_owned(),
            format: String::new(),
            description: String::new(),
            priority,
            source: Source::Computed(cell),
        }
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        match &self.source {
            Source::Computed(cell) => cell(object, now),
            Source::Path(path) => path.first(object).map_or(Value::Null, |value| self.convert(value, now)),
        }
    }

    /// A value as a cell of this column's type; one that does not fit is left out.
    fn convert(&self, value: &Value, now: Timestamp) -> Value {
        match (self.type_.as_str(), value) {
            (_, Value::Null) => Value::Null,
            ("integer", Value::Number(n)) => n.as_i64().map_or(Value::Null, Value::from),
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) | ("string", Value::String(_)) => value.clone(),
            ("date", Value::String(text)) => age(text, now).into(),
            ("string", other) => other.to_string().into(),
            _ => Value::Null,
        }
    }
}

/// The column with the object's name.
#[must_use]
pub fn name_column() -> Column {
    let description = "Name must be unique within a namespace. It is the object's identity within its kind.";
    Column {
        format: "name".to_owned(),
        description: description.to_owned(),
        ..Column::computed("Name", 0, |object, _| object["metadata"]["name"].clone())
    }
}

/// The column with the time since the object was created.
#[must_use]
pub fn age_column() -> Column {
    let description = "Time since the object was created.";
    let cell = |object: &Value, now| age_of(&object["metadata"]["creationTimestamp"], now).into();
    Column {
        description: description.to_owned(),
        ..Column::computed("Age", 0, cell)
    }
}

/// The columns of a CRD version: the name, and its `additionalPrinterColumns` (the age, if it has none). Columns whose
/// path cannot be read are left out.
#[must_use]
pub fn custom_columns(additional: Option<&Value>) -> Vec<Column> {
    let mut columns = vec![name_column()];
    let Some(additional) = additional.and_then(Value::as_array).filter(|list| !list.is_empty()) else {
        columns.push(age_column());
        return columns;
    };
    let text = |column: &Value, name: &str| column[name].as_str().unwrap_or_default().to_owned();
    columns.extend(additional.iter().filter_map(|column| {
        Some(Column {
            name: text(column, "name"),
            type_: text(column, "type"),
            format: text(column, "format"),
            description: text(column, "description"),
            priority: column["priority"]
                .as_i64()
                .and_then(|p| i32::try_from(p).ok())
                .unwrap_or(0),
            source: Source::Path(JsonPath::parse(column["jsonPath"].as_str()?).ok()?),
        })
    }));
    columns
}

/// What rows carry of their objects (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }

    fn of(self, object: &Value) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
            }),
            Self::Object => object.clone(),
        }
    }
}

/// A `meta.k8s.io/v1` Table. `metadata` is the list's (`resourceVersion`, `continue` …).
#[must_use]
pub fn table<'a>(
    columns: &[Column],
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            // Ages are computed here, so that every client shows the same.
            json!({
                "name": column.name, "type": column.type_, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| column.cell(object, now)).collect();
            let mut row = Map::new();
            row.insert("cells".into(), cells.into());
            if let Some(conditions) = row_conditions(object) {
                row.insert("conditions".into(), conditions);
            }
            row.insert("object".into(), include.of(object));
            Value::Object(row)
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

/// Finished pods are marked, so that clients can grey them out.
fn row_conditions(object: &Value) -> Option<Value> {
    let phase = object["status"]["phase"].as_str().filter(|_| object["kind"] == "Pod")?;
    let message = match phase {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]))
}

/// The age of a timestamp value; `<unknown>` if it is missing or none.
#[must_use]
pub fn age_of(timestamp: &Value, now: Timestamp) -> String {
    timestamp
        .as_str()
        .map_or_else(|| "<unknown>".to_owned(), |text| age(text, now))
}

fn age(timestamp: &str, now: Timestamp) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Seconds as kubectl shows them: `45s`, `3m20s`, `17m`, `5h12m`, `30h`, `3d4h`, `90d`, `2y30d`, `9y`.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, l: char, small: i64, s: char| {
        if small == 0 {
            format!("{large}{l}")
        } else {
            format!("{large}{l}{small}{s}")
        }
    };
    let (minutes, hours, days) = (seconds / MINUTE, seconds / HOUR, seconds / DAY);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if seconds < 2 * MINUTE => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % MINUTE, 's'),
        _ if hours < 3 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if seconds < 2 * YEAR => format!("{days}d"),
        _ if seconds < 8 * YEAR => two(seconds / YEAR, 'y', days % 365, 'd'),
        _ => format!("{}y", seconds / YEAR),
    }
}
