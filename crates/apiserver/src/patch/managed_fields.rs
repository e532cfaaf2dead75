//! Server-side apply, and who owns which field.
//!
//! Every write leaves in `metadata.managedFields` what its manager is responsible for. An apply states everything
//! that its manager wants: what it no longer says and nobody else owns is removed, and what others own may only be
//! changed by force. Any other write takes the ownership of what it changes.

use std::fmt;

use serde_json::{Map, Value, json};

use super::field_set::{FieldSet, Step};
use super::fields::{compare, fields_of, remove_fields};
use super::merge::merge;
use crate::schema::Schema;

/// A field that somebody else owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner as messages name it: `"kubectl-edit" using v1 at 2026-01-01T00:00:00Z`.
    pub manager: String,
    /// `.spec.running`
    pub field: String,
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Others own fields that would change: 409 `Conflict`, with a `FieldManagerConflict` cause for each.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration itself cannot be applied: 400 `BadRequest`.
    #[error("{0}")]
    Malformed(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        );
    }
    let mut lines = Vec::new();
    let mut last = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: FieldSet,
}

impl Entry {
    fn is(&self, manager: &str, operation: Operation, api_version: &str, subresource: &str) -> bool {
        self.manager == manager
            && self.operation == operation
            && self.subresource == subresource
            // An applier keeps its fields when it changes the version; updates are kept apart.
            && (operation == Operation::Apply || self.api_version == api_version)
    }

    fn read(value: &Value) -> Option<Self> {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Some(Self {
            manager: text("manager"),
            operation: match value["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: value["time"].as_str().map(ToOwned::to_owned),
            fields: FieldSet::from_json(&value["fieldsV1"])?,
        })
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("manager".into(), self.manager.as_str().into());
        map.insert("operation".into(), self.operation.name().into());
        map.insert("apiVersion".into(), self.api_version.as_str().into());
        if let Some(time) = &self.time {
            map.insert("time".into(), time.as_str().into());
        }
        map.insert("fieldsType".into(), "FieldsV1".into());
        map.insert("fieldsV1".into(), self.fields.to_json());
        if !self.subresource.is_empty() {
            map.insert("subresource".into(), self.subresource.as_str().into());
        }
        Value::Object(map)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.manager)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match (self.operation, &self.time) {
            (Operation::Apply, _) => Ok(()),
            (Operation::Update, None) => write!(f, " using {}", self.api_version),
            (Operation::Update, Some(time)) => write!(f, " using {} at {time}", self.api_version),
        }
    }
}

/// Fields of `metadata` that the server keeps and nobody owns.
const BOOKKEEPING: [&str; 11] = [
    "name",
    "namespace",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// More updating managers than this are folded into one.
const MAX_UPDATE_MANAGERS: usize = 10;

fn strip(set: &mut FieldSet) {
    set.remove(&["apiVersion"]);
    set.remove(&["kind"]);
    for name in BOOKKEEPING {
        set.remove(&["metadata", name]);
    }
    if let Some(metadata) = set.children.get_mut(&Step::Field("metadata".into())) {
        metadata.member = false;
    }
    set.children.retain(|_, child| !child.is_empty());
    set.member = false;
}

fn entries_of(object: &Value) -> Vec<Entry> {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Entry::read)
        .collect()
}

fn without_entries(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    entries.sort_by(|a, b| {
        let key = |e: &Entry| {
            (
                e.operation,
                e.time.clone(),
                e.manager.clone(),
                e.api_version.clone(),
                e.subresource.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return;
    };
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), entries.iter().map(Entry::to_json).collect());
    }
}

fn api_version(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap_or_default()
}

