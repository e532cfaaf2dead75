//! Create and update: how a document becomes a stored object.
//!
//! Order: shape, unknown fields, defaults, schema → mutating admission → schema again, metadata, validating admission →
//! generation, managed fields → store. An update is computed from the version it found and stored only if that is still the
//! newest; otherwise it is computed again, unless the client named a version.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use serde_json::{Value, json};

use super::context::{Context, FieldValidation};
use super::{kinds, meta};
use crate::failure::{Failure, Result, cause};
use crate::hooks::{AdmissionInput, Operation};
use crate::patch::managed_fields;
use crate::schema::Cause;
use crate::store::{Expect, Key, Stored, Write, WriteError};

/// How often an update is computed again before the client is told of the conflict.
const ATTEMPTS: usize = 32;

/// What a stored write did.
pub struct Written {
    /// The object; after a delete the last one.
    pub object: Arc<Stored>,
    /// It did not exist before.
    pub created: bool,
}

/// POST: a new object.
///
/// # Errors
/// 400, 403, 404 (namespace), 409, 422, or what admission says.
pub async fn create(context: &mut Context, mut object: Value) -> Result<Written> {
    let unknown = begin(context, &mut object)?;
    place(context, &mut object)?;
    if !meta::text(&object, "resourceVersion").is_empty() {
        return Err(Failure::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generated = meta::text(&object, "name").is_empty() && !meta::text(&object, "generateName").is_empty();
    let mut attempts = 0;
    loop {
        let mut candidate = object.clone();
        if generated {
            candidate["metadata"]["name"] = Value::String(meta::generate_name(meta::text(&object, "generateName")));
        }
        attempts += 1;
        match insert(context, candidate, &unknown, false).await {
            Err(failure) if generated && attempts < 8 && failure.0.reason.as_deref() == Some("AlreadyExists") => {}
            done => return done,
        }
    }
}

/// Checks kind and metadata, and finds unknown fields.
fn begin(context: &Context, object: &mut Value) -> Result<Vec<String>> {
    let served = &context.served;
    let (api_version, kind) = (served.api_version(), &served.info.kind);
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    if text("kind").is_empty() && text("apiVersion").is_empty() && served.crd.is_none() && object.is_object() {
        object["kind"] = Value::String(kind.clone());
        object["apiVersion"] = Value::String(api_version.clone());
    }
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    if text("kind") != kind {
        let message = format!(
            "the kind in the data ({}) does not match the expected kind ({kind})",
            text("kind")
        );
        return Err(Failure::bad_request(if text("kind").is_empty() {
            "Object 'Kind' is missing in the data".to_owned()
        } else {
            message
        }));
    }
    if text("apiVersion") != api_version {
        let found = text("apiVersion");
        let message =
            format!("the API version in the data ({found}) does not match the expected API version ({api_version})");
        return Err(Failure::bad_request(message));
    }
    meta::decode(object)
}

/// The namespace of the path is the object's.
fn place(context: &Context, object: &mut Value) -> Result<()> {
    let found = meta::text(object, "namespace");
    match &context.namespace {
        Some(namespace) if found.is_empty() => {
            object["metadata"]["namespace"] = Value::String(namespace.clone());
        }
        Some(namespace) if found != namespace => {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Failure::bad_request(why));
        }
        _ => {}
    }
    Ok(())
}

async fn insert(context: &mut Context, mut object: Value, unknown: &[String], applied: bool) -> Result<Written> {
    let name = meta::text(&object, "name").to_owned();
    kinds::check_namespace(context, &name)?;
    let now = meta::now();
    let metadata = meta::map_mut(&mut object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"] {
        metadata.remove(field);
    }
    if !applied {
        metadata.remove("managedFields");
    }
    metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".into(), json!(now));
    if context.served.generation {
        metadata.insert("generation".into(), json!(1));
    } else {
        metadata.remove("generation");
    }
    kinds::drop_status(context, &mut object);
    judge(context, Operation::Create, None, &mut object, unknown).await?;
    kinds::finish(context, None, &mut object, &now)?;
    let subresource = context.subresource.as_deref();
    if !applied {
        managed_fields::track_update(
            None,
            &mut object,
            &context.manager,
            subresource,
            &context.served.info.schema,
            &now,
        );
    }
    let object = commit(context, &name, Expect::Absent, Some(object))
        .await
        .map_err(|error| match error {
            WriteError::Exists => {
                Failure::already_exists(&context.served.info.group, &context.served.info.plural, &name)
            }
            other => disk(other),
        })?;
    Ok(Written { object, created: true })
}

/// A version to store, and where it comes from.
pub struct Change {
    /// The next object, computed from the current one.
    pub object: Value,
    /// Managed fields are set already (server-side apply).
    pub applied: bool,
    /// Fields that the client sent and nobody knows, besides those of the schema.
    pub unknown: Vec<String>,
}

impl Change {
    /// An ordinary change.
    pub fn new(object: Value) -> Self {
        Self {
            object,
            applied: false,
            unknown: Vec::new(),
        }
    }
}

/// How the next version of an object is computed from the current one (`None`: there is none).
pub trait Compute: Send + Sync {
    /// The next version.
    ///
    /// # Errors
    /// The request is refused.
    fn compute(&self, current: Option<&Value>) -> Result<Change>;
}

impl<F: Fn(Option<&Value>) -> Result<Change> + Send + Sync> Compute for F {
    fn compute(&self, current: Option<&Value>) -> Result<Change> {
        self(current)
    }
}

/// Replaces an object by what `compute` makes of it. `create` allows that it does not exist yet.
///
/// # Errors
/// As for [`create`], and 404 and 409 about the current version.
pub async fn modify(context: &mut Context, name: &str, create: bool, compute: &dyn Compute) -> Result<Written> {
    for _ in 0..ATTEMPTS {
        let key = Key::new(&context.served.storage, context.namespace(), name);
        let Some(stored) = context.server.store.get(&key) else {
            if !create {
                return Err(context.not_found(name));
            }
            let mut change = compute.compute(None)?;
            change.unknown.extend(begin(context, &mut change.object)?);
            place(context, &mut change.object)?;
            rename(&mut change.object, name)?;
            match insert(context, change.object, &change.unknown, change.applied).await {
                Err(failure) if failure.0.reason.as_deref() == Some("AlreadyExists") => continue,
                done => return done,
            }
        };
        if let Some(object) = attempt(context, name, &stored, compute).await? {
            return Ok(Written { object, created: false });
        }
    }
    Err(context.modified(name))
}

fn rename(object: &mut Value, name: &str) -> Result<()> {
    match meta::text(object, "name") {
        "" => object["metadata"]["name"] = Value::String(name.to_owned()),
        found if found != name => {
            let message = format!("the name of the object ({found}) does not match the name on the URL ({name})");
            return Err(Failure::bad_request(message));
        }
        _ => {}
    }
    Ok(())
}

/// One try; `None` if another write came first.
async fn attempt(
    context: &mut Context,
    name: &str,
    stored: &Arc<Stored>,
    compute: &dyn Compute,
) -> Result<Option<Arc<Stored>>> {
    let current = context.served.value(stored);
    let Change {
        mut object,
        applied,
        mut unknown,
    } = compute.compute(Some(&current))?;
    unknown.extend(begin(context, &mut object)?);
    rename(&mut object, name)?;
    place(context, &mut object)?;
    check_version(context, name, &current, &object)?;
    keep_system_fields(&current, &mut object);
    kinds::prepare_update(context, &current, &mut object)?;
    check_finalizers(context, name, &current, &object)?;
    judge(context, Operation::Update, Some(&current), &mut object, &unknown).await?;
    let now = meta::now();
    if context.served.generation && spec_changed(context, &current, &object) {
        object["metadata"]["generation"] = json!(current["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
    }
    kinds::finish(context, Some(&current), &mut object, &now)?;
    if !applied {
        if same(&current, &object) {
            return Ok(Some(stored.clone()));
        }
        let subresource = context.subresource.as_deref();
        managed_fields::track_update(
            Some(&current),
            &mut object,
            &context.manager,
            subresource,
            &context.served.info.schema,
            &now,
        );
    } else if same(&current, &object) && same_managers(&current, &object) {
        return Ok(Some(stored.clone()));
    }
    let gone = meta::deleting(&object)
        && meta::finalizers(&object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && kinds::may_vanish(context, &object);
    match commit(
        context,
        name,
        Expect::Revision(stored.revision),
        (!gone).then_some(object),
    )
    .await
    {
        Ok(object) => Ok(Some(object)),
        Err(WriteError::Conflict | WriteError::Missing) => Ok(None),
        Err(other) => Err(disk(other)),
    }
}

fn check_version(context: &Context, name: &str, current: &Value, object: &Value) -> Result<()> {
    let asked = meta::text(object, "resourceVersion");
    let custom = context.served.crd.is_some();
    if asked.is_empty() && custom {
        let why = "Invalid value: 0x0: must be specified for an update";
        return Err(context.invalid(name, vec![cause("metadata.resourceVersion", "FieldValueInvalid", why)]));
    }
    if !asked.is_empty() && asked != meta::text(current, "resourceVersion") {
        return Err(context.modified(name));
    }
    let (uid, now) = (meta::text(object, "uid"), meta::text(current, "uid"));
    if !uid.is_empty() && uid != now {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {now}");
        return Err(context.conflict(name, &why));
    }
    Ok(())
}

/// What no client decides.
fn keep_system_fields(current: &Value, object: &mut Value) {
    let metadata = meta::map_mut(object);
    let fields = [
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generateName",
    ];
    for field in fields {
        match &current["metadata"][field] {
            Value::Null => metadata.remove(field),
            value => metadata.insert(field.to_owned(), value.clone()),
        };
    }
}

fn check_finalizers(context: &Context, name: &str, current: &Value, object: &Value) -> Result<()> {
    if !meta::deleting(current) {
        return Ok(());
    }
    let old = meta::finalizers(current);
    let new: Vec<String> = meta::finalizers(object)
        .into_iter()
        .filter(|finalizer| !old.contains(finalizer))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let why = "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers ";
    let list: Vec<String> = new.iter().map(|finalizer| format!("\"{finalizer}\"")).collect();
    let message = format!("{why}[]string{{{}}}", list.join(", "));
    Err(context.invalid(name, vec![cause("metadata.finalizers", "FieldValueForbidden", message)]))
}

/// Unknown fields, schema, defaults, rules, admission.
async fn judge(
    context: &mut Context,
    operation: Operation,
    old: Option<&Value>,
    object: &mut Value,
    unknown: &[String],
) -> Result<()> {
    let mut dropped = unknown.to_vec();
    dropped.extend(context.served.info.schema.prune(object));
    report_unknown(context, &dropped)?;
    settle(context, old, object)?;
    let Some(admission) = context.server.admission() else {
        return Ok(());
    };
    let (user, served) = (context.user.clone(), context.served.clone());
    let (namespace, subresource) = (context.namespace.clone(), context.subresource.clone());
    let name = meta::text(object, "name").to_owned();
    let input = AdmissionInput {
        operation,
        group: &served.info.group,
        version: &served.info.version,
        resource: &served.info.plural,
        subresource: subresource.as_deref(),
        namespace: namespace.as_deref(),
        name: &name,
        old,
        user: &user,
        dry_run: context.dry_run,
    };
    let before = object.clone();
    context.warnings.extend(admission.mutate(&input, object).await?);
    if before != *object {
        meta::decode(object)?;
        served.info.schema.prune(object);
        // Nor is a status created by those who complete objects.
        if operation == Operation::Create {
            kinds::drop_status(context, object);
        }
        settle(context, old, object)?;
    }
    context.warnings.extend(admission.validate(&input, Some(object)).await?);
    Ok(())
}

/// Defaults, and everything wrong by schema and rules. The rules of a kind see only objects that satisfy its schema.
fn settle(context: &Context, old: Option<&Value>, object: &mut Value) -> Result<()> {
    let info = &context.served.info;
    info.schema.drop_nulls(object);
    info.schema.default(object);
    let mut causes = meta::validate(&info.group, &info.plural, info.namespaced, object);
    causes.extend(info.schema.validate(object, old).into_iter().map(status_cause));
    refuse(context, object, causes)?;
    if old.is_none() {
        kinds::prepare_create(context, object);
    }
    info.default(object);
    let mut causes: Vec<StatusCause> = info.validate(object, old).into_iter().map(status_cause).collect();
    causes.extend(kinds::validate(context, object));
    refuse(context, object, causes)
}

fn status_cause(found: Cause) -> StatusCause {
    cause(&found.field, found.reason, found.message)
}

fn refuse(context: &Context, object: &Value, causes: Vec<StatusCause>) -> Result<()> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(context.invalid(meta::text(object, "name"), causes))
}

fn report_unknown(context: &mut Context, unknown: &[String]) -> Result<()> {
    if unknown.is_empty() || context.validation == FieldValidation::Ignore {
        return Ok(());
    }
    let texts: Vec<String> = unknown
        .iter()
        .map(|path| match path.strip_prefix("duplicate ") {
            Some(path) => format!("duplicate field \"{path}\""),
            None => format!("unknown field \"{path}\""),
        })
        .collect();
    if context.validation == FieldValidation::Warn {
        for text in texts {
            if !context.warnings.contains(&text) {
                context.warnings.push(text);
            }
        }
        return Ok(());
    }
    let info = &context.served.info;
    let message = format!(
        "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {2}",
        info.kind,
        info.version,
        texts.join(", ")
    );
    Err(Failure::bad_request(message))
}

fn without<'a>(object: &'a Value, fields: &'a [&str]) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !fields.contains(&key.as_str()))
}

/// Whether anything changed that a generation counts.
fn spec_changed(context: &Context, old: &Value, new: &Value) -> bool {
    let ignored: &[&str] = if context.served.status {
        &["metadata", "status", "apiVersion"]
    } else {
        &["metadata", "apiVersion"]
    };
    !without(old, ignored).eq(without(new, ignored))
}

/// Equal but for managed fields.
fn same(old: &Value, new: &Value) -> bool {
    let metadata = ["managedFields"];
    without(old, &["metadata"]).eq(without(new, &["metadata"]))
        && without(&old["metadata"], &metadata).eq(without(&new["metadata"], &metadata))
}

/// Equal managed fields but for their times.
fn same_managers(old: &Value, new: &Value) -> bool {
    let entries = |object: &Value| -> Vec<Value> {
        let mut entries = object["metadata"]["managedFields"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for entry in &mut entries {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
        entries
    };
    entries(old) == entries(new)
}

/// Stores (or, in a dry run, pretends to).
pub(super) async fn commit(
    context: &Context,
    name: &str,
    expect: Expect,
    object: Option<Value>,
) -> Result<Arc<Stored>, WriteError> {
    let key = Key::new(&context.served.storage, context.namespace(), name);
    if context.dry_run {
        return dry_commit(context, key, expect, object);
    }
    let write = match object {
        Some(mut object) => {
            context.served.to_storage(&mut object);
            Write::Put(object)
        }
        None => Write::Delete,
    };
    let stored = context.server.store.write(key, expect, write).await?;
    kinds::stored(context, &stored);
    Ok(stored)
}

fn dry_commit(context: &Context, key: Key, expect: Expect, object: Option<Value>) -> Result<Arc<Stored>, WriteError> {
    let current = context.server.store.get(&key);
    match (expect, &current) {
        (Expect::Absent, Some(_)) => return Err(WriteError::Exists),
        (Expect::Revision(_), None) => return Err(WriteError::Missing),
        (Expect::Revision(expected), Some(current)) if current.revision != expected => {
            return Err(WriteError::Conflict);
        }
        _ => {}
    }
    match (object, current) {
        (Some(mut object), current) => {
            context.served.to_storage(&mut object);
            let body = serde_json::to_vec(&object).unwrap_or_default().into();
            let revision = current.map_or(0, |current| current.revision);
            Ok(Arc::new(Stored {
                key,
                revision,
                body,
                uid: meta::text(&object, "uid").into(),
                owners: Box::default(),
            }))
        }
        (None, Some(current)) => Ok(current),
        (None, None) => Err(WriteError::Missing),
    }
}

/// A write that the disk refused.
pub(super) fn disk(error: WriteError) -> Failure {
    tracing::error!(%error, "a write failed");
    Failure::internal(error)
}
