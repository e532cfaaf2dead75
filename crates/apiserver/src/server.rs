//! The server: what it is made of, and how a request finds its way.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::{self, Authorizer, Tokens};
use crate::failure::{Failure, Result};
use crate::hooks::{Admission, Aggregated, Kubelet, UserInfo};
use crate::registry::Registry;
use crate::rest::context::{Context, Query, Target};
use crate::rest::{self, kinds};
use crate::store::{self, Key, Retention, Storage, Store};
use crate::{controllers, crd, discovery, openapi_documents};

/// What `/version` says.
#[derive(Clone, Debug)]
pub struct VersionInfo {
    /// `1`
    pub major: String,
    /// `36`
    pub minor: String,
    /// `v1.36.0+ferrovirt`; clients parse it.
    pub git_version: String,
}

impl Default for VersionInfo {
    fn default() -> Self {
        Self {
            major: "1".into(),
            minor: "36".into(),
            git_version: format!("v1.36.0+ferrovirt-{}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// What a server starts with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects are kept.
    pub storage: Storage,
    /// How long watches can come back.
    pub retention: Retention,
    /// CRDs that always exist; stored ones that differ are updated.
    pub crds: Vec<Value>,
    /// Namespaces that always exist, besides `default`, `kube-system` and `kube-public`.
    pub namespaces: Vec<String>,
    /// What `/version` says.
    pub version: VersionInfo,
    /// Static bearer tokens.
    pub tokens: Vec<(String, UserInfo)>,
    /// The key that signs service account tokens; if absent, tokens end with the process.
    pub token_key: Option<Vec<u8>>,
    /// The certificate that pods know this server by, in PEM: ConfigMap `kube-root-ca.crt` in each namespace.
    pub root_ca: Option<String>,
}

impl Config {
    /// With this storage and nothing else.
    pub fn new(storage: Storage) -> Self {
        Self {
            storage,
            retention: Retention::default(),
            crds: Vec::new(),
            namespaces: Vec::new(),
            version: VersionInfo::default(),
            tokens: Vec::new(),
            token_key: None,
            root_ca: None,
        }
    }

    /// A server that keeps nothing; for tests.
    pub fn memory() -> Self {
        Self::new(Storage::Memory)
    }
}

/// Why a server cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error("cannot open the API server's store")]
    Store(#[from] store::OpenError),
    /// A CRD or namespace that always exists could not be written.
    #[error("cannot write {object}: {message}")]
    Bootstrap {
        /// What was written.
        object: String,
        /// What the server said.
        message: String,
    },
}

/// The parts of a server.
pub struct Inner {
    pub(crate) store: Store,
    registry: RwLock<Arc<Registry>>,
    /// Held by who changes the registry.
    serving: Mutex<()>,
    admission: RwLock<Option<Arc<dyn Admission>>>,
    aggregated: RwLock<Vec<Arc<dyn Aggregated>>>,
    kubelet: RwLock<Option<Arc<dyn Kubelet>>>,
    pub(crate) version: VersionInfo,
    pub(crate) tokens: Tokens,
    pub(crate) root_ca: Option<String>,
    pub(crate) authorizer: Authorizer,
    pub(crate) shutdown: CancellationToken,
}

fn read<T: Clone>(lock: &RwLock<T>) -> T {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn write<T>(lock: &RwLock<T>, value: T) {
    *lock.write().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Inner {
    /// What is served now.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        read(&self.registry)
    }

    /// The admission rules, if set.
    pub(crate) fn admission(&self) -> Option<Arc<dyn Admission>> {
        read(&self.admission)
    }

    /// The aggregated groups.
    pub(crate) fn aggregated(&self) -> Vec<Arc<dyn Aggregated>> {
        read(&self.aggregated)
    }

    /// What runs pods, if set.
    pub(crate) fn kubelet(&self) -> Option<Arc<dyn Kubelet>> {
        read(&self.kubelet)
    }

    /// Serves from now on what the store holds of a CRD: nothing when it is gone. One on its way out is served until
    /// its objects are gone.
    pub(crate) fn serve_crd(&self, key: &Key) {
        // Of two writers, the one who comes here last need not be the one who wrote last; so the store is asked, by
        // one at a time.
        let _one = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = self.store.get(key);
        let versions = stored.map(|stored| crd::served(&stored.value())).unwrap_or_default();
        let next = self.registry().with_crd(key.name(), versions);
        write(&self.registry, Arc::new(next));
    }
}

/// A Kubernetes API server. Clones are the same server; it ends when the last one is dropped.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

impl ApiServer {
    /// Opens the store, brings in what always exists, and starts the garbage collector and the namespace controller
    /// (tasks of the current tokio runtime that sleep until something changes).
    ///
    /// # Errors
    /// The store cannot be opened, or a CRD of the configuration is invalid.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let store = Store::open(&config.storage, config.retention)?;
        let journal = store.journal();
        let inner = Arc::new(Inner {
            registry: RwLock::new(Arc::new(Registry::builtin())),
            serving: Mutex::new(()),
            admission: RwLock::default(),
            aggregated: RwLock::default(),
            kubelet: RwLock::default(),
            version: config.version,
            tokens: Tokens::new(config.tokens, config.token_key),
            root_ca: config.root_ca,
            authorizer: Authorizer::default(),
            shutdown: CancellationToken::new(),
            store,
        });
        let server = Self { inner };
        server.load_crds();
        server.bootstrap(&config.namespaces, config.crds).await?;
        controllers::spawn(&server.inner, journal);
        Ok(server)
    }

    fn load_crds(&self) {
        let list = self.inner.store.list(kinds::CRDS, None, None, store::Page::default());
        for stored in list.map(|list| list.objects).unwrap_or_default() {
            self.inner.serve_crd(&stored.key);
        }
    }

    async fn bootstrap(&self, namespaces: &[String], crds: Vec<Value>) -> Result<(), OpenError> {
        for mut crd in crds {
            crd::default(&mut crd);
            let name = rest::meta::text(&crd, "name").to_owned();
            self.ensure("apiextensions.k8s.io", "customresourcedefinitions", None, &name, crd)
                .await?;
        }
        let always = ["default", "kube-system", "kube-public"];
        for name in always.into_iter().chain(namespaces.iter().map(String::as_str)) {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            self.ensure("", "namespaces", None, name, namespace).await?;
        }
        auth::bootstrap(self).await
    }

    /// Creates an object, or gives it the spec (or data, rules …) of `object` if it exists and differs.
    pub(crate) async fn ensure(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        name: &str,
        object: Value,
    ) -> Result<(), OpenError> {
        let key = store::Key::new(&format!("{group}/{plural}").into(), namespace.unwrap_or_default(), name);
        if self
            .inner
            .store
            .get(&key)
            .is_some_and(|stored| has(&stored.value(), &object))
        {
            return Ok(());
        }
        let done = async {
            let served = self
                .inner
                .registry()
                .find(group, "v1", plural)
                .ok_or_else(Failure::no_such_path)?;
            let mut context = Context::internal(&self.inner, served, namespace, "ferrovirt");
            let compute = move |current: Option<&Value>| {
                let Some(current) = current else {
                    return Ok(rest::write::Change::new(object.clone()));
                };
                let mut next = current.clone();
                for (field, value) in object
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(field, _)| *field != "metadata")
                {
                    next[field] = value.clone();
                }
                for map in ["labels", "annotations"] {
                    for (key, value) in object["metadata"][map].as_object().into_iter().flatten() {
                        next["metadata"][map][key] = value.clone();
                    }
                }
                Ok(rest::write::Change::new(next))
            };
            rest::write::modify(&mut context, name, true, &compute).await
        };
        done.await.map(|_| ()).map_err(|failure: Failure| OpenError::Bootstrap {
            object: format!("{plural} {name}"),
            message: failure.0.message.unwrap_or_default(),
        })
    }

    /// Sets the rules that writes pass. Writes before this pass without.
    pub fn set_admission(&self, admission: Arc<dyn Admission>) {
        write(&self.inner.admission, Some(admission));
    }

    /// Adds a group that somebody else answers.
    pub fn add_aggregated(&self, group: Arc<dyn Aggregated>) {
        self.inner
            .aggregated
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(group);
    }

    /// Sets who answers `pods/log`, `pods/exec` …; until then they are 503.
    pub fn set_kubelet(&self, kubelet: Arc<dyn Kubelet>) {
        write(&self.inner.kubelet, Some(kubelet));
    }

    /// A client that calls this server without sockets. Must be called within a tokio runtime. It keeps the server alive.
    pub fn client(&self, user: UserInfo) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (server, user) = (server.clone(), user.clone());
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(user);
                Ok::<_, Infallible>(server.handle(request).await)
            }
        });
        kube::Client::new(service, "default")
    }

    /// The newest revision of the store.
    pub fn revision(&self) -> u64 {
        self.inner.store.revision()
    }

    /// Ends all watches and refuses nothing else; call it when the process is about to end.
    pub fn shutdown(&self) {
        self.inner.shutdown.cancel();
    }

    /// Answers one request. [`UserInfo`] in its extensions is believed; without it the bearer token decides.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let response = match self.route(request).await {
            Ok(response) => response,
            Err(failure) => failure.response(),
        };
        tracing::debug!(%method, path, status = response.status().as_u16(), "request");
        response
    }

    async fn route(&self, mut request: Request<Body>) -> Result<Response<Body>> {
        let path = request.uri().path().to_owned();
        if matches!(path.as_str(), "/healthz" | "/livez" | "/readyz" | "/healthz/ping") {
            return Ok(text("ok"));
        }
        let user = match request.extensions_mut().remove::<UserInfo>() {
            Some(user) => user,
            None => self
                .inner
                .tokens
                .authenticate(&self.inner.store, request.headers())?
                .unwrap_or_else(UserInfo::anonymous),
        };
        if path == "/version" || path == "/version/" {
            return Ok(discovery::version(&self.inner.version));
        }
        if user.is_in("system:unauthenticated") {
            return Err(Failure::unauthorized());
        }
        let query = Query::parse(request.uri())?;
        if path.starts_with("/openapi/") {
            let (head, _) = request.into_parts();
            return openapi_documents::handle(&self.inner, &path, &query, &head.method, &head.headers).await;
        }
        let Some(target) = Target::parse(&path) else {
            return discovery::handle(&self.inner, &path, &request);
        };
        auth::authorize(&self.inner, &user, &target, target.verb(request.method(), &query))?;
        if let Some(group) = self
            .inner
            .aggregated()
            .into_iter()
            .find(|group| group.group() == target.group)
        {
            request.extensions_mut().insert(user);
            return Ok(group.handle(request).await);
        }
        if auth::reviews::is_review(&target) {
            return auth::reviews::handle(&self.inner, &user, &target, request).await;
        }
        rest::handle(&self.inner, user, target, query, request).await
    }
}

/// Whether an object has everything that another says, but for metadata beside labels and annotations.
fn has(object: &Value, wanted: &Value) -> bool {
    let fields = wanted.as_object().into_iter().flatten();
    let maps = ["labels", "annotations"].into_iter().flat_map(|map| {
        let wanted = wanted["metadata"][map].as_object().into_iter().flatten();
        wanted.map(move |(key, value)| (&object["metadata"][map][key], value))
    });
    fields
        .filter(|(field, _)| *field != "metadata")
        .all(|(field, value)| object[field] == *value)
        && maps.into_iter().all(|(found, value)| found == value)
}

fn text(body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
