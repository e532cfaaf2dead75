//! One watch per kind, into its [`Cache`].

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;
use kube::Resource;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Change, Kept};

/// Feeds `cache` from a watch of `api` until `shutdown`, and tells `changed` of each change. `ready` is answered when
/// the cache is complete for the first time. An object that cannot be read is reported and left out: it never stops
/// the watch.
pub async fn feed<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    cache: Arc<Cache<K>>,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
    changed: impl Fn(&Change<K>),
) where
    K: Kept + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut ready = Some(ready);
    let mut events = pin!(watch(api, config).default_backoff());
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        let event = match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(kind = %K::kind(&()), %error, "a watch failed and starts anew");
                continue;
            }
            Some(Ok(event)) => event,
        };
        let complete = matches!(event, Event::InitDone);
        let Some(event) = readable(event) else { continue };
        for change in cache.apply(event, Timestamp::now()) {
            changed(&change);
        }
        if complete && let Some(ready) = ready.take() {
            // Nobody waits any more when the process ends.
            let _ = ready.send(());
        }
    }
}

fn readable<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let read = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let (namespace, name) = (invalid.metadata.namespace.unwrap_or_default(), invalid.metadata.name);
            let name = name.unwrap_or_default();
            tracing::warn!(kind = %K::kind(&()), namespace, name, error = invalid.error, "an object cannot be read");
            None
        }
    };
    Some(match event {
        Event::Apply(guard) => Event::Apply(read(guard)?),
        Event::InitApply(guard) => Event::InitApply(read(guard)?),
        Event::Delete(guard) => Event::Delete(read(guard)?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}
