//! The part of kubectl's JSONPath that printer columns use.

use serde_json::Value;

/// A path that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSONPath {path:?} is malformed at byte {at}: {problem}")]
pub struct JsonPathError {
    path: String,
    at: usize,
    problem: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Every,
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    path: Vec<Step>,
    test: Option<(Comparison, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// `.a.b`, `.a[0]`, `.a[-1]`, `.a[1:3]`, `.a[*]`, `.a['b.c']`, `.a\.b`, `.a[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads a path; surrounding braces and a leading `$` are allowed.
    ///
    /// # Errors
    /// Where and why the path cannot be read.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        let inner = text.trim();
        let inner = inner
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or(inner);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        let mut reader = Reader { text: inner, at: 0 };
        let error = |reader: &Reader<'_>, problem| JsonPathError {
            path: text.to_owned(),
            at: reader.at,
            problem,
        };
        let steps = reader.steps().map_err(|problem| error(&reader, problem))?;
        if reader.at < inner.len() {
            return Err(error(&reader, "'.' or '[' expected"));
        }
        Ok(Self(steps))
    }

    /// Every value that the path leads to.
    #[must_use]
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        find(&self.0, root)
    }

    /// The first value that the path leads to.
    #[must_use]
    pub fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.find(root).into_iter().next()
    }
}

fn find<'a>(steps: &[Step], root: &'a Value) -> Vec<&'a Value> {
    let mut values = vec![root];
    for step in steps {
        values = values.into_iter().flat_map(|value| step_from(step, value)).collect();
    }
    values
}

fn step_from<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let position = |index: i64| if index < 0 { index + list.len() as i64 } else { index };
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => usize::try_from(position(*index))
            .ok()
            .and_then(|i| list.get(i))
            .into_iter()
            .collect(),
        Step::Slice(from, to) => {
            let clamp = |index: i64| usize::try_from(position(index)).unwrap_or(0).min(list.len());
            let (from, to) = (clamp(from.unwrap_or(0)), to.map_or(list.len(), clamp));
            list.get(from..to).unwrap_or_default().iter().collect()
        }
        Step::Every => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Filter(filter) => list.iter().filter(|item| filter.accepts(item)).collect(),
    }
}

impl Filter {
    fn accepts(&self, item: &Value) -> bool {
        let found = find(&self.path, item);
        let Some((comparison, expected)) = &self.test else {
            return !found.is_empty();
        };
        found.into_iter().any(|value| {
            let ordering = match (value, expected) {
                (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
                (a, b) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
            };
            match (ordering, comparison) {
                (None, comparison) => *comparison == Comparison::NotEqual,
                (Some(o), Comparison::Equal) => o.is_eq(),
                (Some(o), Comparison::NotEqual) => o.is_ne(),
                (Some(o), Comparison::Less) => o.is_lt(),
                (Some(o), Comparison::LessOrEqual) => o.is_le(),
                (Some(o), Comparison::Greater) => o.is_gt(),
                (Some(o), Comparison::GreaterOrEqual) => o.is_ge(),
            }
        })
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn accept(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn steps(&mut self) -> Result<Vec<Step>, &'static str> {
        let mut steps = Vec::new();
        loop {
            if self.accept(".") {
                if self.accept("*") {
                    steps.push(Step::Every);
                } else if !self.rest().starts_with('[') {
                    let name = self.field();
                    if !name.is_empty() {
                        steps.push(Step::Field(name));
                    } else if !steps.is_empty() || !self.rest().is_empty() {
                        return Err("a field name is missing");
                    }
                }
            } else if self.accept("[") {
                steps.push(self.bracket()?);
                self.spaces();
                if !self.accept("]") {
                    return Err("']' expected");
                }
            } else {
                return Ok(steps);
            }
        }
    }

    fn field(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.rest().chars().next() {
            match c {
                '\\' => {
                    self.at += 1;
                    let Some(next) = self.rest().chars().next() else { break };
                    name.push(next);
                    self.at += next.len_utf8();
                }
                '.' | '[' | ']' | '(' | ')' | '=' | '!' | '<' | '>' | ' ' | '{' | '}' | ',' => break,
                c => {
                    name.push(c);
                    self.at += c.len_utf8();
                }
            }
        }
        name
    }

    fn bracket(&mut self) -> Result<Step, &'static str> {
        self.spaces();
        if self.accept("*") {
            return Ok(Step::Every);
        }
        if self.accept("?(") {
            let filter = self.filter()?;
            self.spaces();
            return if self.accept(")") {
                Ok(Step::Filter(Box::new(filter)))
            } else {
                Err("')' expected")
            };
        }
        if self.rest().starts_with(['\'', '"']) {
            return self.quoted().map(Step::Field);
        }
        let from = self.integer();
        if self.accept(":") {
            return Ok(Step::Slice(from, self.integer()));
        }
        from.map(Step::Index)
            .ok_or("an index, a quoted name, '*' or a filter expected")
    }

    fn integer(&mut self) -> Option<i64> {
        let end = self
            .rest()
            .find(|c: char| !c.is_ascii_digit() && c != '-')
            .unwrap_or(self.rest().len());
        let number = self.rest()[..end].parse().ok()?;
        self.at += end;
        Some(number)
    }

    fn quoted(&mut self) -> Result<String, &'static str> {
        let quote = self.rest().chars().next().ok_or("a quote expected")?;
        self.at += 1;
        let end = self.rest().find(quote).ok_or("a closing quote is missing")?;
        let text = self.rest()[..end].to_owned();
        self.at += end + 1;
        Ok(text)
    }

