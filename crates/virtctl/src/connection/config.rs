//! What kubectl would connect with: the kubeconfig or, in a pod, its service account; and flags over it.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, Kubeconfig, KubeconfigError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use super::proxy;
use crate::cli::Global;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A cluster, who asks it, and where.
#[derive(Debug, Default)]
struct Chosen {
    namespace: Option<String>,
    cluster: Cluster,
    user: AuthInfo,
}

/// Everything that a connection needs.
pub(super) fn load(global: &Global) -> anyhow::Result<Config> {
    let found = match &global.kubeconfig {
        Some(path) => {
            let found = Kubeconfig::read_from(path);
            Some(found.with_context(|| format!("cannot read --kubeconfig {}", path.display()))?)
        }
        None => found()?,
    };
    let mut chosen = match found {
        Some(kubeconfig) => choose(&kubeconfig, global)?,
        None if global.server.is_some() => Chosen::default(),
        None => in_cluster(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT)).ok_or_else(nothing)?,
    };
    overlay(&mut chosen, global)?;
    config(chosen)
}

fn nothing() -> anyhow::Error {
    match std::env::var("KUBECONFIG") {
        Ok(paths) if !paths.is_empty() => anyhow!("KUBECONFIG names {paths}, which does not exist"),
        _ => anyhow!("there is no kubeconfig: set KUBECONFIG, use --kubeconfig FILE, or put one at ~/.kube/config"),
    }
}

/// The kubeconfig that kubectl would read; none if there is no such file.
fn found() -> anyhow::Result<Option<Kubeconfig>> {
    match std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        Some(value) => {
            let paths: Vec<PathBuf> = std::env::split_paths(&value).collect();
            merged(&paths)
        }
        None => match Kubeconfig::read() {
            Ok(found) => Ok(Some(found)),
            Err(KubeconfigError::ReadConfig(error, _)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(KubeconfigError::FindPath) => Ok(None),
            Err(error) => Err(error).context("cannot read the kubeconfig"),
        },
    }
}

/// Several files: the first that says something wins; those that do not exist are passed over.
fn merged(paths: &[PathBuf]) -> anyhow::Result<Option<Kubeconfig>> {
    let mut all: Option<Kubeconfig> = None;
    for path in paths.iter().filter(|path| !path.as_os_str().is_empty()) {
        let mut one = match Kubeconfig::read_from(path) {
            Ok(one) => one,
            Err(KubeconfigError::ReadConfig(error, _)) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read KUBECONFIG {}", path.display())),
        };
        one.current_context = one.current_context.filter(|name| !name.is_empty());
        all = Some(match all {
            None => one,
            Some(all) => all.merge(one).context("cannot merge the files of KUBECONFIG")?,
        });
    }
    Ok(all)
}

/// The context, cluster and user that flags or else the kubeconfig name.
fn choose(kubeconfig: &Kubeconfig, global: &Global) -> anyhow::Result<Chosen> {
    let current = kubeconfig.current_context.as_ref().filter(|name| !name.is_empty());
    let context = match global.context.as_ref().or(current) {
        Some(name) => {
            let found = kubeconfig.contexts.iter().find(|named| &named.name == name);
            let found = found.with_context(|| format!("the kubeconfig has no context {name:?}"))?;
            found.context.clone().unwrap_or_default()
        }
        None if global.server.is_some() || global.cluster.is_some() => kube::config::Context::default(),
        None => bail!("the kubeconfig has no current context: use --context NAME"),
    };
    let cluster = match global.cluster.as_ref().unwrap_or(&context.cluster).as_str() {
        "" => Cluster::default(),
        name => {
            let found = kubeconfig.clusters.iter().find(|named| named.name == name);
            let found = found.with_context(|| format!("the kubeconfig has no cluster {name:?}"))?;
            found.cluster.clone().unwrap_or_default()
        }
    };
    let user = match (&global.user, &context.user) {
        (Some(name), _) => {
            let found = kubeconfig.auth_infos.iter().find(|named| &named.name == name);
            let found = found.with_context(|| format!("the kubeconfig has no user {name:?}"))?;
            found.auth_info.clone().unwrap_or_default()
        }
        // kubectl asks without credentials then.
        (None, Some(name)) => {
            let found = kubeconfig.auth_infos.iter().find(|named| &named.name == name);
            found.and_then(|named| named.auth_info.clone()).unwrap_or_default()
        }
        (None, None) => AuthInfo::default(),
    };
    Ok(Chosen {
        namespace: context.namespace,
        cluster,
        user,
    })
}

