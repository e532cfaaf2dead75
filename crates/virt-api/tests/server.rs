//! virt-api as on a cluster: over TLS, behind webhooks and the aggregation layer, with virt-handler at its other side.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../runtime/src/tls/tests/authority.rs"]
mod authority;
mod fixture;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use authority::Authority;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use ferrovirt_protocol::launcher::Action;
use ferrovirt_protocol::node::{self, Call, Failure};
use ferrovirt_protocol::streams::{NodeAgent, StreamError};
use ferrovirt_runtime::metrics::Metrics;
use ferrovirt_runtime::tls::{self, Authorities, Clients, Identity, Trust};
use fixture::{Home, ScriptedNode, vmi};
use futures::{SinkExt, StreamExt};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;
use virt_api::server;

const GROUP: &str = "/apis/subresources.kubevirt.io/v1";
const VMI: &str = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: server::Args,
}

/// virt-api, the API server behind it, and a virt-handler.
struct Cluster {
    home: Home,
    address: SocketAddr,
    /// Signs the components.
    ours: Authority,
    /// Signs the API server's front proxy.
    front: Authority,
    handled: Arc<ScriptedNode>,
    /// The connection of those who show nothing.
    kept: tokio::sync::Mutex<Option<Sender>>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<Result<(), server::Error>>,
    _files: tempfile::TempDir,
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

fn write_pair(directory: &Path, (certificate, key): (String, String)) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("tls.crt"), certificate).unwrap();
    std::fs::write(directory.join("tls.key"), key).unwrap();
}

fn identity((certificate, key): (String, String)) -> Identity {
    Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
}

impl Cluster {
    async fn open() -> Self {
        let cluster = Self::start().await;
        cluster.tell_front_proxy().await;
        cluster.ready().await;
        cluster
    }

    /// virt-api cannot know yet who the front proxy is.
    async fn start() -> Self {
        let home = Home::open().await;
        let (ours, front) = (Authority::new("kubevirt"), Authority::new("front-proxy-ca"));
        let files = tempfile::tempdir().unwrap();
        write_pair(&files.path().join("server"), ours.sign("virt-api.kubevirt.svc"));
        write_pair(&files.path().join("client"), ours.sign(node::API_CLIENT_NAME));
        std::fs::write(files.path().join("ca-bundle"), &ours.pem).unwrap();
        let handled = Arc::new(ScriptedNode::default());
        let handler = serve_handler(&ours, handled.clone()).await;
        let text = |name: &str| files.path().join(name).display().to_string();
        let line = [
            "virt-api".to_owned(),
            format!("--cert-dir={}", text("server")),
            format!("--client-cert-dir={}", text("client")),
            format!("--ca-bundle={}", text("ca-bundle")),
            format!("--handler-port={}", handler.port()),
        ];
        let args = Line::parse_from(line).args;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (client, ended) = (home.virt_api.clone(), stop.clone());
        let served =
            tokio::spawn(
                async move { server::serve(&args, client, &Metrics::new("1"), listener, ended.cancelled()).await },
            );
        Self {
            home,
            address,
            ours,
            front,
            handled,
            kept: tokio::sync::Mutex::default(),
            stop,
            served,
            _files: files,
        }
    }

