//! Which line of a YAML text a field is on. Pure.

use granit_parser::{Event, Parser};

/// A node of a YAML document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its line, from 1; of an entry of a map, the line of its key.
    line: usize,
    inner: Inner,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Inner {
    /// A scalar, or an alias, which is not followed.
    Leaf(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Reads each document of a YAML text; empty ones have a leaf.
///
/// # Errors
/// Line and complaint of a text that is no YAML.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, (usize, String)> {
    let mut found = Vec::new();
    // Collections that are open, with the key that waits for its value.
    let mut open: Vec<(Node, Option<(String, usize)>)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| (error.marker().line(), error.kind().to_string()))?;
        let line = span.start.line();
        let node = |inner| Node { line, inner };
        let done = match event {
            Event::Scalar(text, ..) => node(Inner::Leaf(text.into_owned())),
            Event::Alias(..) => node(Inner::Leaf(String::new())),
            Event::SequenceStart(..) => {
                open.push((node(Inner::List(Vec::new())), None));
                continue;
            }
            Event::MappingStart(..) => {
                open.push((node(Inner::Map(Vec::new())), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some((node, _)) => node,
                None => continue,
            },
            _ => continue,
        };
        match open.last_mut() {
            None => found.push(done),
            Some((parent, key)) => parent.take(key, done),
        }
    }
    Ok(found)
}

impl Node {
    /// Takes the next node of this collection.
    fn take(&mut self, waiting: &mut Option<(String, usize)>, node: Node) {
        match (&mut self.inner, waiting.take()) {
            (Inner::List(items), _) => items.push(node),
            (Inner::Map(entries), Some((key, line))) => entries.push((key, Node { line, ..node })),
            (Inner::Map(_), None) => {
                let key = match node.inner {
                    Inner::Leaf(key) => key,
                    Inner::List(_) | Inner::Map(_) => String::new(),
                };
                *waiting = Some((key, node.line));
            }
            (Inner::Leaf(_), _) => {}
        }
    }

    /// The line of a field such as `spec.volumes[1].name`: its own, or that of the innermost parent that is there.
    pub(crate) fn line_of(&self, field: &str) -> usize {
        let (mut node, mut rest) = (self, field);
        while !rest.is_empty() {
            rest = rest.trim_start_matches('.');
            let next = match (&node.inner, rest.strip_prefix('[')) {
                (Inner::List(items), Some(inner)) => inner.split_once(']').and_then(|(index, after)| {
                    let item = items.get(index.parse::<usize>().ok()?)?;
                    Some((item, after))
                }),
                (Inner::Map(entries), bracket) => {
                    // A key in brackets may hold dots; without, the longest known name is meant.
                    let text = bracket.unwrap_or(rest);
                    let close = if bracket.is_some() { "]" } else { "" };
                    let starts = entries.iter().filter_map(|(key, node)| {
                        let after = text.strip_prefix(key.as_str())?.strip_prefix(close)?;
                        let ends = after.is_empty() || after.starts_with(['.', '[']);
                        (ends && !key.is_empty()).then_some((key.len(), node, after))
                    });
                    starts
                        .max_by_key(|(length, ..)| *length)
                        .map(|(_, node, after)| (node, after))
                }
                (Inner::List(_) | Inner::Leaf(_), _) => None,
            };
            match next {
                Some((inner, after)) => (node, rest) = (inner, after),
                None => break,
            }
        }
        node.line
    }

    /// Whether there is nothing in the document.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.inner, Inner::Leaf(text) if text.is_empty() || text == "null" || text == "~")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment
kind: VirtualMachine
metadata:
  labels: {a.b/c: x,
    d: y}
spec:
  template:
    spec:
      volumes:
      - name: a
        containerDisk:
          image: i
      -
        name: b
---
kind: [1,
  2]
";

    #[test]
    fn fields_have_lines() {
        let found = documents(TEXT).unwrap();
        for (field, line) in [
            ("kind", 2),
            ("metadata.labels", 4),
            ("metadata.labels[a.b/c]", 4),
            ("metadata.labels[d]", 5),
            ("spec.template.spec.volumes", 9),
            ("spec.template.spec.volumes[0]", 10),
            ("spec.template.spec.volumes[0].containerDisk.image", 12),
            ("spec.template.spec.volumes[0].containerDisk.path", 11),
            ("spec.template.spec.volumes[1].name", 14),
            ("spec.template.spec.volumes[7].name", 9),
            ("spec.template.spec.domain.cpu.cores", 8),
            ("status", 2),
            ("", 2),
        ] {
            assert_eq!(found[0].line_of(field), line, "{field}");
        }
        assert_eq!((found[1].line_of("kind[1]"), found.len()), (17, 2));
        assert!(documents("---\n").unwrap().iter().all(Node::is_empty));
    }

    #[test]
    fn what_is_no_yaml_has_a_line_too() {
        for (text, lines) in [("a: 1\nb: [\n", 2..=3), ("a: 'x\n", 1..=2), ("a: 1\n\tb: 2\n", 1..=2)] {
            let (line, why) = documents(text).unwrap_err();
            assert!(lines.contains(&line) && !why.is_empty(), "{text:?}: {line}: {why}");
        }
    }
}