/// What a pod is given; none if this is no pod.
fn in_cluster(environment: impl Fn(&str) -> Option<String>, account: &Path) -> Option<Chosen> {
    let host = environment("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = environment("KUBERNETES_SERVICE_PORT").filter(|port| !port.is_empty())?;
    let token = account.join("token");
    if !token.is_file() {
        return None;
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let namespace = std::fs::read_to_string(account.join("namespace")).ok();
    let authority = account.join("ca.crt");
    let cluster = Cluster {
        server: Some(format!("https://{host}:{port}")),
        certificate_authority: authority.is_file().then(|| authority.display().to_string()),
        ..Cluster::default()
    };
    let user = AuthInfo {
        token_file: Some(token.display().to_string()),
        ..AuthInfo::default()
    };
    Some(Chosen {
        namespace: namespace.map(|text| text.trim().to_owned()),
        cluster,
        user,
    })
}

/// Puts the flags over what was found.
fn overlay(chosen: &mut Chosen, global: &Global) -> anyhow::Result<()> {
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
        namespace,
        kubeconfig: _,
        context: _,
        cluster: _,
        user: _,
        request_timeout: _,
        verbosity: _,
    } = global;
    let Chosen {
        namespace: chosen_namespace,
        cluster,
        user,
    } = chosen;
    if namespace.is_some() {
        chosen_namespace.clone_from(namespace);
    }
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
    if token.is_some() {
        let with_token: AuthInfo = serde_json::from_value(json!({"token": token})).context("cannot use --token")?;
        user.token = with_token.token;
        user.token_file = None;
    }
    if let Some(path) = client_certificate {
        user.client_certificate = Some(path.display().to_string());
        user.client_certificate_data = None;
    }
    if let Some(path) = client_key {
        user.client_key = Some(path.display().to_string());
        user.client_key_data = None;
    }
    if impersonate.is_some() {
        user.impersonate.clone_from(impersonate);
    }
    if !impersonate_groups.is_empty() {
        user.impersonate_groups = Some(impersonate_groups.clone());
    }
    Ok(())
}

/// kube makes the same of a kubeconfig, but takes its proxy from the environment in a way of its own.
fn config(chosen: Chosen) -> anyhow::Result<Config> {
    let Chosen {
        namespace,
        cluster,
        mut user,
    } = chosen;
    let server = cluster.server.as_deref().filter(|server| !server.is_empty());
    let server = server.context("the kubeconfig names no server of the cluster: use --server URL")?;
    let with_scheme = if server.contains("://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    let url: Uri = with_scheme
        .parse()
        .with_context(|| format!("the server {server:?} is no URL"))?;
    let environment = |name: &str| std::env::var(name).ok();
    let proxy = proxy::choose(cluster.proxy_url.as_deref(), environment, &url).map_err(anyhow::Error::msg)?;
    if let Some(exec) = user.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        let about = (&cluster)
            .try_into()
            .context("cannot tell the exec plugin about the cluster")?;
        exec.cluster = Some(about);
    }
    let mut config = Config::new(url);
    config.root_cert = authorities(&cluster)?;
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    config.tls_server_name = cluster.tls_server_name;
    config.proxy_url = proxy;
    config.auth_info = user;
    if let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) {
        config.default_namespace = namespace;
    }
    // Streams may be silent for as long as the user likes.
    config.read_timeout = None;
    config.write_timeout = None;
    Ok(config)
}