    /// As the API server does when it starts.
    async fn tell_front_proxy(&self) {
        let configuration: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "extension-apiserver-authentication"},
            "data": {
                "requestheader-client-ca-file": self.front.pem,
                "requestheader-allowed-names": "[\"front-proxy-client\"]",
                "requestheader-username-headers": "[\"X-Remote-User\"]",
                "requestheader-group-headers": "[\"X-Remote-Group\"]",
                "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
            },
        }))
        .unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(self.home.client.clone(), "kube-system");
        maps.create(&PostParams::default(), &configuration).await.unwrap();
    }

    async fn ready(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.send(None, "GET", "/readyz", &[], "").await.0 != 200 {
            assert!(tokio::time::Instant::now() < deadline, "virt-api is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection to virt-api that shows a certificate.
    async fn connect(&self, identity: Option<&Identity>) -> TlsStream<TcpStream> {
        let trust = Trust::new(
            Authorities::from_pem(self.ours.pem.as_bytes()).unwrap(),
            ["virt-api.kubevirt.svc"],
        );
        let config = tls::client(identity, trust, &["http/1.1"]).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("virt-api").unwrap();
        TlsConnector::from(config).connect(name, stream).await.unwrap()
    }

    async fn sender(&self, identity: Option<&Identity>) -> Sender {
        let stream = self.connect(identity).await;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn send(
        &self,
        identity: Option<&Identity>,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Value) {
        let mut kept = self.kept.lock().await;
        let mut fresh = None;
        let sender = match identity {
            None if kept.as_ref().is_some_and(|sender| !sender.is_closed()) => kept.as_mut().unwrap(),
            None => kept.insert(self.sender(None).await),
            Some(identity) => fresh.insert(self.sender(Some(identity)).await),
        };
        sender.ready().await.unwrap();
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "virt-api");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(body.to_owned()));
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// What the API server's front proxy shows.
    fn front_proxy(&self) -> Identity {
        identity(self.front.sign("front-proxy-client"))
    }

    /// As the API server passes it on for an administrator.
    async fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let headers = [("x-remote-user", "root"), ("x-remote-group", "system:masters")];
        self.send(Some(&self.front_proxy()), method, path, &headers, "").await
    }

    /// Asks a webhook.
    async fn review(&self, path: &str, request: Value) -> Value {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let (code, answer) = self.send(None, "POST", path, &[], &review.to_string()).await;
        assert_eq!(code, 200, "{answer}");
        assert_eq!(
            (answer["apiVersion"].as_str(), answer["kind"].as_str()),
            (Some("admission.k8s.io/v1"), Some("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], request["uid"]);
        answer["response"].clone()
    }

    /// A pod of virt-handler on node `n`.
    async fn start_handler(&self) {
        self.pod("kubevirt", "virt-handler-x", "virt-handler", json!({})).await;
    }

    async fn pod(&self, namespace: &str, name: &str, app: &str, annotations: Value) {
        let pods: Api<Pod> = Api::namespaced(self.home.client.clone(), namespace);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubevirt.io": app}, "annotations": annotations},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        }))
        .unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1"}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    }

    async fn patch_vmi_status(&self, name: &str, status: Value) {
        self.home
            .vmis()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": status})))
            .await
            .unwrap();
    }
}

/// virt-handler's side of the contract, for a node whose guests echo.
async fn serve_handler(ours: &Authority, agent: Arc<ScriptedNode>) -> SocketAddr {
    let trust = Trust::new(
        Authorities::from_pem(ours.pem.as_bytes()).unwrap(),
        [node::API_CLIENT_NAME],
    );
    let server = identity(ours.sign(node::SERVER_NAME));
    let tls = tls::server(&server, Clients::Required(trust), &["http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(handle).with_state(agent);
    tokio::spawn(ferrovirt_runtime::http::serve(
        listener,
        tls,
        app,
        CancellationToken::new(),
    ));
    address
}

async fn handle(State(agent): State<Arc<ScriptedNode>>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().map(str::to_owned);
    let Some((namespace, name, call)) = Call::parse(request.method().as_str(), &path, query.as_deref()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let failed = |error: StreamError| {
        let failure = Failure::from(&error);
        let code = StatusCode::from_u16(failure.code()).unwrap();
        (code, axum::Json(failure)).into_response()
    };
    let done = match call {
        Call::Stream(stream) => {
            assert_eq!(request.headers()["upgrade"], node::UPGRADE);
            match agent.stream(namespace, name, stream).await {
                Ok(mut far) => {
                    tokio::spawn(async move {
                        let near = hyper::upgrade::on(request).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut far).await;
                    });
                    let headers = [("connection", "Upgrade"), ("upgrade", node::UPGRADE)];
                    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
                }
                Err(error) => Err(error),
            }
        }
        Call::Act(Action::Reset) => Err(StreamError::Refused("virt-launcher: the guest is busy".into())),
        Call::Act(action) => agent
            .act(namespace, name, action)
            .await
            .map(IntoResponse::into_response),
        Call::Freeze { thaw_seconds } => agent
            .freeze(namespace, name, Duration::from_secs(thaw_seconds))
            .await
            .map(IntoResponse::into_response),
        Call::Screenshot { move_cursor } => agent
            .screenshot(namespace, name, move_cursor)
            .await
            .map(IntoResponse::into_response),
        Call::GuestInfo => agent
            .guest_info(namespace, name)
            .await
            .map(|info| axum::Json(info).into_response()),
        Call::SevPlatform => agent
            .sev_platform(namespace, name)
            .await
            .map(|info| axum::Json(info).into_response()),
        Call::SevMeasurement => agent
            .sev_measurement(namespace, name)
            .await
            .map(|info| axum::Json(info).into_response()),
        Call::SevSecret => {
            let body = axum::body::to_bytes(request.into_body(), node::MAX_BODY).await.unwrap();
            let secret = serde_json::from_slice(&body).unwrap();
            agent
                .sev_secret(namespace, name, secret)
                .await
                .map(IntoResponse::into_response)
        }
    };
    done.unwrap_or_else(failed)
}

fn request(operation: &str, resource: &str, user: &str, object: &Value, old: Option<&Value>) -> Value {
    json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "kubevirt.io", "version": "v1", "kind": object["kind"]},
        "resource": {"group": "kubevirt.io", "version": "v1", "resource": resource},
        "name": object["metadata"]["name"],
        "namespace": "default",
        "operation": operation,
        "userInfo": {"username": user, "groups": ["system:authenticated"]},
        "object": object,
        "oldObject": old,
        "dryRun": false,
        "options": {"kind": "CreateOptions"},
    })
}

/// The object after the patch of a mutating answer.
fn patched(object: &Value, response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    let mut object = object.clone();
    if let Some(patch) = response["patch"].as_str() {
        assert_eq!(response["patchType"], "JSONPatch");
        let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
        json_patch::patch(&mut object, &patch).unwrap();
    }
    object
}

#[tokio::test]
async fn objects_are_completed_by_a_patch_and_judged() {
    let cluster = Cluster::open().await;
    let preset = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstancePreset", "metadata": {"name": "small"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "domain": {"devices": {}, "cpu": {"cores": 2}}},
    });
    let presets: Api<ferrovirt_api::v1::VirtualMachineInstancePreset> =
        Api::namespaced(cluster.home.client.clone(), "default");
    presets
        .create(&PostParams::default(), &serde_json::from_value(preset).unwrap())
        .await
        .unwrap();
    let object = serde_json::to_value(vmi("a")).unwrap();
    let create = |object: &Value| request("CREATE", "virtualmachineinstances", "jane", object, None);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let full = loop {
        let response = cluster.review("/virtualmachineinstances-mutate", create(&object)).await;
        let full = patched(&object, &response);
        // The preset comes by a watch.
        if full["spec"]["domain"]["cpu"]["cores"] == 2 {
            assert!(
                response["warnings"][0].as_str().unwrap().contains("preset"),
                "{response}"
            );
            break full;
        }
        assert!(tokio::time::Instant::now() < deadline, "{full}");
    };
    assert!(full["spec"]["domain"]["firmware"]["uuid"].is_string(), "{full}");
    assert!(full["metadata"]["finalizers"].is_array());
    assert_eq!(full["metadata"]["name"], "a");
    let again = cluster.review("/virtualmachineinstances-mutate", create(&full)).await;
    assert_eq!(
        (&again["allowed"], &again["patch"]),
        (&json!(true), &Value::Null),
        "{again}"
    );

    let path = "/virtualmachineinstances-validate-create";
    assert_eq!(cluster.review(path, create(&full)).await["allowed"], true);
    let mut changed = full.clone();
    changed["spec"]["domain"]["memory"]["guest"] = "128Mi".into();
    let update = |user| request("UPDATE", "virtualmachineinstances", user, &changed, Some(&full));
    let path = "/virtualmachineinstances-validate-update";
    let refused = cluster.review(path, update("jane")).await;
    assert_eq!(
        (&refused["allowed"], &refused["status"]["code"]),
        (&json!(false), &json!(422))
    );
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(
        !message.contains("admission webhook"),
        "the API server adds that: {message}"
    );
    let ours = "system:serviceaccount:kubevirt:kubevirt-controller";
    assert_eq!(cluster.review(path, update(ours)).await["allowed"], true);
}

#[derive(Deserialize)]
struct Case {
    name: String,
    by: String,
    field: String,
    reason: String,
    message: String,
    manifest: Value,
}

#[tokio::test]
async fn every_invalid_manifest_is_refused_by_the_webhooks() {
    let cluster = Cluster::open().await;
    let kubevirt = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"},
        "spec": {"configuration": {"developerConfiguration": {"featureGates": ["HostDisk"], "useEmulation": true}}},
    });
    let kubevirt = serde_json::from_value(kubevirt).unwrap();
    cluster
        .home
        .kubevirts()
        .create(&PostParams::default(), &kubevirt)
        .await
        .unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/invalid");
    let mut cases: Vec<Case> = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(path).unwrap();
            cases.extend(
                serde_yaml_ng::Deserializer::from_str(&text).map(|document| Case::deserialize(document).unwrap()),
            );
        }
    }
    assert!(cases.len() >= 200);
    let mut wrong = Vec::new();
    for case in cases {
        let (resource, mutate, validate) = match case.manifest["kind"].as_str().unwrap() {
            "VirtualMachine" => (
                "virtualmachines",
                "/virtualmachines-mutate",
                "/virtualmachines-validate",
            ),
            _ => (
                "virtualmachineinstances",
                "/virtualmachineinstances-mutate",
                "/virtualmachineinstances-validate-create",
            ),
        };
        let create = |object: &Value| request("CREATE", resource, "jane", object, None);
        let completed = cluster.review(mutate, create(&case.manifest)).await;
        let refused = if completed["allowed"] == true {
            cluster
                .review(validate, create(&patched(&case.manifest, &completed)))
                .await
        } else {
            completed
        };
        let causes = refused["status"]["details"]["causes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let named = causes.iter().any(|cause| {
            let message = cause["message"].as_str().unwrap_or_default();
            cause["field"] == case.field.as_str()
                && cause["reason"] == case.reason.as_str()
                && message.contains(&case.message)
        });
        // What the schema refuses never comes so far on a cluster.
        if refused["allowed"] != false || (case.by == "rules" && !named) {
            wrong.push(format!("{}: {refused}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn bodies_that_are_no_reviews_are_refused() {
    let cluster = Cluster::open().await;
    for (body, expected) in [
        ("{}".to_owned(), "no AdmissionReview"),
        ("x".to_owned(), "no AdmissionReview"),
        ("x".repeat(9 << 20), "of at most"),
    ] {
        let (code, answer) = cluster
            .send(None, "POST", "/virtualmachines-validate", &[], &body)
            .await;
        assert_eq!(code, 400);
        assert!(answer["message"].as_str().unwrap().contains(expected), "{answer}");
    }
    let nothing = json!({"uid": "1", "operation": "CONNECT"});
    assert_eq!(
        cluster.review("/virtualmachines-validate", nothing).await["allowed"],
        true
    );
}

#[tokio::test]
async fn evictions() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &["LiveMigratable"]).await;
    cluster.patch_vmi_status("a", json!({"nodeName": "n"})).await;
    cluster
        .pod(
            "default",
            "virt-launcher-a",
            "virt-launcher",
            json!({"kubevirt.io/domain": "a"}),
        )
        .await;
    let evict = async |pod: &str, dry_run: bool| {
        let request = json!({
            "uid": "1", "operation": "CREATE", "namespace": "default", "name": pod, "dryRun": dry_run,
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "subResource": "eviction",
            "object": {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}},
        });
        cluster.review("/launcher-eviction-validate", request).await
    };
    assert_eq!(evict("virt-launcher-a", false).await["allowed"], true);
    assert_eq!(evict("virt-launcher-gone", false).await["allowed"], true);

    let strategy = Patch::Merge(json!({"spec": {"evictionStrategy": "LiveMigrate"}}));
    let ours: Api<ferrovirt_api::v1::VirtualMachineInstance> =
        Api::namespaced(cluster.home.controller.clone(), "default");
    ours.patch("a", &PatchParams::default(), &strategy).await.unwrap();
    let marked = async || {
        cluster
            .home
            .vmis()
            .get("a")
            .await
            .unwrap()
            .status
            .unwrap()
            .evacuation_node_name
    };
    for (dry_run, expected) in [(true, None), (false, Some("n".to_owned()))] {
        let refused = evict("virt-launcher-a", dry_run).await;
        assert_eq!(
            (&refused["allowed"], &refused["status"]["code"]),
            (&json!(false), &json!(429))
        );
        assert_eq!(
            refused["status"]["message"],
            "Eviction triggered evacuation of VMI \"default/a\""
        );
        assert_eq!(marked().await, expected);
    }
    let refused = evict("virt-launcher-a", false).await;
    assert_eq!(
        refused["status"]["message"],
        "Evacuation of VMI \"default/a\" is in progress"
    );
}

