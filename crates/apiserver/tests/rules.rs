//! Admission, access, aggregation, pods, dry runs, watches of the newer kind.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use ferrovirt_apiserver::{
    Admission, AdmissionInput, Aggregated, AggregatedResource, ApiServer, Config, Failure, Kubelet, LogOptions,
    Operation, UserInfo,
};
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

/// One that writes nothing unasked any more: each namespace has its service account.
async fn server() -> ApiServer {
    let server = ApiServer::open(Config::memory()).await.unwrap();
    let all = async |path: &str, field: &str| {
        let list = ask(&server, &UserInfo::admin("admin"), Method::GET, path, &[], None).await;
        let items = list.body["items"].as_array().cloned().unwrap_or_default();
        let field = |item: &Value| item["metadata"][field].as_str().unwrap_or_default().to_owned();
        items.iter().map(field).collect::<BTreeSet<_>>()
    };
    let settled = async {
        loop {
            let namespaces = all("/api/v1/namespaces", "name").await;
            if !namespaces.is_empty() && namespaces == all("/api/v1/serviceaccounts", "namespace").await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, settled)
        .await
        .expect("each namespace has a service account within 20 s");
    server
}

struct Answer {
    code: StatusCode,
    headers: http::HeaderMap,
    body: Value,
}

async fn ask(
    server: &ApiServer,
    user: &UserInfo,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let mut request = request.body(body).unwrap();
    request.extensions_mut().insert(user.clone());
    let (head, body) = server.handle(request).await.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer {
        code: head.status,
        headers: head.headers,
        body,
    }
}

async fn admin(server: &ApiServer, method: Method, path: &str, body: Value) -> Answer {
    ask(server, &UserInfo::admin("admin"), method, path, &[], Some(body)).await
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Stamps objects, refuses a name, and remembers what it was asked.
#[derive(Default)]
struct Stamps(Mutex<Vec<String>>);

impl Stamps {
    fn note(&self, what: &str, input: &AdmissionInput<'_>) {
        let line = format!(
            "{what} {:?} {}/{} dry={}",
            input.operation, input.resource, input.name, input.dry_run
        );
        self.0.lock().unwrap().push(line);
    }
}

#[async_trait]
impl Admission for Stamps {
    async fn mutate(&self, input: &AdmissionInput<'_>, object: &mut Value) -> Result<Vec<String>, Box<Status>> {
        self.note("mutate", input);
        object["metadata"]["annotations"]["stamped"] = json!("yes");
        if input.resource == "persistentvolumeclaims" {
            object["status"] = json!({"phase": "Bound", "capacity": {"storage": "9Gi"}});
        }
        Ok(vec!["it was \"stamped\"".into()])
    }

    async fn validate(&self, input: &AdmissionInput<'_>, object: Option<&Value>) -> Result<Vec<String>, Box<Status>> {
        self.note("validate", input);
        if input.operation != Operation::Delete {
            assert_eq!(object.unwrap()["metadata"]["annotations"]["stamped"], "yes");
        }
        if input.name == "refused" {
            return Err(Failure::forbidden("", "configmaps", input.name, "no").0);
        }
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn admission_creates_no_status() {
    let server = server().await;
    server.set_admission(Arc::new(Stamps::default()));
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let created = admin(&server, Method::POST, claims, claim).await;
    assert_eq!(created.code, StatusCode::CREATED, "{}", created.body);
    assert_eq!(created.body["metadata"]["annotations"]["stamped"], "yes");
    assert_eq!(created.body["status"]["capacity"], Value::Null);
    assert_ne!(created.body["status"]["phase"], "Bound");
}

#[tokio::test]
async fn admission_sees_every_write() {
    let server = server().await;
    let stamps = Arc::new(Stamps::default());
    server.set_admission(stamps.clone());
    let created = admin(&server, Method::POST, MAPS, config_map("a")).await;
    assert_eq!(created.code, StatusCode::CREATED);
    assert_eq!(created.body["metadata"]["annotations"]["stamped"], "yes");
    assert_eq!(created.headers["warning"], r#"299 - "it was \"stamped\"""#);
    let refused = admin(
        &server,
        Method::POST,
        &format!("{MAPS}?dryRun=All"),
        config_map("refused"),
    )
    .await;
    assert_eq!(
        (refused.code, refused.body["message"].as_str()),
        (StatusCode::FORBIDDEN, Some("configmaps \"refused\" is forbidden: no"))
    );
    admin(&server, Method::DELETE, &format!("{MAPS}/a"), json!({})).await;
    let seen: Vec<String> = stamps
        .0
        .lock()
        .unwrap()
        .iter()
        .filter(|line| line.contains("configmaps"))
        .cloned()
        .collect();
    assert_eq!(
        seen,
        [
            "mutate Create configmaps/a dry=false",
            "validate Create configmaps/a dry=false",
            "mutate Create configmaps/refused dry=true",
            "validate Create configmaps/refused dry=true",
            "validate Delete configmaps/a dry=false",
        ]
    );
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let server = server().await;
    admin(&server, Method::POST, MAPS, config_map("a")).await;
    let before = server.revision();
    let created = admin(&server, Method::POST, &format!("{MAPS}?dryRun=All"), config_map("b")).await;
    assert_eq!(
        (created.code, created.body["data"]["a"].as_str()),
        (StatusCode::CREATED, Some("1"))
    );
    let exists = admin(&server, Method::POST, &format!("{MAPS}?dryRun=All"), config_map("a")).await;
    assert_eq!(exists.code, StatusCode::CONFLICT);
    let headers = [("content-type", "application/merge-patch+json")];
    let patch = Some(json!({"data": {"a": "2"}}));
    let patched = ask(
        &server,
        &UserInfo::admin("admin"),
        Method::PATCH,
        &format!("{MAPS}/a?dryRun=All"),
        &headers,
        patch,
    )
    .await;
    assert_eq!(patched.body["data"]["a"], "2");
    let deleted = admin(&server, Method::DELETE, &format!("{MAPS}/a?dryRun=All"), json!({})).await;
    assert_eq!(deleted.code, StatusCode::OK);
    assert_eq!(server.revision(), before);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn requests_that_make_no_sense_are_refused() {
    let server = server().await;
    let with = |field: &str, value: Value| {
        let mut object = config_map("a");
        *object.pointer_mut(field).unwrap() = value;
        object
    };
    let mut labelled = config_map("a");
    labelled["metadata"]["labels"] = json!({"bad key!": "x"});
    let cases = [
        (
            MAPS,
            with("/kind", json!("Pod")),
            400,
            "the kind in the data (Pod) does not match the expected kind (ConfigMap)",
        ),
        (
            MAPS,
            with("/apiVersion", json!("v2")),
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        (
            MAPS,
            with("/metadata/name", json!("Not_Valid")),
            422,
            "metadata.name: Invalid value: \"Not_Valid\": a lowercase RFC 1123 subdomain must",
        ),
        (
            MAPS,
            with("/metadata/name", json!("")),
            422,
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            MAPS,
            with("/metadata", json!({"name": "a", "namespace": "other"})),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            MAPS,
            with("/metadata", json!({"name": 7})),
            400,
            "metadata: invalid type: integer",
        ),
        (MAPS, with("/metadata", json!("text")), 400, "metadata"),
        (MAPS, with("/data", json!("text")), 422, "data: Invalid value"),
        (MAPS, labelled, 422, "metadata.labels: Invalid value: \"bad key!\""),
        (MAPS, json!([]), 400, ""),
        (MAPS, json!("text"), 400, ""),
        (
            "/api/v1/namespaces/default/nothing",
            config_map("a"),
            404,
            "the server could not find the requested resource",
        ),
        (
            "/apis/example.com/v1/things",
            config_map("a"),
            404,
            "the server could not find the requested resource",
        ),
        (
            "/api/v1/configmaps",
            config_map("a"),
            404,
            "the server could not find the requested resource",
        ),
    ];
    let before = server.revision();
    for (path, body, code, message) in cases {
        let answer = admin(&server, Method::POST, path, body.clone()).await;
        assert_eq!(answer.code.as_u16(), code, "{path} {body}: {}", answer.body);
        let found = answer.body["message"].as_str().unwrap();
        assert!(found.contains(message), "{found}");
    }
    let user = UserInfo::admin("admin");
    let large = Some(json!({"data": "x".repeat(4 << 20)}));
    assert_eq!(ask(&server, &user, Method::POST, MAPS, &[], large).await.code, 413);
    assert_eq!(
        ask(
            &server,
            &user,
            Method::POST,
            MAPS,
            &[("content-type", "text/html")],
            Some(config_map("a"))
        )
        .await
        .code,
        415
    );
    assert_eq!(
        ask(&server, &user, Method::GET, MAPS, &[("accept", "text/html")], None)
            .await
            .code,
        406
    );
    assert_eq!(ask(&server, &user, Method::PUT, MAPS, &[], None).await.code, 405);
    assert_eq!(
        ask(
            &server,
            &user,
            Method::GET,
            &format!("{MAPS}?labelSelector=a%20b%20c"),
            &[],
            None
        )
        .await
        .code,
        400
    );
    assert_eq!(
        ask(
            &server,
            &user,
            Method::GET,
            &format!("{MAPS}?fieldSelector=data.a%3D1"),
            &[],
            None
        )
        .await
        .code,
        400
    );
    assert_eq!(server.revision(), before);
}

#[tokio::test]
async fn roles_decide() {
    let server = server().await;
    let user = UserInfo {
        username: "jane".into(),
        groups: vec!["system:authenticated".into()],
        ..UserInfo::default()
    };
    let refused = ask(&server, &user, Method::GET, MAPS, &[], None).await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN);
    let message = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(refused.body["message"], message);
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]});
    assert_eq!(
        admin(&server, Method::POST, &format!("{rbac}/roles"), role).await.code,
        201
    );
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "jane"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    assert_eq!(
        admin(&server, Method::POST, &format!("{rbac}/rolebindings"), binding)
            .await
            .code,
        201
    );
    assert_eq!(ask(&server, &user, Method::GET, MAPS, &[], None).await.code, 200);
    assert_eq!(
        ask(&server, &user, Method::POST, MAPS, &[], Some(config_map("a")))
            .await
            .code,
        403
    );
    assert_eq!(
        ask(&server, &user, Method::GET, "/api/v1/configmaps", &[], None)
            .await
            .code,
        403
    );
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {"resourceAttributes": {
        "namespace": "default", "verb": "list", "resource": "configmaps"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = ask(&server, &user, Method::POST, path, &[], Some(review)).await;
    assert_eq!(answer.body["status"]["allowed"], true);
    assert_eq!(
        ask(&server, &UserInfo::anonymous(), Method::GET, MAPS, &[], None)
            .await
            .code,
        401
    );
}

struct Echo;

#[async_trait]
impl Aggregated for Echo {
    fn group(&self) -> &str {
        "echo.example.com"
    }

    fn versions(&self) -> Vec<String> {
        vec!["v1".into()]
    }

    fn resources(&self) -> Vec<AggregatedResource> {
        vec![AggregatedResource {
            name: "things/shout".into(),
            kind: "Thing".into(),
            namespaced: true,
            verbs: vec!["update".into()],
        }]
    }

    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let user = request.extensions().get::<UserInfo>().unwrap().username.clone();
        Response::new(Body::from(
            json!({"user": user, "path": request.uri().path()}).to_string(),
        ))
    }
}

#[tokio::test]
async fn other_groups_are_passed_on() {
    let server = server().await;
    server.add_aggregated(Arc::new(Echo));
    let path = "/apis/echo.example.com/v1/namespaces/default/things/a/shout";
    let answer = admin(&server, Method::PUT, path, json!({})).await;
    assert_eq!(answer.body, json!({"user": "admin", "path": path}));
    let list = admin(&server, Method::GET, "/apis/echo.example.com/v1", json!(null)).await;
    assert_eq!(list.body["resources"][0]["name"], "things/shout");
    let accept = [(
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    )];
    let all = ask(&server, &UserInfo::admin("admin"), Method::GET, "/apis", &accept, None).await;
    assert_eq!(all.body["kind"], "APIGroupDiscoveryList");
    let groups = all.body["items"].as_array().unwrap();
    let echo = groups
        .iter()
        .find(|group| group["metadata"]["name"] == "echo.example.com")
        .unwrap();
    assert_eq!(
        echo["versions"][0]["resources"][0]["subresources"][0]["subresource"],
        "shout"
    );
}

fn pod(name: &str) -> Pod {
    let spec = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 20, "containers": [{"name": "a", "image": "b"}]}});
    serde_json::from_value(spec).unwrap()
}

struct Logs;

#[async_trait]
impl Kubelet for Logs {
    async fn logs(&self, namespace: &str, pod: &str, options: LogOptions) -> Response<Body> {
        Response::new(Body::from(format!("{namespace}/{pod} {:?}", options.tail_lines)))
    }

    async fn connect(&self, _: &str, _: &str, _: &str, _: Request<Body>) -> Response<Body> {
        Response::new(Body::empty())
    }
}

#[tokio::test]
async fn pods_are_bound_and_end_gracefully() {
    let server = server().await;
    server.set_kubelet(Arc::new(Logs));
    let pods: Api<Pod> = Api::default_namespaced(server.client(UserInfo::admin("admin")));
    let created = pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    assert_eq!(created.status.unwrap().phase.as_deref(), Some("Pending"));
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let path = "/api/v1/namespaces/default/pods/p/binding";
    assert_eq!(admin(&server, Method::POST, path, binding.clone()).await.code, 201);
    let again = admin(&server, Method::POST, path, binding).await;
    assert_eq!(again.code, 409);
    let message = "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\"";
    assert_eq!(again.body["message"], message);
    let bound = pods
        .list(&ListParams::default().fields("spec.nodeName=n1"))
        .await
        .unwrap()
        .items;
    assert_eq!(
        bound[0].status.as_ref().unwrap().conditions.as_ref().unwrap()[0].type_,
        "PodScheduled"
    );
    let log = pods
        .logs(
            "p",
            &LogParams {
                tail_lines: Some(3),
                ..LogParams::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(log, "default/p Some(3)");

    let deleted = pods
        .delete("p", &DeleteParams::default())
        .await
        .unwrap()
        .left()
        .unwrap();
    assert_eq!(deleted.metadata.deletion_grace_period_seconds, Some(20));
    let shorter = pods
        .delete("p", &DeleteParams::default().grace_period(5))
        .await
        .unwrap()
        .left()
        .unwrap();
    assert_eq!(shorter.metadata.deletion_grace_period_seconds, Some(5));
    assert!(shorter.metadata.deletion_timestamp < deleted.metadata.deletion_timestamp);
    pods.delete("p", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());
    pods.create(&PostParams::default(), &pod("unbound")).await.unwrap();
    pods.delete("unbound", &DeleteParams::default()).await.unwrap();
    assert!(
        pods.get_opt("unbound").await.unwrap().is_none(),
        "nobody runs it, so nobody is waited for"
    );
}

#[tokio::test]
async fn server_side_apply_knows_owners() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client(UserInfo::admin("admin")));
    let apply = |value: &str| Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": value}}));
    let created = maps.patch("m", &PatchParams::apply("one"), &apply("1")).await.unwrap();
    assert_eq!(
        created.metadata.managed_fields.as_ref().unwrap()[0].manager.as_deref(),
        Some("one")
    );
    let same = maps.patch("m", &PatchParams::apply("one"), &apply("1")).await.unwrap();
    assert_eq!(same.metadata.resource_version, created.metadata.resource_version);
    let kube::Error::Api(status) = maps
        .patch("m", &PatchParams::apply("two"), &apply("2"))
        .await
        .unwrap_err()
    else {
        panic!()
    };
    assert_eq!(status.code, 409);
    assert!(
        status
            .message
            .starts_with("Apply failed with 1 conflict: conflict with \"one\": .data.a"),
        "{}",
        status.message
    );
    let forced = maps
        .patch("m", &PatchParams::apply("two").force(), &apply("2"))
        .await
        .unwrap();
    assert_eq!(forced.data.unwrap()["a"], "2");
}

#[tokio::test]
async fn watchers_list_by_watching() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client(UserInfo::admin("admin")));
    admin(&server, Method::POST, MAPS, config_map("a")).await;
    let stream = watcher(maps.clone(), watcher::Config::default().streaming_lists());
    let mut stream = std::pin::pin!(stream);
    let mut names = Vec::new();
    loop {
        match stream.next().await.unwrap().unwrap() {
            watcher::Event::InitApply(map) => names.push(map.metadata.name.unwrap()),
            watcher::Event::InitDone => break,
            _ => {}
        }
    }
    assert_eq!(names, ["a"]);
    admin(&server, Method::POST, MAPS, config_map("b")).await;
    let event = stream.try_next().await.unwrap().unwrap();
    assert!(matches!(event, watcher::Event::Apply(map) if map.metadata.name.as_deref() == Some("b")));
}

