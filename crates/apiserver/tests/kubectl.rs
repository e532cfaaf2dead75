//! The server over TLS, driven by the real kubectl.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::PathBuf;
use std::process::{Output, Stdio};

use ferrovirt_apiserver::pki::Pki;
use ferrovirt_apiserver::{ApiServer, Config, Storage};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

fn crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {"openAPIV3Schema": {"type": "object", "description": "A thing of some size.", "required": ["spec"], "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 0, "description": "How large it is."},
                        "color": {"type": "string", "default": "red"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}
            }]
        }
    })
}

/// A server on a free port with a kubeconfig.
struct Home {
    directory: tempfile::TempDir,
    server: ApiServer,
    shutdown: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Home {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&directory.path().join("pki"), &[]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        pki.write_kubeconfig(&directory.path().join("kubeconfig"), &url, "test")
            .unwrap();
        let config = Config {
            crds: vec![crd()],
            token_key: Some(pki.token_key()),
            ..Config::new(Storage::File(directory.path().join("store.db")))
        };
        let server = ApiServer::open(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let task = {
            let (server, tls, shutdown) = (server.clone(), pki.server_config().unwrap(), shutdown.clone());
            tokio::spawn(async move { server.serve(listener, tls, shutdown).await })
        };
        Self {
            directory,
            server,
            shutdown,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn run(&self, arguments: &str, input: &str) -> Output {
        let mut child = Command::new("kubectl")
            .args(arguments.split(' '))
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("HOME", self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl is installed");
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output())
            .await
            .expect("kubectl ends")
            .unwrap()
    }

    /// Standard output of a command that must succeed.
    async fn kubectl(&self, arguments: &str, input: &str) -> String {
        let output = self.run(arguments, input).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {arguments}\n{out}{err}");
        out.into_owned()
    }

    /// Standard error of a command that must fail.
    async fn fails(&self, arguments: &str, input: &str) -> String {
        let output = self.run(arguments, input).await;
        assert!(!output.status.success(), "kubectl {arguments} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn widget(size: i64) -> String {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "labels": {"app": "x"}}, "spec": {"size": size}}).to_string()
}

#[tokio::test]
async fn the_everyday_commands() {
    let home = Home::start().await;
    let version = home.kubectl("version", "").await;
    assert!(version.contains("Server Version: v1.36"), "{version}");
    assert_eq!(
        home.kubectl("apply -f -", &widget(1)).await,
        "widget.example.com/w created\n"
    );
    assert_eq!(
        home.kubectl("apply -f -", &widget(1)).await,
        "widget.example.com/w unchanged\n"
    );
    assert_eq!(
        home.kubectl("apply -f -", &widget(2)).await,
        "widget.example.com/w configured\n"
    );
    let table = home.kubectl("get wd", "").await;
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap()[..2], ["NAME", "SIZE"]);
    assert_eq!(lines.next().unwrap()[..2], ["w", "2"]);
    assert!(
        home.kubectl("get all -l app=x", "")
            .await
            .contains("widget.example.com/w")
    );
    assert_eq!(
        home.kubectl("get widgets.v1.example.com w -o jsonpath={.spec.color}", "")
            .await,
        "red"
    );
    assert!(home.kubectl("describe widget w", "").await.contains("Size:"));
    assert_eq!(
        home.kubectl("patch wd w --type=merge -p {\"spec\":{\"size\":5}}", "")
            .await,
        "widget.example.com/w patched\n"
    );
    assert_eq!(
        home.kubectl("scale wd w --replicas=7", "").await,
        "widget.example.com/w scaled\n"
    );
    assert_eq!(
        home.kubectl("label wd w color=blue", "").await,
        "widget.example.com/w labeled\n"
    );
    assert_eq!(home.kubectl("get wd w -o jsonpath={.spec.size}", "").await, "7");
    let output = home.fails("apply -f -", &widget(-1)).await;
    assert!(output.contains("spec.size: Invalid value: -1"), "{output}");
    let unknown = widget(1).replace("\"size\"", "\"shape\":1,\"size\"");
    let output = home.fails("apply -f -", &unknown).await;
    assert!(
        output.contains("strict decoding error: unknown field \"spec.shape\""),
        "{output}"
    );
    let output = home.fails("get wd nothing", "").await;
    assert_eq!(
        output,
        "Error from server (NotFound): widgets.example.com \"nothing\" not found\n"
    );
    assert!(
        home.kubectl("wait --for=jsonpath={.spec.size}=7 wd/w", "")
            .await
            .contains("condition met")
    );
    assert_eq!(
        home.kubectl("delete wd w --wait", "").await,
        "widget.example.com \"w\" deleted\n"
    );
    home.shutdown.cancel();
}

#[tokio::test]
async fn built_in_kinds() {
    let home = Home::start().await;
    home.kubectl("create namespace n", "").await;
    home.kubectl("create configmap c --from-literal=a=1 -n n", "").await;
    home.kubectl("create secret generic s --from-literal=a=1 -n n", "")
        .await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}).to_string();
    assert_eq!(home.kubectl("apply -n n -f -", &pod).await, "pod/p created\n");
    assert_eq!(
        home.kubectl("apply -n n -f -", &pod.replace("\"b\"", "\"c\"")).await,
        "pod/p configured\n"
    );
    assert_eq!(
        home.kubectl("apply -n n --server-side -f -", &pod.replace("\"b\"", "\"c\""))
            .await,
        "pod/p serverside-applied\n"
    );
    let pods = home.kubectl("get pods -n n -o wide", "").await;
    assert!(pods.contains("Pending"), "{pods}");
    assert!(home.kubectl("describe pod p -n n", "").await.contains("Image:"));
    assert!(home.kubectl("get events -A", "").await.is_empty());
    assert!(home.kubectl("get ns", "").await.contains("Active"));
    assert!(
        home.kubectl("api-resources", "")
            .await
            .contains("customresourcedefinitions")
    );
    assert_eq!(home.kubectl("auth can-i create pods", "").await, "yes\n");
    let token = home.kubectl("create token default -n n", "").await;
    let output = home
        .fails(
            &format!(
                "--token={} --kubeconfig=/dev/null --insecure-skip-tls-verify --server={} get pods -n n",
                token.trim(),
                home.kubectl("config view -o jsonpath={.clusters[0].cluster.server}", "")
                    .await
            ),
            "",
        )
        .await;
    assert!(output.contains("User \"system:serviceaccount:n:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"n\""), "{output}");
    home.kubectl("delete namespace n --timeout=30s", "").await;
    home.shutdown.cancel();
    assert!(home.server.revision() > 10);
}

#[tokio::test]
async fn kinds_explain_themselves() {
    let home = Home::start().await;
    let text = home.kubectl("explain widget.spec.size", "").await;
    assert!(text.contains("How large it is."), "{text}");
    assert!(home.kubectl("explain pod.spec.containers", "").await.contains("FIELDS"));
    home.shutdown.cancel();
}
