//! Label and field selectors.

use std::fmt;

use serde_json::Value;

/// A selector that cannot be used: 400 `BadRequest` with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Equals(String),
    NotEquals(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

/// A label selector; the default one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// With Kubernetes' text, such as `unable to parse requirement: found ',', expected: ')'`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser {
            tokens: tokens(text),
            next: 0,
        };
        parser
            .selector()
            .map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))
    }

    /// A `metav1.LabelSelector`; a missing one selects nothing and gives `None`.
    ///
    /// # Errors
    /// An operator is unknown, or has values where it takes none or none where it needs some.
    pub fn from_object(selector: &Value) -> Result<Option<Self>, SelectorError> {
        if selector.is_null() {
            return Ok(None);
        }
        let mut all: Vec<Requirement> = selector["matchLabels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| Requirement {
                key: k.clone(),
                test: Test::Equals(text_of(v)),
            })
            .collect();
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = text_of(&expression["key"]);
            let values: Vec<String> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text_of)
                .collect();
            let operator = expression["operator"].as_str().unwrap_or_default();
            let test = match (operator, values.is_empty()) {
                ("In", false) => Test::In(values),
                ("NotIn", false) => Test::NotIn(values),
                ("Exists", true) => Test::Exists,
                ("DoesNotExist", true) => Test::DoesNotExist,
                ("In" | "NotIn", true) => {
                    return Err(SelectorError(
                        "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into(),
                    ));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(SelectorError(
                        "values: Invalid value: values set must be empty for exists and does not exist".into(),
                    ));
                }
                _ => {
                    return Err(SelectorError(format!(
                        "{operator:?} is not a valid label selector operator"
                    )));
                }
            };
            all.push(Requirement { key, test });
        }
        Ok(Some(Self(all)))
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's labels fit.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(&object["metadata"]["labels"])
    }

    /// Whether a map of labels fits.
    #[must_use]
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.0.iter().all(|r| {
            let value = labels.get(&r.key).and_then(Value::as_str);
            match &r.test {
                Test::Equals(expected) => value == Some(expected),
                Test::NotEquals(expected) => value != Some(expected),
                Test::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
                Test::NotIn(set) => !value.is_some_and(|v| set.iter().any(|s| s == v)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
                Test::GreaterThan(limit) => number(value).is_some_and(|n| n > *limit),
                Test::LessThan(limit) => number(value).is_some_and(|n| n < *limit),
            }
        })
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, test }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::Equals(value) => write!(f, "{key}={value}"),
                Test::NotEquals(value) => write!(f, "{key}!={value}"),
                Test::In(set) => write!(f, "{key} in ({})", set.join(",")),
                Test::NotIn(set) => write!(f, "{key} notin ({})", set.join(",")),
                Test::Exists => f.write_str(key),
                Test::DoesNotExist => write!(f, "!{key}"),
                Test::GreaterThan(limit) => write!(f, "{key}>{limit}"),
                Test::LessThan(limit) => write!(f, "{key}<{limit}"),
            }?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Symbol(symbol) => f.write_str(symbol),
            Self::End => Ok(()),
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
    let mut rest = text.trim_start();
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.into_iter().find(|s| rest.starts_with(s)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest
                .find(|c: char| c.is_whitespace() || SYMBOLS.iter().any(|s| s.starts_with(c)))
                .unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).unwrap_or(&Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn selector(&mut self) -> Result<LabelSelector, String> {
        let mut all = Vec::new();
        if *self.peek() == Token::End {
            return Ok(LabelSelector(all));
        }
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => all.push(self.requirement()?),
                other => return Err(format!("found '{other}', expected: !, identifier, or 'end of string'")),
            }
            match self.take() {
                Token::End => return Ok(LabelSelector(all)),
                Token::Symbol(",") => match self.peek() {
                    Token::Word(_) | Token::Symbol("!") => {}
                    other => return Err(format!("found '{other}', expected: identifier after ','")),
                },
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = *self.peek() == Token::Symbol("!");
        if negated {
            self.take();
        }
        let key = match self.take() {
            Token::Word(word) => word,
            other => return Err(format!("found '{other}', expected: identifier")),
        };
        check_key(&key)?;
        if negated {
            return Ok(Requirement {
                key,
                test: Test::DoesNotExist,
            });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement {
                key,
                test: Test::Exists,
            });
        }
        let test = match self.take() {
            Token::Symbol("=" | "==") => Test::Equals(self.exact(&key)?),
            Token::Symbol("!=") => Test::NotEquals(self.exact(&key)?),
            Token::Symbol(">") => Test::GreaterThan(self.bound()?),
            Token::Symbol("<") => Test::LessThan(self.bound()?),
            Token::Word(word) if word == "in" => Test::In(self.set(&key)?),
            Token::Word(word) if word == "notin" => Test::NotIn(self.set(&key)?),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        Ok(Requirement { key, test })
    }

    fn exact(&mut self, key: &str) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(_) => match self.take() {
                Token::Word(value) => check_value(key, value),
                other => Err(format!("found '{other}', expected: identifier")),
            },
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn bound(&mut self) -> Result<i64, String> {
        let token = self.take();
        token.to_string().parse().map_err(|_| {
            format!("values[0]: Invalid value: \"{token}\": for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn set(&mut self, key: &str) -> Result<Vec<String>, String> {
        match self.take() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        let mut set = Vec::new();
        loop {
            let value = match self.peek() {
                Token::Word(_) => self.take().to_string(),
                Token::Symbol("," | ")") => String::new(),
                other => return Err(format!("found '{other}', expected: ',', ')' or identifier")),
            };
            set.push(check_value(key, value)?);
            match self.take() {
                Token::Symbol(")") => break,
                Token::Symbol(",") => {}
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
        set.sort();
        set.dedup();
        Ok(set)
    }
}

fn is_name(text: &str, max: usize) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= max && text.chars().all(inner) && outer(text.chars().next()) && outer(text.chars().last())
}

/// Whether `text` is a label or annotation key: `[prefix/]name`.
#[must_use]
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name(text, 63),
        Some((prefix, name)) => {
            let label = |l: &str| is_name(l, 63) && !l.contains(['_', '.']) && l == l.to_ascii_lowercase();
            prefix.len() <= 253 && prefix.split('.').all(label) && is_name(name, 63)
        }
    }
}

/// Whether `text` is a label's value.
#[must_use]
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text, 63)
}

