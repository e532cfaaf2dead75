//! What comes after an object's name.

use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::context::{Context, Query};
use super::delete::{self, Options};
use super::present::{Form, add_warnings, document, json_response};
use super::write::{Change, modify};
use super::{accept, meta, patch, put, read};
use crate::builtin::ScalePaths;
use crate::failure::{Failure, Result, cause};
use crate::hooks::LogOptions;
use crate::registry::at_path;

/// Answers a request to a subresource that the resource has.
///
/// # Errors
/// The `Status` that the client gets.
pub async fn handle(mut context: Context, name: &str, query: &Query, request: Request<Body>) -> Result<Response<Body>> {
    let subresource = context.subresource.clone().unwrap_or_default();
    let storage = context.served.storage.clone();
    match (&*storage, subresource.as_str(), request.method().clone()) {
        (_, "status", Method::GET | Method::HEAD) => read::get(&context, name, query, request.headers()),
        (_, "status", Method::PUT) => put(&mut context, name, request).await,
        (_, "status", Method::PATCH) => patch::handle(&mut context, name, query, request).await,
        (_, "scale", _) => scale(&mut context, name, query, request).await,
        ("/pods", "binding", Method::POST) => bind(&mut context, name, request).await,
        ("/pods", "eviction", Method::POST) => evict(&mut context, name, query, request).await,
        ("/pods", "log", Method::GET) => {
            read::find(&context, name)?;
            let options = log_options(query)?;
            let kubelet = context.server.kubelet().ok_or_else(no_kubelet)?;
            Ok(kubelet.logs(context.namespace(), name, options).await)
        }
        ("/pods", "exec" | "attach" | "portforward", Method::GET | Method::POST) => {
            read::find(&context, name)?;
            let kubelet = context.server.kubelet().ok_or_else(no_kubelet)?;
            Ok(kubelet.connect(context.namespace(), name, &subresource, request).await)
        }
        ("/namespaces", "finalize", Method::PUT) => finalize(&mut context, name, request).await,
        ("/serviceaccounts", "token", Method::POST) => token(&mut context, name, request).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

fn no_kubelet() -> Failure {
    Failure::unavailable("nothing on this server runs pods")
}

fn log_options(query: &Query) -> Result<LogOptions> {
    Ok(LogOptions {
        container: query.get("container").map(str::to_owned),
        follow: query.flag("follow"),
        tail_lines: query.number("tailLines")?,
        since_seconds: query.number("sinceSeconds")?,
        timestamps: query.flag("timestamps"),
        previous: query.flag("previous"),
        limit_bytes: query.number("limitBytes")?,
    })
}

/// `Success` with 201, as bindings and evictions answer.
fn created() -> Response<Body> {
    let body =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}).to_string();
    json_response(StatusCode::CREATED, body)
}

async fn bind(context: &mut Context, name: &str, request: Request<Body>) -> Result<Response<Body>> {
    let (_, binding, _) = accept(context, request).await?;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        return Err(Failure::invalid(
            "",
            "Binding",
            name,
            vec![cause("target.name", "FieldValueRequired", "Required value")],
        ));
    }
    let (uid, annotations) = (
        meta::text(&binding, "uid").to_owned(),
        binding["metadata"]["annotations"].clone(),
    );
    let (pod, now) = (name.to_owned(), meta::now());
    let compute = move |current: Option<&Value>| {
        let mut next = current.cloned().unwrap_or_default();
        let conflict = |why: &str| Failure::conflict("", "pods/binding", &pod, why);
        if !uid.is_empty() && meta::text(&next, "uid") != uid {
            return Err(conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta::text(&next, "uid")
            )));
        }
        if meta::deleting(&next) {
            return Err(conflict(&format!(
                "pod {pod} is being deleted, cannot be assigned to a host"
            )));
        }
        if let Some(assigned) = next["spec"]["nodeName"]
            .as_str()
            .filter(|assigned| !assigned.is_empty())
        {
            return Err(conflict(&format!(
                "pod {pod} is already assigned to node \"{assigned}\""
            )));
        }
        next["spec"]["nodeName"] = json!(node);
        for (key, value) in annotations.as_object().into_iter().flatten() {
            next["metadata"]["annotations"][key] = value.clone();
        }
        let mut conditions = next["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions
            .push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
        next["status"]["conditions"] = Value::Array(conditions);
        Ok(Change::new(next))
    };
    modify(context, name, false, &compute).await?;
    Ok(created())
}

async fn evict(context: &mut Context, name: &str, query: &Query, request: Request<Body>) -> Result<Response<Body>> {
    let (_, eviction, headers) = accept(context, request).await?;
    let bytes = match &eviction["deleteOptions"] {
        Value::Null => Vec::new(),
        options => serde_json::to_vec(options).unwrap_or_default(),
    };
    let options = Options::parse(query, &headers, &bytes)?;
    context.subresource = None;
    delete::delete(context, name, &options).await?;
    Ok(created())
}

