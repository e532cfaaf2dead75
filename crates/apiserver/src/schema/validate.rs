//! Judging objects by their schema, in Kubernetes' words.

use std::collections::HashSet;

use serde_json::{Number, Value};

use super::{Additional, Cause, ListType, Node, NodeId, Rules, Schema, Type, formats};

impl Schema {
    /// Everything that is wrong with `object`. Parts that equal the stored object's are not judged again, so that a
    /// stricter schema does not freeze what is stored.
    #[must_use]
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut judge = Judge {
            schema: self,
            causes: Vec::new(),
        };
        judge.value(self.root, object, old, &mut String::new());
        judge.causes
    }
}

struct Judge<'a> {
    schema: &'a Schema,
    causes: Vec<Cause>,
}

impl<'a> Judge<'a> {
    fn node(&self, id: NodeId) -> &'a Node {
        &self.schema.arena.nodes[id as usize]
    }

    fn value(&mut self, id: NodeId, value: &Value, old: Option<&Value>, path: &mut String) {
        if old == Some(value) {
            return;
        }
        let node = self.node(id);
        if !self.type_fits(node, value, path) {
            return;
        }
        if value.is_null() {
            return;
        }
        if let Some(rules) = &node.rules {
            self.rules(id, rules, value, path);
        }
        match value {
            Value::Object(map) => {
                for name in node.required.iter().filter(|name| !map.contains_key(&***name)) {
                    self.causes.push(Cause::required(join(path, name), ""));
                }
                for (key, child) in map {
                    let id = node.property(key).or(match node.additional {
                        Additional::Node(id) => Some(id),
                        Additional::Any | Additional::None => None,
                    });
                    if let Some(id) = id {
                        let length = path.len();
                        *path = join(path, key);
                        self.value(id, child, old.and_then(|o| o.get(key)), path);
                        path.truncate(length);
                    }
                }
            }
            Value::Array(list) => self.list(node, list, old, path),
            _ => {}
        }
    }

    fn list(&mut self, node: &Node, list: &[Value], old: Option<&Value>, path: &mut String) {
        self.duplicates(node, list, path);
        let Some(items) = node.items else { return };
        for (index, item) in list.iter().enumerate() {
            let before = match &node.list {
                ListType::Map(keys) => old.and_then(Value::as_array).and_then(|old| {
                    old.iter()
                        .find(|o| keys.iter().all(|key| o.get(&**key) == item.get(&**key)))
                }),
                ListType::Set | ListType::Atomic => None,
            };
            let length = path.len();
            path.push_str(&format!("[{index}]"));
            self.value(items, item, before, path);
            path.truncate(length);
        }
    }

    fn duplicates(&mut self, node: &Node, list: &[Value], path: &str) {
        let mut seen = HashSet::new();
        for (index, item) in list.iter().enumerate() {
            let key = match &node.list {
                ListType::Atomic => return,
                ListType::Set => item.clone(),
                ListType::Map(keys) => {
                    let fields = keys
                        .iter()
                        .filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone())));
                    Value::Object(fields.collect())
                }
            };
            if !seen.insert(key.clone()) {
                self.causes.push(Cause::duplicate(format!("{path}[{index}]"), &key));
            }
        }
    }

    fn type_fits(&mut self, node: &Node, value: &Value, path: &str) -> bool {
        let actual = type_name(value);
        let (expected, fits) = if node.int_or_string {
            ("integer,string", matches!(value, Value::String(_)) || is_integer(value))
        } else {
            let Some(ty) = node.ty else { return true };
            let fits = match ty {
                Type::Integer => is_integer(value),
                Type::Number => value.is_number(),
                _ => actual == ty.name(),
            };
            (ty.name(), fits)
        };
        if fits || (value.is_null() && (node.nullable || !self.schema.custom)) {
            return true;
        }
        let detail = format!("{} in body must be of type {expected}: {actual:?}", shown(path));
        // Kubernetes shows the type in place of the value here.
        let what = format!("Invalid value: {actual:?}");
        self.causes
            .push(Cause::new(path, "FieldValueTypeInvalid", &what, &detail));
        false
    }

    fn rules(&mut self, id: NodeId, rules: &Rules, value: &Value, path: &mut String) {
        if !rules.enumeration.is_empty() && !rules.enumeration.contains(value) {
            let names: Vec<String> = rules
                .enumeration
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned))
                .collect();
            self.causes.push(Cause::unsupported(path.as_str(), value, &names));
        }
        match value {
            Value::String(text) => self.text(rules, text, value, path),
            Value::Number(number) => self.number(rules, number, value, path),
            Value::Array(list) => {
                self.count(list.len(), rules.items, "items", value, path);
                let mut seen = HashSet::new();
                if rules.unique_items && !list.iter().all(|item| seen.insert(item)) {
                    self.invalid(path, value, "shouldn't contain duplicates");
                }
            }
            Value::Object(map) => self.count(map.len(), rules.properties, "properties", value, path),
            Value::Null | Value::Bool(_) => {}
        }
        let junctors = [&rules.all_of, &rules.any_of, &rules.one_of];
        if rules.not.is_some() || junctors.iter().any(|j| !j.is_empty()) {
            self.junctors(id, rules, value, path);
        }
    }

    fn invalid(&mut self, path: &str, value: &Value, what: &str) {
        self.causes
            .push(Cause::invalid(path, value, &format!("{} in body {what}", shown(path))));
    }

    fn text(&mut self, rules: &Rules, text: &str, value: &Value, path: &str) {
        let length = text.chars().count() as u64;
        if rules.length.0.is_some_and(|min| length < min) {
            let min = rules.length.0.unwrap_or_default();
            self.invalid(path, value, &format!("should be at least {min} chars long"));
        }
        if let Some(max) = rules.length.1.filter(|max| length > *max) {
            let detail = format!("may not be more than {max} bytes");
            self.causes
                .push(Cause::new(path, "FieldValueTooLong", "Too long", &detail));
        }
        if let Some(index) = rules.pattern {
            let (pattern, regex) = self.schema.arena.pattern(index);
            if regex.is_some_and(|regex| !regex.is_match(text)) {
                self.invalid(path, value, &format!("should match '{pattern}'"));
            }
        }
        if let Some(format) = rules
            .format
            .as_deref()
            .filter(|format| !formats::text_fits(format, text))
        {
            self.invalid(path, value, &format!("must be of type {format}: {text:?}"));
        }
    }

    fn number(&mut self, rules: &Rules, number: &Number, value: &Value, path: &str) {
        if let Some((min, exclusive)) = &rules.minimum
            && !at_least(number, min, *exclusive)
        {
            let than = if *exclusive {
                "greater than"
            } else {
                "greater than or equal to"
            };
            self.invalid(path, value, &format!("should be {than} {min}"));
        }
        if let Some((max, exclusive)) = &rules.maximum
            && !at_least(max, number, *exclusive)
        {
            let than = if *exclusive {
                "less than"
            } else {
                "less than or equal to"
            };
            self.invalid(path, value, &format!("should be {than} {max}"));
        }
        if let Some(of) = &rules.multiple_of
            && !is_multiple(number, of)
        {
            self.invalid(path, value, &format!("should be a multiple of {of}"));
        }
        if let Some(format) = rules
            .format
            .as_deref()
            .filter(|format| !formats::number_fits(format, number))
        {
            let detail = format!("Checked value must be of type integer with format {format} in body");
            self.causes.push(Cause::invalid(path, value, &detail));
        }
    }

    fn count(&mut self, count: usize, range: (Option<u64>, Option<u64>), what: &str, value: &Value, path: &str) {
        let count = count as u64;
        if let Some(min) = range.0.filter(|min| count < *min) {
            self.invalid(path, value, &format!("should have at least {min} {what}"));
        }
        if let Some(max) = range.1.filter(|max| count > *max) {
            let detail = format!("must have at most {max} items");
            self.causes.push(Cause::new(
                path,
                "FieldValueTooMany",
                &format!("Too many: {count}"),
                &detail,
            ));
        }
    }

    fn junctors(&mut self, own: NodeId, rules: &Rules, value: &Value, path: &mut String) {
        let name = shown(path);
        let composite = |what: &str| Cause::invalid(path.as_str(), &Value::from(""), &format!("{name:?} {what}"));
        let (all, any) = (
            composite("must validate all the schemas (allOf)"),
            composite("must validate at least one schema (anyOf)"),
        );
        let not = composite("must not validate the schema (not)");
        let many = |n: usize| {
            let found = if n == 0 {
                "none valid".to_owned()
            } else {
                format!("{n} valid alternatives")
            };
            format!("must validate one and only one schema (oneOf). Found {found}")
        };
        let one = [composite(&many(0))];
        let mut failed = false;
        for id in &rules.all_of {
            let causes = self.apart(*id, value, path);
            failed |= !causes.is_empty();
            self.causes.extend(causes);
        }
        if failed {
            self.causes.push(all);
        }
        // `int-or-string` is written with this very anyOf; its type was checked.
        if !rules.any_of.is_empty() && !self.node(own).int_or_string {
            let results: Vec<_> = rules.any_of.iter().map(|id| self.apart(*id, value, path)).collect();
            if results.iter().all(|r| !r.is_empty()) {
                self.causes.push(any);
                self.causes
                    .extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
        if !rules.one_of.is_empty() {
            let results: Vec<_> = rules.one_of.iter().map(|id| self.apart(*id, value, path)).collect();
            let valid = results.iter().filter(|r| r.is_empty()).count();
            if valid == 0 {
                self.causes.extend(one);
                self.causes
                    .extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
            } else if valid > 1 {
                let detail = format!("{:?} {}", shown(path), many(valid));
                self.causes
                    .push(Cause::invalid(path.as_str(), &Value::from(""), &detail));
            }
        }
        if rules.not.is_some_and(|id| self.apart(id, value, path).is_empty()) {
            self.causes.push(not);
        }
    }

    fn apart(&self, id: NodeId, value: &Value, path: &mut String) -> Vec<Cause> {
        let mut judge = Judge {
            schema: self.schema,
            causes: Vec::new(),
        };
        judge.value(id, value, None, path);
        judge.causes
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn shown(path: &str) -> String {
    if path.is_empty() {
        "<nil>".to_owned()
    } else {
        path.to_owned()
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn at_least(left: &Number, right: &Number, exclusive: bool) -> bool {
    let ordering = match (left.as_i128(), right.as_i128()) {
        (Some(l), Some(r)) => Some(l.cmp(&r)),
        _ => left.as_f64().zip(right.as_f64()).and_then(|(l, r)| l.partial_cmp(&r)),
    };
    ordering.is_none_or(|o| if exclusive { o.is_gt() } else { o.is_ge() })
}

fn is_multiple(number: &Number, of: &Number) -> bool {
    match (number.as_i128(), of.as_i128()) {
        (Some(n), Some(of)) => of == 0 || n % of == 0,
        _ => number
            .as_f64()
            .zip(of.as_f64())
            .is_none_or(|(n, of)| of == 0.0 || (n / of).fract().abs() < f64::EPSILON),
    }
}