fn check_key(key: &str) -> Result<(), String> {
    if is_qualified_name(key) {
        return Ok(());
    }
    Err(format!(
        "key: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', \
         and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
         regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    ))
}

fn check_value(key: &str, value: String) -> Result<String, String> {
    if is_label_value(&value) {
        return Ok(value);
    }
    Err(format!(
        "values[0][{key}]: Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric \
         characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
         'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    ))
}

/// A field selector; the default one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTest>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTest {
    path: String,
    equals: bool,
    value: String,
}

impl FieldSelector {
    /// Reads `metadata.name=x,spec.nodeName!=y`.
    ///
    /// # Errors
    /// With Kubernetes' text, such as `invalid selector: 'x'; can't understand 'x'`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut tests = Vec::new();
        for part in split_unescaped(text, ',').into_iter().filter(|p| !p.is_empty()) {
            let Some((path, equals, value)) = split_operator(part) else {
                return Err(SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            tests.push(FieldTest {
                path: path.to_owned(),
                equals,
                value: unescape(value)?,
            });
        }
        Ok(Self(tests))
    }

    /// Refuses fields that the resource does not offer. `metadata.name` and `metadata.namespace` always are.
    ///
    /// # Errors
    /// `field label not supported: spec.foo`
    pub fn check(&self, labels: &[&str]) -> Result<(), SelectorError> {
        let offered = |path: &str| matches!(path, "metadata.name" | "metadata.namespace") || labels.contains(&path);
        match self.0.iter().find(|test| !offered(&test.path)) {
            Some(test) => Err(SelectorError(format!("field label not supported: {}", test.path))),
            None => Ok(()),
        }
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `path` must have, if the selector says so: lets a store look up a name directly.
    #[must_use]
    pub fn required(&self, path: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|t| t.equals && t.path == path)
            .map(|t| t.value.as_str())
    }

    /// Whether the object's fields fit. A missing field is the empty string.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.0
            .iter()
            .all(|test| (field_value(object, &test.path) == test.value) == test.equals)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, test) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if test.equals { "=" } else { "!=" };
            let value = test.value.replace('\\', r"\\").replace(',', r"\,").replace('=', r"\=");
            write!(f, "{comma}{}{operator}{value}", test.path)?;
        }
        Ok(())
    }
}