async fn finalize(context: &mut Context, name: &str, request: Request<Body>) -> Result<Response<Body>> {
    let (form, object, _) = accept(context, request).await?;
    let written = set_namespace_finalizers(context, name, object["spec"]["finalizers"].clone()).await?;
    Ok(super::written_response(context, &written, form))
}

/// Sets `spec.finalizers` of a namespace; the last one that goes takes a deleted namespace along.
///
/// # Errors
/// As for [`modify`].
pub async fn set_namespace_finalizers(
    context: &mut Context,
    name: &str,
    finalizers: Value,
) -> Result<super::write::Written> {
    context.subresource = Some("finalize".to_owned());
    let compute = move |current: Option<&Value>| {
        let mut next = current.cloned().unwrap_or_default();
        next["spec"] = if finalizers.as_array().is_none_or(Vec::is_empty) {
            json!({})
        } else {
            json!({"finalizers": finalizers})
        };
        Ok(Change::new(next))
    };
    modify(context, name, false, &compute).await
}

async fn token(context: &mut Context, name: &str, request: Request<Body>) -> Result<Response<Body>> {
    let (_, mut review, _) = accept(context, request).await?;
    let account = read::find(context, name)?;
    let seconds = review["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(3600)
        .clamp(600, 1 << 32);
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let token = context
        .server
        .tokens
        .issue(context.namespace(), name, &account.uid, until);
    review["kind"] = json!("TokenRequest");
    review["apiVersion"] = json!("authentication.k8s.io/v1");
    review["spec"]["expirationSeconds"] = json!(seconds);
    review["status"] = json!({"token": token, "expirationTimestamp": until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Ok(json_response(StatusCode::CREATED, review.to_string()))
}

async fn scale(context: &mut Context, name: &str, query: &Query, request: Request<Body>) -> Result<Response<Body>> {
    let paths = context.served.info.scale.clone().ok_or_else(Failure::no_such_path)?;
    let method = request.method().clone();
    if matches!(method, Method::GET | Method::HEAD) {
        let stored = read::find(context, name)?;
        return Ok(document(&scale_of(&paths, &context.served.value(&stored))));
    }
    let (head, body) = request.into_parts();
    let form = Form::accepted(&head.headers)?;
    if !matches!(method, Method::PUT | Method::PATCH) || form != Form::Object {
        return Err(Failure::method_not_allowed());
    }
    let patch = if method == Method::PATCH {
        Some(patch::Patch::read(context, query, &head.headers, body).await?)
    } else {
        let parsed = super::body::parse("application/json", &super::body::read(body).await?)?;
        context.warnings.extend(
            parsed
                .duplicates
                .iter()
                .map(|path| format!("duplicate field \"{path}\"")),
        );
        return write_scale(context, name, paths, &|_| Ok(parsed.value.clone())).await;
    };
    let facts = patch::Facts::new(context, name);
    let apply = move |scale: &Value| match &patch {
        Some(patch) => patch.apply(&facts, Some(scale)).map(|change| change.object),
        None => Ok(scale.clone()),
    };
    write_scale(context, name, paths, &apply).await
}

async fn write_scale(
    context: &mut Context,
    name: &str,
    paths: ScalePaths,
    next: &(dyn Fn(&Value) -> Result<Value> + Send + Sync),
) -> Result<Response<Body>> {
    // The scale is another view of the object: the change passes as a change of its spec.
    let compute = {
        let (paths, name) = (paths.clone(), name.to_owned());
        move |current: Option<&Value>| {
            let mut object = current.cloned().unwrap_or_default();
            let scale = next(&scale_of(&paths, &object))?;
            let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
            if replicas < 0 {
                let why = format!("Invalid value: {replicas}: should be a non-negative integer");
                return Err(Failure::invalid(
                    "autoscaling",
                    "Scale",
                    &name,
                    vec![cause("spec.replicas", "FieldValueInvalid", why)],
                ));
            }
            if let Some(version) = scale["metadata"]["resourceVersion"]
                .as_str()
                .filter(|version| !version.is_empty())
            {
                object["metadata"]["resourceVersion"] = json!(version);
            }
            set_path(&mut object, &paths.spec_replicas, json!(replicas));
            Ok(Change::new(object))
        }
    };
    let written = modify(context, name, false, &compute).await?;
    let mut response = document(&scale_of(&paths, &context.served.value(&written.object)));
    add_warnings(&mut response, &context.warnings);
    Ok(response)
}

/// `autoscaling/v1` Scale of an object.
fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[field].is_null() {
            kept[field] = metadata[field].clone();
        }
    }
    let mut status = json!({"replicas": at_path(object, &paths.status_replicas).as_i64().unwrap_or(0)});
    if let Some(selector) = paths
        .label_selector
        .as_deref()
        .and_then(|path| at_path(object, path).as_str())
    {
        status["selector"] = json!(selector);
    }
    let replicas = at_path(object, &paths.spec_replicas).as_i64().unwrap_or(0);
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept, "spec": {"replicas": replicas}, "status": status})
}

fn set_path(object: &mut Value, path: &str, value: Value) {
    let mut at = object;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}