/// The certificates that the server's is checked against.
fn authorities(cluster: &Cluster) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
    let data = cluster.certificate_authority_data.as_deref();
    let file = cluster.certificate_authority.as_deref();
    let (pem, what) = match (
        data.filter(|data| !data.is_empty()),
        file.filter(|file| !file.is_empty()),
    ) {
        (Some(data), _) => {
            let decoded = STANDARD.decode(data.trim());
            let what = "certificate-authority-data of the kubeconfig".to_owned();
            (decoded.with_context(|| format!("{what} is no base64"))?, what)
        }
        (None, Some(file)) => {
            let read = std::fs::read(file);
            let what = format!("the certificate authority {file}");
            (read.with_context(|| format!("cannot read {what}"))?, what)
        }
        (None, None) => return Ok(None),
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem)
        .map(|found| found.map(|certificate| certificate.as_ref().to_vec()))
        .collect();
    let found = found.with_context(|| format!("cannot read {what}"))?;
    if found.is_empty() {
        bail!("{what} holds no certificate");
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig() -> Kubeconfig {
        serde_json::from_value(json!({
            "current-context": "a",
            "contexts": [
                {"name": "a", "context": {"cluster": "a", "user": "a", "namespace": "na"}},
                {"name": "b", "context": {"cluster": "b", "user": "b"}},
            ],
            "clusters": [
                {"name": "a", "cluster": {"server": "https://a", "certificate-authority": "/ca"}},
                {"name": "b", "cluster": {"server": "https://b"}},
            ],
            "users": [{"name": "a", "user": {}}, {"name": "b", "user": {"username": "b"}}],
        }))
        .unwrap()
    }

    fn chosen(global: &Global) -> anyhow::Result<Chosen> {
        let mut chosen = choose(&kubeconfig(), global)?;
        overlay(&mut chosen, global)?;
        Ok(chosen)
    }

    #[test]
    fn flags_win_over_the_kubeconfig() {
        let found = chosen(&Global::default()).unwrap();
        assert_eq!(found.cluster.server.as_deref(), Some("https://a"));
        assert_eq!(found.namespace.as_deref(), Some("na"));
        let global = Global {
            context: Some("b".into()),
            server: Some("https://c".into()),
            token: Some("t".into()),
            impersonate: Some("jane".into()),
            insecure_skip_tls_verify: true,
            ..Global::default()
        };
        let found = chosen(&global).unwrap();
        assert_eq!(found.cluster.server.as_deref(), Some("https://c"));
        assert_eq!(found.cluster.insecure_skip_tls_verify, Some(true));
        assert_eq!(found.user.username.as_deref(), Some("b"));
        assert!(found.user.token.is_some());
        assert_eq!(found.user.impersonate.as_deref(), Some("jane"));
        let other = Global {
            cluster: Some("b".into()),
            user: Some("b".into()),
            namespace: Some("n".into()),
            ..Global::default()
        };
        let found = chosen(&other).unwrap();
        assert_eq!(found.cluster.server.as_deref(), Some("https://b"));
        assert_eq!(found.user.username.as_deref(), Some("b"));
        assert_eq!(found.namespace.as_deref(), Some("n"));
        for (global, why) in [
            (
                Global {
                    context: Some("x".into()),
                    ..Global::default()
                },
                "no context \"x\"",
            ),
            (
                Global {
                    cluster: Some("x".into()),
                    ..Global::default()
                },
                "no cluster \"x\"",
            ),
            (
                Global {
                    user: Some("x".into()),
                    ..Global::default()
                },
                "no user \"x\"",
            ),
        ] {
            let error = chosen(&global).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_server_needs_no_kubeconfig() {
        let global = Global {
            server: Some("c:6443".into()),
            ..Global::default()
        };
        let mut chosen = Chosen::default();
        overlay(&mut chosen, &global).unwrap();
        assert_eq!(config(chosen).unwrap().cluster_url, "https://c:6443");
    }

    #[test]
    fn files_are_merged() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let first = write("first", "{kind: Config, current-context: '', clusters: []}");
        let second = write(
            "second",
            "{kind: Config, current-context: b, contexts: [{name: b, context: {cluster: b}}], \
             clusters: [{name: b, cluster: {server: 'https://b'}}]}",
        );
        let none = directory.path().join("none");
        let found = merged(&[none.clone(), first, PathBuf::new(), second]).unwrap().unwrap();
        assert_eq!(found.current_context.as_deref(), Some("b"));
        assert_eq!(
            choose(&found, &Global::default()).unwrap().cluster.server.as_deref(),
            Some("https://b")
        );
        assert!(merged(&[none]).unwrap().is_none());
        assert!(merged(&[write("odd", "[")]).is_err());
    }

    #[test]
    fn flags_win_over_a_service_account() {
        let directory = tempfile::tempdir().unwrap();
        let environment = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        assert!(in_cluster(environment, directory.path()).is_none());
        std::fs::write(directory.path().join("token"), "t").unwrap();
        std::fs::write(directory.path().join("namespace"), "mine\n").unwrap();
        std::fs::write(directory.path().join("ca.crt"), "").unwrap();
        let mut chosen = in_cluster(environment, directory.path()).unwrap();
        assert_eq!(chosen.cluster.server.as_deref(), Some("https://[fd00::1]:443"));
        assert_eq!(chosen.namespace.as_deref(), Some("mine"));
        assert!(chosen.user.token_file.is_some() && chosen.cluster.certificate_authority.is_some());
        let global = Global {
            token: Some("other".into()),
            impersonate: Some("jane".into()),
            insecure_skip_tls_verify: true,
            ..Global::default()
        };
        overlay(&mut chosen, &global).unwrap();
        assert!(chosen.user.token.is_some() && chosen.user.token_file.is_none());
        assert_eq!(chosen.user.impersonate.as_deref(), Some("jane"));
        let config = config(chosen).unwrap();
        assert!(config.accept_invalid_certs && config.root_cert.is_none());
        assert!(in_cluster(|_| None, directory.path()).is_none());
    }
}
