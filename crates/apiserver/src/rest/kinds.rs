//! What is special about single built-in kinds, in the order in which a write meets it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use serde_json::{Value, json};

use super::context::Context;
use super::meta;
use crate::crd;
use crate::failure::{Failure, Result, cause};
use crate::store::{Key, Stored};

/// Storage key of namespaces.
pub const NAMESPACES: &str = "/namespaces";
/// Storage key of CRDs.
pub const CRDS: &str = "apiextensions.k8s.io/customresourcedefinitions";
/// Storage key of events.
pub const EVENTS: &str = "/events";
/// Storage key of service accounts.
pub const ACCOUNTS: &str = "/serviceaccounts";
/// ConfigMaps.
pub const CONFIG_MAPS: &str = "/configmaps";
/// Storage key of pods.
pub const PODS: &str = "/pods";
/// The finalizer that keeps a CRD until its objects are gone.
pub const CRD_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Nothing is created in a namespace that is absent or on its way out, or of a kind that is on its way out.
///
/// # Errors
/// 404, 403 or 405.
pub fn check_namespace(context: &Context, name: &str) -> Result<()> {
    if context.served.terminating {
        let message = "create not allowed while custom resource definition is terminating";
        return Err(Failure::method_not_allowed().with_message(message));
    }
    let Some(namespace) = &context.namespace else {
        return Ok(());
    };
    let key = Key::new(&NAMESPACES.into(), "", namespace);
    let stored = context
        .server
        .store
        .get(&key)
        .ok_or_else(|| Failure::not_found("", "namespaces", namespace))?;
    if meta::deleting(&stored.value()) {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut failure = context.forbidden(name, &why);
        let message = format!("namespace {namespace} is being terminated");
        failure.0.details.get_or_insert_default().causes =
            Some(vec![cause("metadata.namespace", "NamespaceTerminating", message)]);
        return Err(failure);
    }
    Ok(())
}

/// A status is not created by clients, but nodes register themselves with theirs.
pub fn drop_status(context: &Context, object: &mut Value) {
    if context.served.status
        && &*context.served.storage != "/nodes"
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
}

/// What a new object starts with. Its schema is satisfied. Idempotent.
pub fn prepare_create(context: &Context, object: &mut Value) {
    context.served.info.prepare_create(object);
    match &*context.served.storage {
        PODS => assign_account(object),
        CRDS => {
            crd::default(object);
            let mut finalizers = meta::finalizers(object);
            if !finalizers.iter().any(|finalizer| finalizer == CRD_CLEANUP) {
                finalizers.push(CRD_CLEANUP.to_owned());
                meta::set_finalizers(object, &finalizers);
            }
        }
        _ => {}
    }
}

/// Pods run as the namespace's `default` account unless they say otherwise.
fn assign_account(pod: &mut Value) {
    let Some(spec) = pod["spec"].as_object_mut() else {
        return;
    };
    let account = spec
        .get("serviceAccountName")
        .or_else(|| spec.get("serviceAccount"))
        .cloned()
        .unwrap_or_else(|| json!("default"));
    spec.insert("serviceAccountName".into(), account.clone());
    spec.insert("serviceAccount".into(), account);
}

/// What an update through this path may not touch keeps its current value.
///
/// # Errors
/// None so far; the signature leaves room for kinds that refuse.
pub fn prepare_update(context: &Context, current: &Value, object: &mut Value) -> Result<()> {
    match context.subresource.as_deref() {
        Some("status") => {
            let status = object.get("status").cloned();
            let metadata = object["metadata"].take();
            *object = current.clone();
            // Built-in kinds accept labels and annotations here, custom ones nothing but the status.
            if context.served.crd.is_none() {
                object["metadata"] = metadata;
                object["metadata"]["ownerReferences"] = current["metadata"]["ownerReferences"].clone();
                if object["metadata"]["ownerReferences"].is_null() {
                    meta::map_mut(object).remove("ownerReferences");
                }
            }
            set_or_remove(object, "status", status);
        }
        None if context.served.status => set_or_remove(object, "status", current.get("status").cloned()),
        _ => {}
    }
    match (&*context.served.storage, context.subresource.as_deref()) {
        (NAMESPACES, None) => set_or_remove(object, "spec", current.get("spec").cloned()),
        (CRDS, None) => crd::default(object),
        _ => {}
    }
    Ok(())
}

fn set_or_remove(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) if !value.is_null() => map.insert(field.to_owned(), value),
        _ => map.remove(field),
    };
}

/// What the schema and the kind's own rules do not say.
pub fn validate(context: &Context, object: &Value) -> Vec<StatusCause> {
    if &*context.served.storage == CRDS {
        crd::validate(object)
    } else {
        Vec::new()
    }
}

/// The last word before an object is stored.
///
/// # Errors
/// None so far; the signature leaves room for kinds that refuse.
pub fn finish(context: &Context, old: Option<&Value>, object: &mut Value, now: &str) -> Result<()> {
    if &*context.served.storage == CRDS && context.subresource.is_none() {
        if let Some(old) = old {
            object["status"] = old["status"].clone();
        }
        crd::set_status(object, &context.server.registry(), now);
    }
    Ok(())
}

/// Whether the kind itself lets go of an object whose finalizers are gone.
pub fn may_vanish(context: &Context, object: &Value) -> bool {
    &*context.served.storage != NAMESPACES || object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// Seconds that a delete waits for the one who runs the object; zero for everything but running pods.
pub fn grace(context: &Context, object: &Value, asked: Option<i64>) -> i64 {
    if &*context.served.storage != PODS {
        return 0;
    }
    let running = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !running || ended {
        return 0;
    }
    asked
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .max(0)
}

/// After a write: what the server itself derives from objects.
pub fn stored(context: &Context, stored: &Stored) {
    if &*context.served.storage == CRDS {
        context.server.serve_crd(&stored.key);
    }
}
