//! Watch: a response that goes on.
//!
//! A watcher owns no queue: it has a revision, and when its resource is signalled it takes from the log what came after it.
//! A slow client costs nothing and loses nothing while the log reaches back; otherwise it is told 410 and lists again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::failure::{Failure, Result};
use crate::rest::context::{Context, Query};
use crate::rest::present::{Form, json_response};
use crate::rest::read::{Selection, include};
use crate::store::{Change, Event, Page, Stored};
use crate::table::IncludeObject;

/// Bytes after which a chunk is sent even if more is waiting.
const CHUNK: usize = 256 << 10;
const INITIAL_END: &str = "k8s.io/initial-events-end";

struct Watch {
    context: Context,
    selection: Selection,
    form: Form,
    include: IncludeObject,
    bookmarks: bool,
    revision: u64,
    changed: tokio::sync::watch::Receiver<u64>,
    deadline: Instant,
    /// What is ready to be sent.
    ready: VecDeque<Bytes>,
    ended: bool,
}

/// Starts a watch.
///
/// # Errors
/// 400 for malformed options; 410 comes as an event, as in Kubernetes.
pub fn watch(context: Context, query: &Query, headers: &HeaderMap, name: Option<&str>) -> Result<Response<Body>> {
    let form = Form::accepted(headers)?;
    let initial = query.get("sendInitialEvents").is_some();
    if initial && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        let why = "resourceVersionMatch is required with sendInitialEvents, and must be \"NotOlderThan\"";
        return Err(Failure::bad_request(format!("resourceVersionMatch: Forbidden: {why}")));
    }
    let initial = initial && query.flag("sendInitialEvents");
    let seconds = match query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0) {
        Some(seconds) => seconds,
        None => rand::rng().random_range(1800..3600),
    };
    let asked = query.number("resourceVersion")?.unwrap_or(0);
    let mut watch = Watch {
        selection: Selection::parse(&context, query)?.with_name(name)?,
        form,
        include: include(query)?,
        bookmarks: query.flag("allowWatchBookmarks"),
        revision: asked,
        changed: context.server.store.changes(&context.served.storage),
        deadline: Instant::now() + Duration::from_secs(seconds),
        ready: VecDeque::new(),
        ended: false,
        context,
    };
    if query.get("sendInitialEvents") == Some("false") && asked == 0 {
        watch.revision = watch.context.server.store.revision();
    } else if initial || asked == 0 {
        watch.start_with_objects(initial);
    }
    let body = Body::from_stream(stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), watch))
    }));
    Ok(json_response(StatusCode::OK, body))
}

impl Watch {
    /// The current objects as ADDED events; then, if asked for, the bookmark that says that these were all.
    fn start_with_objects(&mut self, bookmark: bool) {
        let store = &self.context.server.store;
        let Ok(snapshot) = store.list(
            &self.context.served.storage,
            self.context.namespace.as_deref(),
            None,
            Page::default(),
        ) else {
            return;
        };
        self.revision = snapshot.revision;
        let mut chunk = Vec::new();
        for stored in snapshot.objects {
            if self.selection.matches(&self.context, &stored) {
                self.push(&mut chunk, "ADDED", &stored);
            }
        }
        if bookmark {
            self.push_bookmark(&mut chunk, true);
        }
        self.flush(&mut chunk);
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            self.take();
            if !self.ready.is_empty() || self.ended {
                continue;
            }
            let shutdown = self.context.server.shutdown.clone();
            tokio::select! {
                changed = self.changed.changed() => self.ended = changed.is_err(),
                () = sleep_until(self.deadline) => self.end(),
                () = shutdown.cancelled() => self.ended = true,
            }
        }
    }

    fn end(&mut self) {
        self.take();
        if self.bookmarks && !self.ended {
            let mut chunk = Vec::new();
            self.push_bookmark(&mut chunk, false);
            self.flush(&mut chunk);
        }
        self.ended = true;
    }

    /// Takes what the log has after our revision.
    fn take(&mut self) {
        let context = &self.context;
        match context
            .server
            .store
            .events_after(&context.served.storage, self.revision)
        {
            Ok((events, revision)) => {
                // The log was shortened but nothing here changed: tell a newer revision before ours is forgotten.
                let quiet = events.is_empty() && revision > self.revision + 1000;
                let mut chunk = Vec::new();
                for event in events {
                    self.translate(&mut chunk, &event);
                }
                self.revision = self.revision.max(revision);
                if quiet && self.bookmarks {
                    self.push_bookmark(&mut chunk, false);
                }
                self.flush(&mut chunk);
            }
            Err(expired) => {
                let status: Value =
                    serde_json::from_slice(&Failure::expired(self.revision, expired.oldest).body()).unwrap_or_default();
                self.ready
                    .push_back(format!("{}\n", json!({"type": "ERROR", "object": status})).into());
                self.ended = true;
            }
        }
    }

    /// An event as this watcher sees it: objects enter and leave a selection by their changes.
    fn translate(&mut self, chunk: &mut Vec<u8>, event: &Arc<Event>) {
        if self
            .context
            .namespace
            .as_deref()
            .is_some_and(|namespace| event.object.key.namespace() != namespace)
        {
            return;
        }
        let before = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches(&self.context, previous));
        let after = event.change != Change::Deleted && self.selection.matches(&self.context, &event.object);
        match (before, after) {
            (false, false) => {}
            (false, true) => self.push(chunk, "ADDED", &event.object),
            (true, true) => self.push(chunk, "MODIFIED", &event.object),
            (true, false) => self.push_departed(chunk, event),
        }
        if chunk.len() > CHUNK {
            self.flush(chunk);
        }
    }

    /// A DELETED event carries the last object that the watcher saw, at the revision of the change.
    fn push_departed(&mut self, chunk: &mut Vec<u8>, event: &Event) {
        if event.change == Change::Deleted {
            return self.push(chunk, "DELETED", &event.object);
        }
        let Some(previous) = &event.previous else { return };
        let mut value = previous.value();
        value["metadata"]["resourceVersion"] = Value::String(event.object.revision.to_string());
        let body = serde_json::to_vec(&value).unwrap_or_default().into();
        let last = Stored {
            key: previous.key.clone(),
            revision: event.object.revision,
            body,
            uid: previous.uid.clone(),
            owners: Box::default(),
        };
        self.push(chunk, "DELETED", &last);
    }

    fn push(&mut self, chunk: &mut Vec<u8>, kind: &str, stored: &Stored) {
        chunk.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        let body = self.context.served.render(stored, self.form, self.include);
        chunk.extend_from_slice(&body);
        chunk.extend_from_slice(b"}\n");
    }

    fn push_bookmark(&mut self, chunk: &mut Vec<u8>, initial_end: bool) {
        let served = &self.context.served;
        let (version, kind) = match self.form {
            Form::Object => (served.api_version(), served.info.kind.clone()),
            Form::Metadata => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata".to_owned()),
            Form::Table => ("meta.k8s.io/v1".to_owned(), "Table".to_owned()),
        };
        let mut metadata = json!({"resourceVersion": self.revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_END: "true"});
        }
        let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
        chunk.extend_from_slice(format!("{}\n", json!({"type": "BOOKMARK", "object": object})).as_bytes());
    }

    fn flush(&mut self, chunk: &mut Vec<u8>) {
        if !chunk.is_empty() {
            self.ready.push_back(std::mem::take(chunk).into());
        }
    }
}