#[tokio::test]
async fn users_are_believed_only_from_the_front_proxy() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    let path = format!("{VMI}/a/pause");
    let root = [("x-remote-user", "root"), ("x-remote-group", "system:masters")];
    let foreign = Authority::new("foreign");
    for (why, shown) in [
        ("no certificate", None),
        (
            "of a component of ours",
            Some(identity(cluster.ours.sign("front-proxy-client"))),
        ),
        (
            "of another authority",
            Some(identity(foreign.sign("front-proxy-client"))),
        ),
        ("of another name", Some(identity(cluster.front.sign("somebody")))),
    ] {
        let (code, answer) = cluster.send(shown.as_ref(), "PUT", &path, &root, "").await;
        assert_eq!(
            (code, answer["reason"].as_str()),
            (401, Some("Unauthorized")),
            "{why}: {answer}"
        );
    }
    let front = cluster.front_proxy();
    assert_eq!(cluster.send(Some(&front), "PUT", &path, &[], "").await.0, 401);

    let jane = [("x-remote-user", "jane"), ("x-remote-group", "system:authenticated")];
    let (code, answer) = cluster.send(Some(&front), "PUT", &path, &jane, "").await;
    assert_eq!(
        (code, answer["kind"].as_str(), answer["reason"].as_str()),
        (403, Some("Status"), Some("Forbidden"))
    );
    let message = answer["message"].as_str().unwrap();
    let start =
        "virtualmachineinstances.subresources.kubevirt.io \"a\" is forbidden: User \"jane\" cannot update resource";
    assert!(message.starts_with(start), "{message}");
    assert!(cluster.handled.take_acts().is_empty());

    // What the aggregation layer looks at needs nobody.
    let (code, list) = cluster.send(None, "GET", GROUP, &[], "").await;
    assert_eq!((code, list["kind"].as_str()), (200, Some("APIResourceList")));
    for path in [
        "/apis",
        "/apis/subresources.kubevirt.io",
        "/openapi/v2",
        "/openapi/v3",
        "/healthz",
    ] {
        assert_eq!(cluster.send(None, "GET", path, &[], "").await.0, 200, "{path}");
    }
    assert_eq!(cluster.ask("PUT", &format!("{VMI}/a/nothing")).await.0, 404);
    assert_eq!(cluster.ask("GET", "/apis/subresources.kubevirt.io/v3").await.0, 404);
}

