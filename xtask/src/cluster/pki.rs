//! Certificates, keys and kubeconfigs. They live and die with the cluster's directory and do not expire before it.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

use super::layout::{CONTROL, HOST, KUBERNETES, Layout, Node, write};

/// The certificate authority of the cluster and the one of the aggregation layer's front proxy.
const AUTHORITIES: [&str; 2] = ["ca", "front-proxy-ca"];

struct Leaf<'a> {
    file: String,
    authority: &'a str,
    name: String,
    group: Option<&'a str>,
    hosts: Vec<String>,
}

/// Makes what is missing for the control plane and the nodes.
pub fn create(layout: &Layout, nodes: &[Node]) -> Result<()> {
    for name in AUTHORITIES {
        if !layout.pki(&format!("{name}.key")).exists() {
            let mut parameters = parameters(&format!("ferrovirt-cluster-{name}"), None);
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            let key = KeyPair::generate()?;
            store(layout, name, &parameters.self_signed(&key)?.pem(), &key)?;
        }
    }
    let tokens = layout.pki("sa.key");
    if !tokens.exists() {
        let key = KeyPair::generate()?;
        write(&layout.pki("sa.pub"), &key.public_key_pem())?;
        private(&tokens, &key.serialize_pem())?;
    }
    for leaf in leaves(nodes) {
        if !layout.pki(&format!("{}.key", leaf.file)).exists() {
            sign(layout, &leaf)?;
        }
    }
    for (user, file) in users(nodes) {
        let path = layout.kubeconfig(&user);
        if !path.exists() {
            private(&path, &kubeconfig(layout, &user, &file)?)?;
        }
    }
    Ok(())
}

/// Each kubeconfig's user, and the certificate that it names.
fn users(nodes: &[Node]) -> Vec<(String, String)> {
    let mut users: Vec<String> = [
        "admin",
        "controller-manager",
        "scheduler",
        "proxy",
        "coredns",
        "network-policy",
        "volumes",
    ]
    .map(str::to_owned)
    .to_vec();
    users.extend(nodes.iter().map(|node| node.component("kubelet")));
    users.into_iter().map(|user| (user.clone(), user)).collect()
}

fn leaves(nodes: &[Node]) -> Vec<Leaf<'static>> {
    let client = |file: &str, name: &str, group| Leaf {
        file: file.to_owned(),
        authority: "ca",
        name: name.to_owned(),
        group,
        hosts: Vec::new(),
    };
    let mut all = vec![
        client("admin", "kubernetes-admin", Some("system:masters")),
        client(
            "apiserver-kubelet-client",
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
        ),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("proxy", "system:kube-proxy", None),
        client("coredns", "system:coredns", None),
        client("network-policy", "system:network-policy", None),
        client("volumes", "system:cluster-volumes", None),
        Leaf {
            authority: "front-proxy-ca",
            ..client("front-proxy-client", "front-proxy-client", None)
        },
        Leaf {
            hosts: [
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "127.0.0.1",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain([KUBERNETES, CONTROL, HOST].map(|address| address.to_string()))
            .collect(),
            ..client("apiserver", "kube-apiserver", None)
        },
    ];
    for node in nodes {
        all.push(client(
            &node.component("kubelet"),
            &format!("system:node:{}", node.name()),
            Some("system:nodes"),
        ));
        all.push(Leaf {
            hosts: vec![node.name(), node.address().to_string()],
            ..client(
                &node.component("kubelet-server"),
                &format!("system:node:{}", node.name()),
                Some("system:nodes"),
            )
        });
    }
    all
}

fn sign(layout: &Layout, leaf: &Leaf<'_>) -> Result<()> {
    let make = || -> Result<()> {
        let certificate = read(layout, &format!("{}.crt", leaf.authority))?;
        let key = KeyPair::from_pem(&read(layout, &format!("{}.key", leaf.authority))?)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        let mut parameters = parameters(&leaf.name, leaf.group);
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![if leaf.hosts.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        for host in &leaf.hosts {
            parameters.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.clone().try_into()?),
            });
        }
        let key = KeyPair::generate()?;
        store(layout, &leaf.file, &parameters.signed_by(&key, &issuer)?.pem(), &key)
    };
    make().with_context(|| format!("cannot make the certificate of {}", leaf.file))
}

fn parameters(name: &str, group: Option<&str>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        parameters.distinguished_name.push(DnType::OrganizationName, group);
    }
    parameters.not_before = date_time_ymd(2024, 1, 1);
    parameters.not_after = date_time_ymd(2124, 1, 1);
    parameters
}

fn kubeconfig(layout: &Layout, user: &str, file: &str) -> Result<String> {
    let encoded = |name: String| -> Result<String> { Ok(STANDARD.encode(read(layout, &name)?)) };
    Ok(format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: ferrovirt-cluster\n  cluster:\n    \
         server: https://{CONTROL}:6443\n    certificate-authority-data: {}\n\
         users:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: ferrovirt-cluster\n  context: {{cluster: ferrovirt-cluster, user: {user}}}\n\
         current-context: ferrovirt-cluster\n",
        encoded("ca.crt".to_owned())?,
        encoded(format!("{file}.crt"))?,
        encoded(format!("{file}.key"))?,
    ))
}

/// The key last: it says that both are there.
fn store(layout: &Layout, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    write(&layout.pki(&format!("{name}.crt")), certificate)?;
    private(&layout.pki(&format!("{name}.key")), &key.serialize_pem())
}

fn private(path: &std::path::Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    write(&part, "")?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600))?;
    write(&part, text)?;
    fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}

fn read(layout: &Layout, file: &str) -> Result<String> {
    let path = layout.pki(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
