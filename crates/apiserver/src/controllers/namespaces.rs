//! Containers of objects on their way out: namespaces and CRDs. And what every namespace has.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{NAME, context, delete_object, gc, gone_is_fine};
use crate::failure::{Failure, Result};
use crate::rest::context::Context;
use crate::rest::subresources::set_namespace_finalizers;
use crate::rest::{kinds, meta, write};
use crate::server::Inner;
use crate::store::{Key, Page, Stored};

/// Name of the ConfigMap that pods know the server's certificate by.
const ROOT_CA: &str = "kube-root-ca.crt";

fn objects(server: &Inner, resource: &str, namespace: Option<&str>) -> Vec<Arc<Stored>> {
    server
        .store
        .list(resource, namespace, None, Page::default())
        .map(|list| list.objects)
        .unwrap_or_default()
}

/// Deletes everything in the list that is not being deleted yet. The first refusal is returned when all were tried.
async fn delete_all(server: &Arc<Inner>, list: &[Arc<Stored>]) -> Result<()> {
    let mut refused = Ok(());
    for stored in list.iter().filter(|stored| !meta::deleting(&stored.value())) {
        let done = delete_object(server, stored, None).await;
        refused = refused.and(done);
    }
    refused
}

/// Empties a namespace that is being deleted; ends it when it is empty.
///
/// # Errors
/// A delete was refused.
pub(super) async fn namespace(server: &Arc<Inner>, name: &str) -> Result<()> {
    let key = Key::new(&kinds::NAMESPACES.into(), "", name);
    let Some(stored) = server.store.get(&key).filter(|stored| meta::deleting(&stored.value())) else {
        return Ok(());
    };
    let registry = server.registry();
    let resources: Vec<_> = registry
        .storages()
        .filter(|served| served.info.namespaced)
        .map(|served| served.storage.clone())
        .collect();
    let mut refused = Ok(());
    for resource in &resources {
        let done = delete_all(server, &objects(server, resource, Some(name))).await;
        refused = refused.and(done);
    }
    refused?;
    if resources
        .iter()
        .any(|resource| !objects(server, resource, Some(name)).is_empty())
    {
        // The end of the last object brings us back.
        return Ok(());
    }
    let Some(mut context) = context(server, &stored.key) else {
        return Ok(());
    };
    gone_is_fine(
        set_namespace_finalizers(&mut context, name, Value::Null)
            .await
            .map(|_| ()),
    )
}

/// Gives a namespace its `default` service account, and the authority that pods know this server by.
///
/// # Errors
/// A create was refused.
pub(super) async fn account(server: &Arc<Inner>, namespace: &str) -> Result<()> {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
    ensure(server, kinds::ACCOUNTS, namespace, "default", account).await?;
    let Some(authority) = &server.root_ca else {
        return Ok(());
    };
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ROOT_CA, "namespace": namespace},
        "data": {"ca.crt": authority},
    });
    ensure(server, kinds::CONFIG_MAPS, namespace, ROOT_CA, map).await
}

/// Creates an object unless it is there, or its namespace goes.
async fn ensure(server: &Arc<Inner>, resource: &str, namespace: &str, name: &str, object: Value) -> Result<()> {
    let Some(stored) = server.store.get(&Key::new(&kinds::NAMESPACES.into(), "", namespace)) else {
        return Ok(());
    };
    let known = server.store.get(&Key::new(&resource.into(), namespace, name)).is_some();
    if known || meta::deleting(&stored.value()) {
        return Ok(());
    }
    let Some(served) = server.registry().stored(resource) else {
        return Ok(());
    };
    let mut context = Context::internal(server, served, Some(namespace), NAME);
    match write::create(&mut context, object).await {
        Err(Failure(status)) if matches!(status.reason.as_deref(), Some("AlreadyExists" | "NotFound")) => Ok(()),
        done => done.map(|_| ()),
    }
}

/// Deletes the objects of a CRD that is being deleted; ends it when they are gone.
///
/// # Errors
/// A delete was refused.
pub(super) async fn crd(server: &Arc<Inner>, name: &str) -> Result<()> {
    let key = Key::new(&kinds::CRDS.into(), "", name);
    let Some(stored) = server.store.get(&key) else {
        return Ok(());
    };
    let crd = stored.value();
    if !meta::deleting(&crd) {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = format!(
        "{}/{}",
        text(&crd["spec"]["group"]),
        text(&crd["spec"]["names"]["plural"])
    );
    let ours = server
        .registry()
        .stored(&resource)
        .is_some_and(|served| served.crd.as_deref() == Some(name));
    if ours {
        delete_all(server, &objects(server, &resource, None)).await?;
        if !objects(server, &resource, None).is_empty() {
            return Ok(());
        }
    }
    gc::remove_finalizer(server, &stored, kinds::CRD_CLEANUP).await
}