/// A connection that began too early would be nobody's for as long as it lasts.
#[tokio::test]
async fn who_comes_early_waits() {
    let cluster = Cluster::start().await;
    let path = format!("{VMI}/none/pause");
    let mut early = Box::pin(cluster.ask("PUT", &path));
    let answered = tokio::time::timeout(Duration::from_millis(300), &mut early).await;
    assert!(answered.is_err(), "{answered:?}");
    cluster.tell_front_proxy().await;
    let (code, answer) = early.await;
    assert_eq!(code, 404, "{answer}");
    cluster.stop.cancel();
}

#[tokio::test]
async fn guests_are_reached_through_their_node() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &["AgentConnected"]).await;
    let pause = format!("{VMI}/a/pause");
    let (code, answer) = cluster.ask("PUT", &pause).await;
    assert_eq!(code, 500);
    assert!(
        answer["message"].as_str().unwrap().contains("has no node yet"),
        "{answer}"
    );
    cluster.patch_vmi_status("a", json!({"nodeName": "n"})).await;
    let (_, answer) = cluster.ask("PUT", &pause).await;
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("cannot reach virt-handler on node n: there is no running pod"),
        "{message}"
    );

    cluster.start_handler().await;
    assert_eq!(cluster.ask("PUT", &pause).await.0, 200);
    assert_eq!(cluster.handled.take_acts(), [("a".to_owned(), Action::Pause)]);
    let (code, answer) = cluster.ask("PUT", &format!("{VMI}/a/reset")).await;
    assert_eq!(code, 500);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .ends_with("virt-launcher: the guest is busy"),
        "{answer}"
    );
    let (code, info) = cluster.ask("GET", &format!("{VMI}/a/guestosinfo")).await;
    assert_eq!((code, info["hostname"].as_str()), (200, Some("a")));
}

