//! What schemas do to objects: pruning and defaulting.

use serde_json::{Map, Value};

use super::{Additional, Node, NodeId, Schema};

impl Schema {
    /// Removes fields that the schema does not know, and returns their paths (`spec.foo`, `spec.list[0].bar`), sorted.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut removed = Vec::new();
        self.prune_at(self.root, object, &mut String::new(), &mut removed);
        removed.sort();
        removed
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.arena.nodes[id as usize]
    }

    fn prune_at(&self, id: NodeId, value: &mut Value, path: &mut String, removed: &mut Vec<String>) {
        let node = self.node(id);
        match value {
            Value::Object(map) => self.prune_map(node, map, path, removed),
            Value::Array(list) => {
                let Some(items) = node.items else { return };
                for (index, item) in list.iter_mut().enumerate() {
                    with_step(path, &format!("[{index}]"), |path| {
                        self.prune_at(items, item, path, removed);
                    });
                }
            }
            _ => {}
        }
    }

    fn prune_map(&self, node: &Node, map: &mut Map<String, Value>, path: &mut String, removed: &mut Vec<String>) {
        let keeps_all = node.preserve || node.additional == Additional::Any || node.ty.is_none();
        map.retain(|key, child| {
            let known = node.property(key).or(match node.additional {
                Additional::Node(id) => Some(id),
                Additional::Any | Additional::None => None,
            });
            let step = if path.is_empty() {
                key.clone()
            } else {
                format!(".{key}")
            };
            with_step(path, &step, |path| match known {
                Some(id) => {
                    self.prune_at(id, child, path, removed);
                    true
                }
                None if keeps_all => true,
                None => {
                    removed.push(path.clone());
                    false
                }
            })
        });
    }

    /// Fills in defaults, also in the values that defaults brought in.
    pub fn default(&self, object: &mut Value) {
        self.default_at(self.root, object);
    }

    fn default_at(&self, id: NodeId, value: &mut Value) {
        let node = self.node(id);
        match value {
            Value::Object(map) => {
                for (name, child) in &node.properties {
                    let child_node = self.node(*child);
                    if let Some(default) = &child_node.default {
                        let missing = match map.get(&**name) {
                            None => true,
                            Some(Value::Null) => !child_node.nullable,
                            Some(_) => false,
                        };
                        if missing {
                            map.insert(name.to_string(), (**default).clone());
                        }
                    }
                    if let Some(value) = map.get_mut(&**name) {
                        self.default_at(*child, value);
                    }
                }
                if let Additional::Node(id) = node.additional {
                    let unnamed = map.iter_mut().filter(|(name, _)| node.property(name).is_none());
                    unnamed.for_each(|(_, value)| self.default_at(id, value));
                }
            }
            Value::Array(list) => {
                let Some(items) = node.items else { return };
                list.iter_mut().for_each(|item| self.default_at(items, item));
            }
            _ => {}
        }
    }

    /// Removes `null` where the schema does not allow it, as decoding into Kubernetes' own types does.
    pub fn drop_nulls(&self, object: &mut Value) {
        self.drop_nulls_at(Some(self.root), object);
    }

    fn drop_nulls_at(&self, id: Option<NodeId>, value: &mut Value) {
        let Some(node) = id.map(|id| self.node(id)) else { return };
        match value {
            Value::Object(map) => {
                map.retain(|name, child| {
                    let id = node.property(name).or(match node.additional {
                        Additional::Node(id) => Some(id),
                        Additional::Any | Additional::None => None,
                    });
                    self.drop_nulls_at(id, child);
                    !(child.is_null() && id.is_some_and(|id| self.node(id).ty.is_some()))
                });
            }
            Value::Array(list) => list.iter_mut().for_each(|item| self.drop_nulls_at(node.items, item)),
            _ => {}
        }
    }
}

fn with_step<T>(path: &mut String, step: &str, run: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    path.push_str(step);
    let result = run(path);
    path.truncate(length);
    result
}
