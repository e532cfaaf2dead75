//! Delete: at once, after a grace period, or when the last finalizer is gone.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::context::{Context, Query};
use super::present::{document, json_response};
use super::read::{Selection, whole};
use super::write::{commit, disk};
use super::{body, kinds, meta};
use crate::failure::{Failure, Result};
use crate::hooks::{AdmissionInput, Operation};
use crate::store::{Expect, Key, Page, Stored, WriteError};

/// The garbage collector's finalizer that waits for dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The garbage collector's finalizer that frees dependents.
pub const ORPHAN: &str = "orphan";

/// What happens to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go afterwards.
    Background,
    /// They go first.
    Foreground,
    /// They stay.
    Orphan,
}

/// Options of a delete.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seconds.
    pub grace: Option<i64>,
    /// About dependents; by default what the object's finalizers say, else background.
    pub propagation: Option<Propagation>,
    /// Only this object.
    pub uid: Option<String>,
    /// Only this version.
    pub resource_version: Option<String>,
    /// Nothing is stored.
    pub dry_run: bool,
}

impl Options {
    /// Reads the query and the body; the body wins.
    ///
    /// # Errors
    /// 400 for malformed options.
    pub fn parse(query: &Query, headers: &HeaderMap, bytes: &[u8]) -> Result<Self> {
        let mut options = Self::default();
        if let Some(seconds) = query.get("gracePeriodSeconds") {
            let seconds = seconds
                .parse()
                .map_err(|_| Failure::bad_request("gracePeriodSeconds: Invalid value: must be a whole number"))?;
            options.grace = Some(seconds);
        }
        options.propagation = query.get("propagationPolicy").map(propagation).transpose()?;
        if query.get("orphanDependents").is_some() {
            options.propagation = Some(if query.flag("orphanDependents") {
                Propagation::Orphan
            } else {
                Propagation::Background
            });
        }
        options.dry_run = query.get("dryRun").is_some();
        if !bytes.is_empty() {
            let content = headers
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            options.read_body(&body::parse(content, bytes)?.value)?;
        }
        if options.grace.is_some_and(|grace| grace < 0) {
            options.grace = Some(1);
        }
        Ok(options)
    }

    fn read_body(&mut self, body: &Value) -> Result<()> {
        if !body.is_object() {
            return Err(Failure::bad_request("the body of a delete must be DeleteOptions"));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.grace = body["gracePeriodSeconds"].as_i64().or(self.grace);
        if let Some(policy) = body["propagationPolicy"].as_str() {
            self.propagation = Some(propagation(policy)?);
        } else if let Some(orphan) = body["orphanDependents"].as_bool() {
            self.propagation = Some(if orphan {
                Propagation::Orphan
            } else {
                Propagation::Background
            });
        }
        self.uid = text(&body["preconditions"]["uid"]);
        self.resource_version = text(&body["preconditions"]["resourceVersion"]);
        self.dry_run |= body["dryRun"].as_array().is_some_and(|list| !list.is_empty());
        Ok(())
    }
}

fn propagation(text: &str) -> Result<Propagation> {
    match text {
        "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => {
            let supported = "supported values: \"Background\", \"Foreground\", \"Orphan\"";
            Err(Failure::bad_request(format!(
                "propagationPolicy: Unsupported value: \"{other}\": {supported}"
            )))
        }
    }
}

/// What a delete did.
pub struct Deleted {
    /// The object as it is now, or as it was last.
    pub object: Arc<Stored>,
    /// It does not exist any more.
    pub gone: bool,
}

/// DELETE of one object.
///
/// # Errors
/// 404, 409 for preconditions, or what admission says.
pub async fn delete(context: &mut Context, name: &str, options: &Options) -> Result<Deleted> {
    context.dry_run |= options.dry_run;
    loop {
        let key = Key::new(&context.served.storage, context.namespace(), name);
        let stored = context.server.store.get(&key).ok_or_else(|| context.not_found(name))?;
        let current = context.served.value(&stored);
        check_preconditions(context, name, &current, options)?;
        admit(context, name, &current).await?;
        let next = next(context, &current, options);
        let gone = next.is_none();
        if next.as_ref() == Some(&current) {
            return Ok(Deleted { object: stored, gone });
        }
        match commit(context, name, Expect::Revision(stored.revision), next).await {
            Ok(object) => return Ok(Deleted { object, gone }),
            Err(WriteError::Conflict) => {}
            Err(WriteError::Missing) => return Err(context.not_found(name)),
            Err(other) => return Err(disk(other)),
        }
    }
}