    fn filter(&mut self) -> Result<Filter, &'static str> {
        self.spaces();
        if !self.accept("@") {
            return Err("'@' expected");
        }
        let path = self.steps()?;
        self.spaces();
        let operators = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let Some((_, comparison)) = operators.into_iter().find(|(token, _)| self.accept(token)) else {
            return Ok(Filter { path, test: None });
        };
        self.spaces();
        let literal = if self.rest().starts_with(['\'', '"']) {
            Value::String(self.quoted()?)
        } else {
            let end = self.rest().find([')', ' ']).unwrap_or(self.rest().len());
            let literal = serde_json::from_str(&self.rest()[..end]).map_err(|_| "a literal expected")?;
            self.at += end;
            literal
        };
        Ok(Filter {
            path,
            test: Some((comparison, literal)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_by_table() {
        let object = json!({
            "a": {"b": 1, "c.d": 2, "list": [{"type": "X", "n": 1}, {"type": "Ready", "n": 2, "ok": true}], "e": [1, 2, 3, 4]},
        });
        for (path, expected) in [
            (".a.b", json!([1])),
            ("{.a.b}", json!([1])),
            ("$.a.b", json!([1])),
            (r".a.c\.d", json!([2])),
            (".a['c.d']", json!([2])),
            (".a.list[0].n", json!([1])),
            (".a.list[-1].n", json!([2])),
            (".a.list[*].n", json!([1, 2])),
            (r#".a.list[?(@.type=="Ready")].n"#, json!([2])),
            (".a.list[?(@.type == 'Ready')].n", json!([2])),
            (".a.list[?(@.n > 1)].type", json!(["Ready"])),
            (".a.list[?(@.n!=1)].type", json!(["Ready"])),
            (".a.list[?(@.ok)].type", json!(["Ready"])),
            (".a.e[1:3]", json!([2, 3])),
            (".a.e[:1]", json!([1])),
            (".none.deep[0]", json!([])),
        ] {
            let found: Vec<Value> = JsonPath::parse(path)
                .unwrap()
                .find(&object)
                .into_iter()
                .cloned()
                .collect();
            assert_eq!(Value::from(found), expected, "{path}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in [
            "a b",
            ".a[",
            ".a[?(x)]",
            ".a[?(@.b==)]",
            ".a['b]",
            ".a[x]",
            ".a..b.",
            ".a]",
        ] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z.@?()\\[\\]'=\\\\0-9:*{} -]{0,24}") {
            let _ = JsonPath::parse(&text);
        }
    }
}