/// The object after `applied` by `manager` was merged into `live` (`None`: it is created).
///
/// Guarantees: the result's `managedFields` are up to date; server bookkeeping in `metadata` is the live one's; if
/// nothing changes, the result equals `live`. The caller has removed from `applied` what this endpoint may not write
/// (`status` outside `/status`), and has checked `uid` and `resourceVersion`.
///
/// # Errors
/// Conflicts with other managers (unless `force`), or a configuration that is not one.
pub fn server_side_apply(
    live: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    subresource: Option<&str>,
    schema: &Schema,
    now: &str,
) -> Result<Value, ApplyError> {
    let applied = configuration(live, applied, schema)?;
    let version = api_version(&applied).to_owned();
    let subresource = subresource.unwrap_or_default();
    let mut own = fields_of(schema.root(), &applied);
    strip(&mut own);
    let mut entry = Entry {
        manager: manager.to_owned(),
        operation: Operation::Apply,
        api_version: version.clone(),
        subresource: subresource.to_owned(),
        time: Some(now.to_owned()),
        fields: own,
    };
    let Some(live) = live else {
        let mut object = applied;
        write_entries(&mut object, vec![entry]);
        return Ok(object);
    };
    let bare = without_entries(live);
    let mut entries = entries_of(live);
    let tracked = !entries.is_empty();
    if !tracked {
        entries.push(before_first_apply(&bare, schema));
    }
    let previous = entries
        .iter()
        .position(|e| e.is(manager, Operation::Apply, &version, subresource))
        .map(|index| entries.remove(index));
    let mut object = merge(schema.root(), &bare, &applied);
    if let Some(previous) = &previous {
        prune(&mut object, &previous.fields, &entry.fields, &entries, schema);
    }
    let difference = compare(schema.root(), Some(&bare), Some(&object));
    let mut changed = difference.added.clone();
    changed.unite(difference.modified.clone());
    let conflicts = conflicts(&entries, &changed);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    changed.unite(difference.removed.clone());
    for other in &mut entries {
        other.fields = other.fields.difference(&changed);
    }
    if let Some(previous) = previous {
        if difference.is_same() && previous.fields == entry.fields && previous.api_version == entry.api_version {
            return Ok(live.clone());
        }
        if previous.fields == entry.fields {
            entry.time = previous.time;
        }
    }
    entries.push(entry);
    write_entries(&mut object, entries);
    Ok(object)
}

/// What is applied, without what a configuration cannot say.
fn configuration(live: Option<&Value>, applied: &Value, schema: &Schema) -> Result<Value, ApplyError> {
    let malformed = |text: &str| Err(ApplyError::Malformed(text.to_owned()));
    if !applied["metadata"].is_object() {
        return malformed("metadata: Required value: an applied configuration needs metadata");
    }
    if applied["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|m| !m.is_empty())
    {
        return malformed("metadata.managedFields must be nil");
    }
    let mut applied = applied.clone();
    schema.drop_nulls(&mut applied);
    if let Some(metadata) = applied["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if let Some(live) = live {
            for name in BOOKKEEPING {
                match live["metadata"].get(name).filter(|_| name != "managedFields") {
                    Some(value) => metadata.insert(name.to_owned(), value.clone()),
                    None => metadata.remove(name),
                };
            }
        }
    }
    Ok(applied)
}

/// Everything in an object that was never tracked belongs to this manager.
fn before_first_apply(live: &Value, schema: &Schema) -> Entry {
    let mut fields = fields_of(schema.root(), live);
    strip(&mut fields);
    Entry {
        manager: "before-first-apply".to_owned(),
        operation: Operation::Update,
        api_version: api_version(live).to_owned(),
        subresource: String::new(),
        time: live["metadata"]["creationTimestamp"].as_str().map(ToOwned::to_owned),
        fields,
    }
}

fn conflicts(entries: &[Entry], changed: &FieldSet) -> Vec<Conflict> {
    let mut conflicts: Vec<Conflict> = entries
        .iter()
        .flat_map(|entry| {
            let paths = entry.fields.intersection(changed).paths();
            paths.into_iter().map(|field| Conflict {
                manager: entry.to_string(),
                field,
            })
        })
        .collect();
    conflicts.sort_by(|a, b| (&a.manager, &a.field).cmp(&(&b.manager, &b.field)));
    conflicts
}

/// Removes what the manager applied last time and now neither it nor anybody else owns.
fn prune(object: &mut Value, last: &FieldSet, own: &FieldSet, others: &[Entry], schema: &Schema) {
    let mut managed = own.clone();
    for other in others {
        managed.unite(other.fields.clone());
    }
    let remove = removable(last, Some(&managed));
    remove_fields(schema.root(), object, &remove);
    for name in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let metadata = &mut object["metadata"];
        let is_empty = match &metadata[name] {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if is_empty && let Some(metadata) = metadata.as_object_mut() {
            metadata.remove(name);
        }
    }
}