fn check_preconditions(context: &Context, name: &str, current: &Value, options: &Options) -> Result<()> {
    let now = meta::text(current, "uid");
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != now) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {now}");
        return Err(context.conflict(name, &why));
    }
    let now = meta::text(current, "resourceVersion");
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != now) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {now}"
        );
        return Err(context.conflict(name, &why));
    }
    Ok(())
}

async fn admit(context: &mut Context, name: &str, current: &Value) -> Result<()> {
    if &*context.served.storage == kinds::NAMESPACES && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(context.forbidden(name, "this namespace may not be deleted"));
    }
    let Some(admission) = context.server.admission() else {
        return Ok(());
    };
    let input = AdmissionInput {
        operation: Operation::Delete,
        group: &context.served.info.group,
        version: &context.served.info.version,
        resource: &context.served.info.plural,
        subresource: None,
        namespace: context.namespace.as_deref(),
        name,
        old: Some(current),
        user: &context.user,
        dry_run: context.dry_run,
    };
    let warnings = admission.validate(&input, None).await?;
    context.warnings.extend(warnings);
    Ok(())
}

/// The object on its way out; `None` if nothing holds it.
fn next(context: &Context, current: &Value, options: &Options) -> Option<Value> {
    let mut object = current.clone();
    let mut finalizers = meta::finalizers(current);
    if let Some(propagation) = options.propagation {
        finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
            Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
        }
        meta::set_finalizers(&mut object, &finalizers);
    }
    let grace = kinds::grace(context, current, options.grace);
    if grace == 0 && finalizers.is_empty() && kinds::may_vanish(context, current) {
        return None;
    }
    let since = current["metadata"]["deletionTimestamp"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    let old_grace = current["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let until = match since {
        // A second delete may only shorten the wait.
        Some(_) if grace >= old_grace => return Some(object),
        Some(until) => until - SignedDuration::from_secs(old_grace) + SignedDuration::from_secs(grace),
        None => Timestamp::now() + SignedDuration::from_secs(grace),
    };
    let metadata = meta::map_mut(&mut object);
    metadata.insert(
        "deletionTimestamp".into(),
        json!(until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    );
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
    if since.is_none()
        && let Some(generation) = current["metadata"]["generation"].as_i64()
    {
        metadata.insert("generation".into(), json!(generation + 1));
    }
    if &*context.served.storage == kinds::NAMESPACES {
        object["status"]["phase"] = json!("Terminating");
    }
    Some(object)
}

/// The answer to a delete.
pub fn answer(context: &Context, name: &str, deleted: &Deleted) -> Response<Body> {
    if !deleted.gone || &*context.served.storage == kinds::PODS {
        return json_response(StatusCode::OK, context.served.json(&deleted.object).into_owned());
    }
    let info = &context.served.info;
    let mut details = json!({"name": name, "kind": info.plural, "uid": &*deleted.object.uid});
    if !info.group.is_empty() {
        details["group"] = Value::String(info.group.clone());
    }
    document(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}))
}

/// DELETE of all objects that a selection names; answers with them.
///
/// # Errors
/// Those of [`delete`], but objects that are gone meanwhile are no error.
pub async fn delete_collection(context: &mut Context, query: &Query, options: &Options) -> Result<Response<Body>> {
    let selection = Selection::parse(context, query)?;
    let list = context.server.store.list(
        &context.served.storage,
        context.namespace.as_deref(),
        None,
        Page::default(),
    );
    let list = list.map_err(|expired| Failure::expired(0, expired.oldest))?;
    let namespace = context.namespace.clone();
    let mut deleted = Vec::new();
    for stored in list.objects {
        if !selection.matches(context, &stored) {
            continue;
        }
        context.namespace = Some(stored.key.namespace().to_owned()).filter(|namespace| !namespace.is_empty());
        match delete(context, stored.key.name(), options).await {
            Ok(done) => deleted.push(done.object),
            Err(failure) if failure.code() == StatusCode::NOT_FOUND => {}
            Err(failure) => return Err(failure),
        }
    }
    context.namespace = namespace;
    let meta = json!({"resourceVersion": context.server.store.revision().to_string()});
    Ok(json_response(StatusCode::OK, whole(context, &meta, &deleted)))
}
