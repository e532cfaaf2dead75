//! The way to the API server: the kubeconfig that kubectl would use, and requests to subresources.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{Method, Request, Response, header};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::target::Kind;

/// Group and version of the subresources that are asked for.
const SUBRESOURCES: &str = "/apis/subresources.kubevirt.io/v1";

/// An API server, and the namespace to work in. Nothing is sent before the first request.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    limit: Option<Duration>,
}

impl Connection {
    /// Reads the kubeconfig and prepares TLS.
    pub(crate) async fn open(global: &Global) -> anyhow::Result<Self> {
        let config = config(global).await?;
        let namespace = config.default_namespace.clone();
        let url = config.cluster_url.clone();
        let client = Client::try_from(config).with_context(|| format!("cannot prepare a connection to {url}"))?;
        let limit = global.request_timeout.filter(|limit| !limit.is_zero());
        Ok(Self {
            client,
            namespace,
            limit,
        })
    }

    /// Path of an object's subresource; names were checked by the caller or are checked by the server.
    pub(crate) fn path(&self, kind: Kind, name: &str, namespace: Option<&str>, sub: &str) -> anyhow::Result<String> {
        let namespace = namespace.unwrap_or(&self.namespace);
        for part in [name, namespace] {
            if part.is_empty() || !crate::target::is_name(part) {
                bail!("{part:?} is no name of a Kubernetes object");
            }
        }
        Ok(format!(
            "{SUBRESOURCES}/namespaces/{namespace}/{}/{name}/{sub}",
            kind.plural()
        ))
    }

    /// Waits for an answer as long as the user allows.
    async fn within<T>(&self, answer: impl Future<Output = Result<T, kube::Error>>) -> anyhow::Result<T> {
        let Some(limit) = self.limit else {
            return Ok(answer.await?);
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => bail!("the server did not answer within {limit:?}"),
        }
    }

    /// PUTs an object to the group itself, and gets its answer.
    pub(crate) async fn put_object(&self, path: &str, object: &impl Serialize) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(object).context("cannot write the request")?;
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{SUBRESOURCES}/{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .context("cannot build the request")?;
        self.within(self.client.request(request)).await
    }

    /// GETs bytes from a subresource.
    pub(crate) async fn get_bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = Request::get(path)
            .body(Body::empty())
            .context("cannot build the request")?;
        let answer = async {
            let response = self.client.send(request).await?;
            let failed = !response.status().is_success();
            let bytes = response.into_body().collect_bytes().await?;
            if failed {
                return Err(match serde_json::from_slice::<kube::core::Status>(&bytes) {
                    Ok(status) => kube::Error::Api(status.boxed()),
                    Err(error) => kube::Error::SerdeError(error),
                });
            }
            Ok(bytes.to_vec())
        };
        self.within(answer).await
    }

    /// PUTs options to a subresource.
    pub(crate) async fn put(&self, path: &str, options: &impl Serialize) -> anyhow::Result<()> {
        let body = serde_json::to_vec(options).context("cannot write the request")?;
        let request = Request::builder()
            .method(Method::PUT)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .context("cannot build the request")?;
        self.within(self.client.request_text(request)).await.map(drop)
    }

    /// GETs JSON from a subresource.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = Request::get(path)
            .body(Vec::new())
            .context("cannot build the request")?;
        self.within(self.client.request(request)).await
    }

    /// GETs JSON from the group itself.
    pub(crate) async fn group(&self, what: &str) -> anyhow::Result<Value> {
        self.get(&format!("{SUBRESOURCES}/{what}")).await
    }

    /// Sends a request as it is; the answer may be an upgrade.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        self.client.send(request).await
    }

    /// Objects of a kind, read leniently: this program may be older or newer than the server.
    pub(crate) fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        let name = match kind {
            Kind::Vm => "VirtualMachine",
            Kind::Vmi => "VirtualMachineInstance",
        };
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kubevirt.io", "v1", name), kind.plural());
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }
}

