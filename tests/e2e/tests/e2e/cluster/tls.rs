//! Connections to components that trust the installation's authority only, and certificates that are renewed.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Console, Home, eventually, run};
use kube::{Client, Config};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::ask_guest;
use super::release::pods;
use crate::manifest::{spec, vm};
use crate::{BOOT, SOON, Shared};

/// The name that all components' certificates have in common.
const SERVER: &str = "kubevirt-prometheus-metrics.kubevirt.svc";
/// How long a kubelet takes to bring a Secret's new content into pods.
const PROPAGATION: Duration = Duration::from_secs(180);

/// The certificates of a PEM file.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

/// Our authorities.
fn bundle(home: &Home) -> Result<Vec<CertificateDer<'static>>> {
    let path = "jsonpath={.data.ca-bundle}";
    let args = ["get", "configmap", "kubevirt-ca", "-n", "kubevirt", "-o", path];
    certificates(&run(&mut home.kubectl(&args))?)
}

/// A client of a component, without any rights.
pub fn client(home: &Home, ip: &str) -> Result<Client> {
    let mut config = Config::new(format!("https://{ip}:8443").parse()?);
    config.root_cert = Some(bundle(home)?.iter().map(|der| der.to_vec()).collect());
    config.tls_server_name = Some(SERVER.to_owned());
    Ok(Client::try_from(config)?)
}

/// The certificate that a component shows.
fn shown(home: &Home, ip: &str) -> Result<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    for authority in bundle(home)? {
        roots.add(authority)?;
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(SERVER)?)?;
    let mut stream = TcpStream::connect((ip, 8443))?;
    stream.set_read_timeout(Some(SOON))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    let shown = chain.first().context("it shows a certificate")?.clone().into_owned();
    connection.send_close_notify();
    connection.write_tls(&mut stream)?;
    stream.flush()?;
    Ok(shown)
}

/// The certificate in a Secret.
fn kept(home: &Home, secret: &str) -> Result<CertificateDer<'static>> {
    let template = "go-template={{index .data \"tls.crt\" | base64decode}}";
    let pem = run(&mut home.kubectl(&["get", "secret", secret, "-n", "kubevirt", "-o", template]))?;
    certificates(&pem)?.into_iter().next().context("it holds a certificate")
}

/// Certificates are renewed and shown without a restart, and without a word to who is connected.
pub async fn certificates_rotate(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.shell(SOON)?;
    let before = restarts(home)?;
    let secrets = [
        ("virt-api", "kubevirt-virt-api-certs"),
        ("virt-handler", "kubevirt-virt-handler-server-certs"),
        ("", "kubevirt-virt-api-client-certs"),
    ];
    for (_, secret) in secrets {
        let old = kept(home, secret)?;
        run(&mut home.kubectl(&["delete", "secret", "-n", "kubevirt", secret]))?;
        eventually(&format!("{secret} holds a new certificate"), SOON, || async {
            match kept(home, secret) {
                Ok(new) if new != old => Ok(()),
                other => Err(format!("{:?}", other.map(|_| "the old one"))),
            }
        })
        .await?;
    }
    for (component, secret) in secrets.iter().filter(|(component, _)| !component.is_empty()) {
        let new = kept(home, secret)?;
        for pod in pods(home, component)? {
            let ip = pod["status"]["podIP"].as_str().context("a pod has an address")?;
            eventually(&format!("{component} at {ip} shows it"), PROPAGATION, || async {
                match shown(home, ip) {
                    Ok(found) if found == new => Ok(()),
                    other => Err(format!("{:?}", other.map(|_| "the old one"))),
                }
            })
            .await?;
        }
    }
    // The open console goes on, and new ones come about.
    console.send("echo still-$((6*7))\n")?;
    console.expect("still-42", SOON)?;
    drop(console);
    let said = ask_guest(home, ns, "a", "uname")?;
    ensure!(said.contains("Linux"), "{said}");
    let after = restarts(home)?;
    ensure!(before == after, "a component was restarted: {before} became {after}");
    Ok(())
}

fn restarts(home: &Home) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[*].restartCount} {end}";
    run(&mut home.kubectl(&["get", "pod", "-n", "kubevirt", "-o", path]))
}