#[tokio::test]
async fn an_old_watch_is_told_so() {
    let retention = ferrovirt_apiserver::Retention {
        events: 5,
        bytes: 1 << 20,
    };
    let server = ApiServer::open(Config {
        retention,
        ..Config::memory()
    })
    .await
    .unwrap();
    let start = server.revision();
    for index in 0..20 {
        admin(&server, Method::POST, MAPS, config_map(&format!("m{index}"))).await;
    }
    let path = format!("{MAPS}?watch=1&resourceVersion={start}&timeoutSeconds=1");
    let answer = ask(&server, &UserInfo::admin("admin"), Method::GET, &path, &[], None).await;
    assert_eq!(
        (answer.body["type"].as_str(), answer.body["object"]["code"].as_u64()),
        (Some("ERROR"), Some(410))
    );
    assert_eq!(answer.body["object"]["reason"], "Expired");
}

#[tokio::test]
async fn events_have_two_groups() {
    let server = server().await;
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "note": "hello", "reason": "Test", "action": "Testing", "type": "Normal",
        "reportingController": "test", "reportingInstance": "test-1"});
    let answer = admin(
        &server,
        Method::POST,
        "/apis/events.k8s.io/v1/namespaces/default/events",
        event,
    )
    .await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let events: Api<Event> = Api::default_namespaced(server.client(UserInfo::admin("admin")));
    let found = events
        .list(&ListParams::default().fields("involvedObject.name=p,involvedObject.kind=Pod"))
        .await
        .unwrap()
        .items;
    assert_eq!(found[0].message.as_deref(), Some("hello"));
}