/// The namespace that commands work in, without a connection.
pub(crate) async fn namespace(global: &Global) -> anyhow::Result<String> {
    Ok(config(global).await?.default_namespace)
}

async fn config(global: &Global) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        cluster: global.cluster.clone(),
        user: global.user.clone(),
    };
    let mut config = match kubeconfig(global)? {
        Some(mut kubeconfig) => {
            overlay(&mut kubeconfig, global)?;
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .context("cannot use the kubeconfig")?
        }
        None => Config::incluster().map_err(|_| {
            anyhow!("there is no kubeconfig: set KUBECONFIG, use --kubeconfig FILE, or put one at ~/.kube/config")
        })?,
    };
    if let Some(namespace) = &global.namespace {
        config.default_namespace.clone_from(namespace);
    }
    // Streams may be silent for as long as the user likes.
    config.read_timeout = None;
    config.write_timeout = None;
    Ok(config)
}

/// The kubeconfig that kubectl would read; none if there is no such file and none was asked for.
fn kubeconfig(global: &Global) -> anyhow::Result<Option<Kubeconfig>> {
    if let Some(path) = &global.kubeconfig {
        let found =
            Kubeconfig::read_from(path).with_context(|| format!("cannot read --kubeconfig {}", path.display()))?;
        return Ok(Some(found));
    }
    match Kubeconfig::read() {
        Ok(found) => Ok(Some(found)),
        Err(kube::config::KubeconfigError::ReadConfig(error, path)) if error.kind() == std::io::ErrorKind::NotFound => {
            if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty()) {
                bail!("KUBECONFIG names {}, which does not exist", path.display());
            }
            Ok(global.server.is_some().then(Kubeconfig::default))
        }
        Err(kube::config::KubeconfigError::FindPath) => Ok(global.server.is_some().then(Kubeconfig::default)),
        Err(error) => Err(error).context("cannot read the kubeconfig"),
    }
}

/// Puts the flags over what the kubeconfig says.
#[expect(clippy::too_many_lines, reason = "one flag after the other")]
fn overlay(kubeconfig: &mut Kubeconfig, global: &Global) -> anyhow::Result<()> {
    let Global {
        server,
        token,
        impersonate,
        impersonate_groups,
        client_certificate,
        client_key,
        certificate_authority,
        insecure_skip_tls_verify,
        tls_server_name,
        kubeconfig: _,
        context: _,
        cluster: _,
        user: _,
        namespace: _,
        request_timeout: _,
        verbosity: _,
    } = global;
    if server.is_some() && kubeconfig.contexts.is_empty() {
        *kubeconfig = of_flags()?;
    }
    let chosen = global.context.as_ref().or(kubeconfig.current_context.as_ref());
    let context = kubeconfig
        .contexts
        .iter()
        .find(|named| Some(&named.name) == chosen)
        .and_then(|named| named.context.clone());
    let cluster = global
        .cluster
        .clone()
        .or_else(|| context.as_ref().map(|c| c.cluster.clone()));
    let user = global
        .user
        .clone()
        .or_else(|| context.as_ref().and_then(|c| c.user.clone()));
    for named in kubeconfig
        .clusters
        .iter_mut()
        .filter(|named| Some(&named.name) == cluster.as_ref())
    {
        let cluster = named.cluster.get_or_insert_default();
        if server.is_some() {
            cluster.server.clone_from(server);
        }
        if let Some(path) = certificate_authority {
            cluster.certificate_authority = Some(path.display().to_string());
            cluster.certificate_authority_data = None;
        }
        if *insecure_skip_tls_verify {
            cluster.insecure_skip_tls_verify = Some(true);
            cluster.certificate_authority = None;
            cluster.certificate_authority_data = None;
        }
        if tls_server_name.is_some() {
            cluster.tls_server_name.clone_from(tls_server_name);
        }
    }
    for named in kubeconfig
        .auth_infos
        .iter_mut()
        .filter(|named| Some(&named.name) == user.as_ref())
    {
        let auth = named.auth_info.get_or_insert_default();
        if token.is_some() {
            let with_token: AuthInfo = serde_json::from_value(json!({"token": token})).context("cannot use --token")?;
            auth.token = with_token.token;
            auth.token_file = None;
        }
        if let Some(path) = client_certificate {
            auth.client_certificate = Some(path.display().to_string());
            auth.client_certificate_data = None;
        }
        if let Some(path) = client_key {
            auth.client_key = Some(path.display().to_string());
            auth.client_key_data = None;
        }
        if impersonate.is_some() {
            auth.impersonate.clone_from(impersonate);
        }
        if !impersonate_groups.is_empty() {
            auth.impersonate_groups = Some(impersonate_groups.clone());
        }
    }
    Ok(())
}