fn removable(last: &FieldSet, managed: Option<&FieldSet>) -> FieldSet {
    let mut remove = FieldSet::default();
    for (step, set) in &last.children {
        let kept = managed.and_then(|m| m.children.get(step));
        // A field stays as long as something in it is owned; a list's element only if it is owned itself.
        let stays = kept.is_some_and(|k| k.member || matches!(step, Step::Field(_)));
        if set.member && !stays {
            remove.put(step.clone(), FieldSet::leaf());
        } else {
            remove.put(step.clone(), removable(set, kept));
        }
    }
    remove
}

/// Brings `new`'s `managedFields` up to date after `manager` wrote it with anything but an apply.
///
/// Guarantees: what changed from `old` belongs to `manager` and to nobody else; if nothing changed, the entries stay
/// as they are. `managedFields: [{}]` or `[]` in `new` resets tracking. Server bookkeeping is never owned.
pub fn track_update(
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: Option<&str>,
    schema: &Schema,
    now: &str,
) {
    if old.is_some() && resets(&new["metadata"]["managedFields"]) {
        write_entries(new, Vec::new());
        return;
    }
    let subresource = subresource.unwrap_or_default();
    let given = entries_of(new);
    let mut entries = if given.is_empty() {
        old.map(entries_of).unwrap_or_default()
    } else {
        given
    };
    let bare = without_entries(new);
    let before = old.map_or_else(|| empty_object(&bare, schema), without_entries);
    let mut difference = compare(schema.root(), Some(&before), Some(&bare));
    for set in [&mut difference.added, &mut difference.modified, &mut difference.removed] {
        strip(set);
    }
    if difference.is_same() {
        write_entries(new, entries);
        return;
    }
    let mut gained = difference.added;
    gained.unite(difference.modified);
    let mut changed = gained.clone();
    changed.unite(difference.removed.clone());
    let version = api_version(&bare).to_owned();
    let position = entries
        .iter()
        .position(|e| e.is(manager, Operation::Update, &version, subresource));
    let mut own = position.map(|index| entries.remove(index)).unwrap_or_else(|| Entry {
        manager: manager.to_owned(),
        operation: Operation::Update,
        api_version: version,
        subresource: subresource.to_owned(),
        time: None,
        fields: FieldSet::default(),
    });
    for other in &mut entries {
        other.fields = other.fields.difference(&changed);
    }
    let mut fields = own.fields.clone();
    fields.unite(gained);
    fields = fields.difference(&difference.removed);
    if fields != own.fields || own.time.is_none() {
        own.time = Some(now.to_owned());
    }
    own.fields = fields;
    entries.push(own);
    fold_ancient(&mut entries);
    write_entries(new, entries);
}

fn resets(managed_fields: &Value) -> bool {
    managed_fields
        .as_array()
        .is_some_and(|list| list.iter().all(|e| e.as_object().is_some_and(Map::is_empty)))
}

/// What a created object is compared with: parts that the kind always has are there, but empty.
fn empty_object(new: &Value, schema: &Schema) -> Value {
    let mut empty = json!({"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": {}});
    if !schema.is_custom() {
        for name in ["spec", "status"] {
            if new[name].is_object() {
                empty[name] = json!({});
            }
        }
    }
    empty
}

/// Keeps the list short: the oldest updaters become one entry.
fn fold_ancient(entries: &mut Vec<Entry>) {
    const ANCIENT: &str = "ancient-changes";
    loop {
        let updates = entries
            .iter()
            .filter(|e| e.operation == Operation::Update && e.subresource.is_empty());
        if updates.clone().count() <= MAX_UPDATE_MANAGERS {
            return;
        }
        let Some(oldest) = updates
            .filter(|e| e.manager != ANCIENT)
            .min_by_key(|e| e.time.clone())
            .cloned()
        else {
            return;
        };
        entries.retain(|e| *e != oldest);
        match entries
            .iter_mut()
            .find(|e| e.manager == ANCIENT && e.api_version == oldest.api_version)
        {
            Some(ancient) => {
                ancient.fields.unite(oldest.fields);
                ancient.time = oldest.time;
            }
            None => entries.push(Entry {
                manager: ANCIENT.to_owned(),
                ..oldest
            }),
        }
    }
}