type Socket = tokio_tungstenite::WebSocketStream<TlsStream<TcpStream>>;

async fn open(cluster: &Cluster, sub: &str) -> Result<Socket, String> {
    let mut request = format!("wss://virt-api{VMI}/{sub}").into_client_request().unwrap();
    for (name, value) in [
        ("x-remote-user", "root"),
        ("x-remote-group", "system:masters"),
        ("sec-websocket-protocol", "plain.kubevirt.io"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = cluster.connect(Some(&cluster.front_proxy())).await;
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(String::from_utf8(response.into_body().unwrap()).unwrap()),
        Err(error) => panic!("{error}"),
    }
}

async fn expect(socket: &mut Socket, wanted: &[u8]) {
    let mut seen = Vec::new();
    let read = async {
        while !seen.windows(wanted.len()).any(|window| window == wanted) {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(data) => seen.extend_from_slice(&data),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
}

#[tokio::test]
async fn streams_go_through_virt_handler_and_outlive_nothing() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    cluster.patch_vmi_status("a", json!({"nodeName": "n"})).await;
    cluster.start_handler().await;
    let mut first = open(&cluster, "a/console").await.unwrap();
    expect(&mut first, b"hello from default/a/console").await;
    first.send(Message::binary(b"\x00\xffls\r".to_vec())).await.unwrap();
    expect(&mut first, b"\x00\xffls\r").await;
    let mut display = open(&cluster, "a/vnc?preserveSession=true").await.unwrap();
    expect(&mut display, b"hello from default/a/vnc").await;
    let refused = open(&cluster, "a/vnc?preserveSession=true").await.unwrap_err();
    assert!(refused.contains("active session"), "{refused}");

    // A second client of the console ends the first one.
    let mut second = open(&cluster, "a/console").await.unwrap();
    expect(&mut second, b"hello").await;
    let end = async { while let Some(Ok(_)) = first.next().await {} };
    tokio::time::timeout(Duration::from_secs(20), end).await.unwrap();

    let Cluster { stop, served, .. } = cluster;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), served)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