/// A kubeconfig with one empty context, for flags alone.
fn of_flags() -> anyhow::Result<Kubeconfig> {
    let name = "flags";
    let made = json!({
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {}}],
        "users": [{"name": name, "user": {}}],
    });
    serde_json::from_value(made).context("cannot make a kubeconfig of the flags")
}

/// An error for people: each cause once, and of the server's answers only what they say.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut push = |part: &dyn Display| {
        let part = part.to_string();
        let part = part.trim();
        if part.is_empty() || text.contains(part) {
            return;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(part);
    };
    for cause in error.chain() {
        match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if status.message.is_empty() => {
                push(&format!("the server answered with code {}", status.code));
            }
            Some(kube::Error::Api(status)) => {
                push(&status.message);
                break;
            }
            // Its sources say it all.
            Some(kube::Error::Service(_) | kube::Error::HyperError(_)) => push(&"cannot talk to the API server"),
            _ => push(&cause),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_kubeconfig() {
        let mut kubeconfig: Kubeconfig = serde_json::from_value(json!({
            "current-context": "a",
            "contexts": [
                {"name": "a", "context": {"cluster": "a", "user": "a"}},
                {"name": "b", "context": {"cluster": "b", "user": "b"}},
            ],
            "clusters": [
                {"name": "a", "cluster": {"server": "https://a", "certificate-authority-data": "eA=="}},
                {"name": "b", "cluster": {"server": "https://b"}},
            ],
            "users": [{"name": "a", "user": {}}, {"name": "b", "user": {}}],
        }))
        .unwrap();
        let global = Global {
            context: Some("b".into()),
            server: Some("https://c".into()),
            token: Some("t".into()),
            impersonate: Some("jane".into()),
            insecure_skip_tls_verify: true,
            ..Global::default()
        };
        overlay(&mut kubeconfig, &global).unwrap();
        let cluster = |index: usize| kubeconfig.clusters[index].cluster.clone().unwrap();
        assert_eq!(cluster(0).server.as_deref(), Some("https://a"));
        assert_eq!(cluster(1).server.as_deref(), Some("https://c"));
        assert_eq!(cluster(1).insecure_skip_tls_verify, Some(true));
        let user = kubeconfig.auth_infos[1].auth_info.clone().unwrap();
        assert!(user.token.is_some());
        assert_eq!(user.impersonate.as_deref(), Some("jane"));
        assert!(kubeconfig.auth_infos[0].auth_info.clone().unwrap().token.is_none());
    }

    #[test]
    fn a_server_needs_no_kubeconfig() {
        let mut kubeconfig = Kubeconfig::default();
        let global = Global {
            server: Some("https://c".into()),
            ..Global::default()
        };
        overlay(&mut kubeconfig, &global).unwrap();
        assert_eq!(
            kubeconfig.clusters[0].cluster.clone().unwrap().server.as_deref(),
            Some("https://c")
        );
    }

    #[test]
    fn errors_for_people() {
        let status = kube::core::Status::failure("vm.kubevirt.io \"x\" not found", "NotFound").with_code(404);
        let error = anyhow::Error::new(kube::Error::Api(status.boxed())).context("cannot start VirtualMachine x");
        assert_eq!(
            explain(&error),
            "cannot start VirtualMachine x: vm.kubevirt.io \"x\" not found"
        );
    }
}