/// The value of a selectable field, including the names that only selectors of events use.
fn field_value(object: &Value, path: &str) -> String {
    let by_path = |path: &str| text_of(path.split('.').fold(object, |value, step| &value[step]));
    match (path, object["kind"].as_str()) {
        ("source", Some("Event")) => match by_path("source.component") {
            text if text.is_empty() => by_path("reportingComponent"),
            text => text,
        },
        ("spec.unschedulable", Some("Node")) => (object["spec"]["unschedulable"] == true).to_string(),
        ("spec.hostNetwork", Some("Pod")) => (object["spec"]["hostNetwork"] == true).to_string(),
        _ => by_path(path),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == separator => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_operator(part: &str) -> Option<(&str, bool, &str)> {
    part.char_indices().find_map(|(index, _)| {
        let (path, rest) = part.split_at(index);
        let operators = [("!=", false), ("==", true), ("=", true)];
        operators
            .into_iter()
            .find_map(|(op, equals)| rest.strip_prefix(op).map(|value| (path, equals, value)))
    })
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut result = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => result.push(c),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: \\{other}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            c => result.push(c),
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_by_table() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "1", "empty": ""}}});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=2", true),
            ("app in (db, web)", true),
            ("app notin (db)", true),
            ("other notin (db)", true),
            ("other!=x", true),
            ("app,!other", true),
            ("other", false),
            ("app=", false),
            ("empty=", true),
            ("tier>0,tier<2", true),
            ("tier>1", false),
            ("app in (db)", false),
            ("!app", false),
            ("example.com/x=y", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&object), expected, "{text}");
        }
    }

    #[test]
    fn malformed_label_selectors_are_explained() {
        for (text, expected) in [
            (
                "a,",
                "unable to parse requirement: found '', expected: identifier after ','",
            ),
            (
                "=b",
                "unable to parse requirement: found '=', expected: !, identifier, or 'end of string'",
            ),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), expected);
        }
        assert!(LabelSelector::parse("a=b c").is_err());
        assert!(LabelSelector::parse("-a=b").is_err());
        assert!(LabelSelector::parse("a=-b").is_err());
    }

    #[test]
    fn selector_objects() {
        let labels = json!({"a": "1", "b": "2"});
        let selects = |selector: Value| {
            LabelSelector::from_object(&selector).map(|s| s.is_some_and(|s| s.matches_labels(&labels)))
        };
        assert_eq!(selects(Value::Null), Ok(false));
        assert_eq!(selects(json!({})), Ok(true));
        assert_eq!(selects(json!({"matchLabels": {"a": "1"}})), Ok(true));
        let expression = json!([{"key": "b", "operator": "In", "values": ["3"]}]);
        assert_eq!(selects(json!({"matchExpressions": expression})), Ok(false));
        assert!(selects(json!({"matchExpressions": [{"key": "b", "operator": "In"}]})).is_err());
        assert!(selects(json!({"matchExpressions": [{"key": "b", "operator": "Like"}]})).is_err());
    }

    #[test]
    fn field_selectors_by_table() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "x,y"}});
        for (text, expected) in [
            ("", true),
            ("metadata.name=p", true),
            ("metadata.name==p,metadata.namespace!=m", true),
            (r"spec.nodeName=x\,y", true),
            ("spec.nodeName!=", true),
            ("status.phase=", true),
            ("spec.hostNetwork=false", true),
            ("metadata.name=q", false),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(&pod), expected, "{text}");
        }
        let error = FieldSelector::parse("name").unwrap_err();
        assert_eq!(error.to_string(), "invalid selector: 'name'; can't understand 'name'");
        let error = FieldSelector::parse("spec.x=1")
            .unwrap()
            .check(&["spec.nodeName"])
            .unwrap_err();
        assert_eq!(error.to_string(), "field label not supported: spec.x");
        let named = FieldSelector::parse("metadata.name=p").unwrap();
        assert_eq!(named.required("metadata.name"), Some("p"));
    }

    prop_compose! {
        fn any_requirement()(
            key in "[a-z]([a-z0-9.-]{0,5}[a-z])?(/[a-z]{1,3})?",
            values in prop::collection::btree_set("[a-z0-9]{0,3}", 1..4),
            kind in 0..8usize,
            bound in any::<i64>(),
        ) -> Requirement {
            let values: Vec<String> = values.into_iter().collect();
            let first = values[0].clone();
            let test = match kind {
                0 => Test::Equals(first),
                1 => Test::NotEquals(first),
                2 => Test::In(values),
                3 => Test::NotIn(values),
                4 => Test::Exists,
                5 => Test::DoesNotExist,
                6 => Test::GreaterThan(bound),
                _ => Test::LessThan(bound),
            };
            Requirement { key, test }
        }
    }

    proptest! {
        #[test]
        fn label_selectors_round_trip(all in prop::collection::vec(any_requirement(), 0..5)) {
            let valid = all.into_iter().filter(|r| is_qualified_name(&r.key)).collect();
            let selector = LabelSelector(valid);
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn field_selectors_round_trip(path in "[a-z.]{1,9}", equals: bool, value in "[a-z,=\\\\]{0,6}") {
            let selector = FieldSelector(vec![FieldTest { path, equals, value }]);
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,30}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
