//! Who asks, when the API server passes on a user's request: it shows a client certificate of its front proxy, and names
//! the user in headers. Which authority, names and headers is in a ConfigMap of the API server's. Without such a
//! certificate the headers are worth nothing.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ferrovirt_runtime::http::Gate;
use ferrovirt_runtime::tls::{Authorities, Peer, TlsError, Trust};
use futures::StreamExt;
use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status;

/// Where the API server says what its front proxy shows.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
/// The API server bounds watches by itself; asking rarely keeps an idle process quiet.
const WATCH_SECONDS: u32 = 290;
const PAUSE: Duration = Duration::from_secs(1);

/// A user, as the front proxy names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// Names of headers, as the ConfigMap says them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Headers {
    users: Vec<String>,
    uids: Vec<String>,
    groups: Vec<String>,
    extra_prefixes: Vec<String>,
}

impl Default for Headers {
    fn default() -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            users: one("x-remote-user"),
            uids: one("x-remote-uid"),
            groups: one("x-remote-group"),
            extra_prefixes: one("x-remote-extra-"),
        }
    }
}

/// What is known of the front proxy. Clones are the same; in the beginning nobody is one.
#[derive(Clone, Debug)]
pub(crate) struct FrontProxy {
    trust: Trust,
    headers: Arc<RwLock<Headers>>,
    known: watch::Sender<bool>,
}

impl Default for FrontProxy {
    fn default() -> Self {
        Self {
            trust: Trust::new(Authorities::default(), Vec::<String>::new()),
            headers: Arc::default(),
            known: watch::Sender::new(false),
        }
    }
}

impl FrontProxy {
    /// Whose certificates are those of a front proxy.
    pub(crate) fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// Waits until it is known for the first time. A connection is judged when it begins: one that begins earlier would be
    /// nobody's for as long as it lasts, and the API server's lasts.
    pub(crate) async fn known(&self) {
        // The sender lives as long as this.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Takes over what the ConfigMap says.
    ///
    /// # Errors
    /// Its authority cannot be used; all stays as it was.
    pub(crate) fn set(&self, data: &BTreeMap<String, String>) -> Result<(), TlsError> {
        let authority = data.get("requestheader-client-ca-file").map_or("", String::as_str);
        let list = |key: &str| {
            let text = data.get(key).map_or("", String::as_str);
            let list: Vec<String> = serde_json::from_str(text).unwrap_or_default();
            list
        };
        Authorities::from_pem(authority.as_bytes())?;
        // Names first: for a moment fewer are trusted rather than more.
        self.trust.set_names(list("requestheader-allowed-names"));
        self.trust.authorities().replace(authority.as_bytes())?;
        let headers = |key: &str, default: Vec<String>| {
            let names = list(key);
            if names.is_empty() {
                default
            } else {
                names.iter().map(|name| name.to_ascii_lowercase()).collect()
            }
        };
        let default = Headers::default();
        let headers = Headers {
            users: headers("requestheader-username-headers", default.users),
            uids: headers("requestheader-uid-headers", default.uids),
            groups: headers("requestheader-group-headers", default.groups),
            extra_prefixes: headers("requestheader-extra-headers-prefix", default.extra_prefixes),
        };
        *self.headers.write().unwrap_or_else(PoisonError::into_inner) = headers;
        self.known.send_replace(true);
        Ok(())
    }

    /// The user that a request is for; `peer` is whose certificate TLS has found to be trusted.
    pub(crate) fn user(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Option<User> {
        peer?;
        let names = self.headers.read().unwrap_or_else(PoisonError::into_inner);
        let first = |names: &[String]| {
            let mut values = names.iter().filter_map(|name| headers.get(name)?.to_str().ok());
            values.find(|value| !value.is_empty()).map(str::to_owned)
        };
        let groups = names.groups.iter().flat_map(|name| headers.get_all(name));
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for (header, value) in headers {
            let key = names
                .extra_prefixes
                .iter()
                .find_map(|prefix| header.as_str().strip_prefix(prefix.as_str()));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                extra.entry(decode(key)).or_default().push(value.to_owned());
            }
        }
        Some(User {
            name: first(&names.users)?,
            uid: first(&names.uids),
            groups: groups
                .filter_map(|group| group.to_str().ok().map(str::to_owned))
                .collect(),
            extra,
        })
    }
}

/// Keys of extra attributes are percent-encoded, as header names cannot hold everything.
fn decode(key: &str) -> String {
    let bytes = key.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = key.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Keeps `proxy` at what the API server's ConfigMap says, until `stop`. Opens `known` when it was read first.
///
/// # Errors
/// The watch ended, which it never does by itself.
pub(crate) async fn follow(
    client: kube::Client,
    proxy: FrontProxy,
    known: Gate,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={NAME}"))
        .timeout(WATCH_SECONDS);
    let mut known = Some(known);
    let mut events = pin!(watcher(Api::<ConfigMap>::namespaced(client, NAMESPACE), config));
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = events.next() => event.ok_or_else(|| std::io::Error::other("the watch of the front proxy's authority ended"))?,
        };
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => match proxy.set(&object.data.unwrap_or_default()) {
                Ok(()) => known.take().into_iter().for_each(Gate::ready),
                Err(error) => {
                    tracing::warn!(error = %status::chain(&error), "{NAMESPACE}/{NAME}: requestheader-client-ca-file");
                }
            },
            Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(error = %status::chain(&error), "the watch of {NAMESPACE}/{NAME} was interrupted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use http::HeaderValue;

    #[test]
    fn users_are_named_in_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-extra-scopes", "one"),
            ("x-remote-extra-scopes", "two"),
            ("x-remote-extra-example.org%2fkey", "v"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let proxy = FrontProxy::default();
        assert_eq!(proxy.user(None, &headers), None);
        let user = proxy.user(Some(&Peer::default()), &headers).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_deref()), ("jane", Some("7")));
        assert_eq!(user.groups, ["a", "system:authenticated"]);
        assert_eq!(user.extra["scopes"], ["one", "two"]);
        assert_eq!(user.extra["example.org/key"], ["v"]);
        assert_eq!(proxy.user(Some(&Peer::default()), &HeaderMap::new()), None);
    }

    #[test]
    fn rubbish_changes_nothing() {
        let proxy = FrontProxy::default();
        assert!(proxy.set(&BTreeMap::new()).is_err());
        for (key, expected) in [("a%2Fb", "a/b"), ("a%2", "a%2"), ("a%zz", "a%zz"), ("%41é", "Aé")] {
            assert_eq!(decode(key), expected);
        }
    }
}
