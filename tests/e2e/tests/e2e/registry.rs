//! Images from a registry, with and without credentials.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{eventually, run};
use libtest_mimic::Trial;
use serde_json::json;
use tokio::net::TcpStream;

use super::manifest::{spec, vm};
use super::{BOOT, SOON, Shared, archive, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "registry", registry)]
}

/// Debian's `docker-registry`, ended when the test ends.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The bcrypt hash of `secret`, as `htpasswd -B` makes it.
const HTPASSWD: &str = "puller:$2b$05$.vKXhC8Ge5vDEtrtLk6MAOvWoimsWNskjs3ufNENUtPPMaJyZ3Omu\n";

async fn registry(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let dir = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let root = dir.path().display();
    std::fs::write(dir.path().join("htpasswd"), HTPASSWD)?;
    let config = dir.path().join("config.yml");
    std::fs::write(
        &config,
        json!({
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": format!("{root}/data")}},
            "http": {"addr": format!("127.0.0.1:{port}")},
            "auth": {"htpasswd": {"realm": "test", "path": format!("{root}/htpasswd")}}
        })
        .to_string(),
    )?;
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _registry = Registry(child.context("cannot run docker-registry")?);
    eventually("the registry listens", SOON, || TcpStream::connect(("127.0.0.1", port))).await?;
    let image = format!("127.0.0.1:{port}/guests/tiny:1");
    run(Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-creds=puller:secret",
        ])
        .args([
            format!("oci-archive:{}", archive("FERROVIRT_TINY", "tiny")?),
            format!("docker://{image}"),
        ]))?;

    let mut spec = spec();
    spec["volumes"][0]["containerDisk"]["image"] = json!(image);
    home.apply(ns, &vm("refused", "Always", spec.clone()))?;
    let refused = home
        .wait("VirtualMachine", ns, "refused", BOOT, "image trouble", |o| {
            matches!(
                o["status"]["printableStatus"].as_str(),
                Some("ErrImagePull" | "ImagePullBackOff")
            )
        })
        .await?;
    ensure!(refused["status"].to_string().contains(&image), "{}", refused["status"]);

    run(&mut home.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "puller",
        "-n",
        ns,
        &format!("--docker-server=127.0.0.1:{port}"),
        "--docker-username=puller",
        "--docker-password=secret",
    ]))?;
    spec["volumes"][0]["containerDisk"]["imagePullSecret"] = json!("puller");
    home.apply(ns, &vm("allowed", "Always", spec))?;
    home.wait_status(ns, "allowed", "Running", BOOT).await?;
    let listed = run(&mut home.ferrovirt(&["image", "list"]))?;
    ensure!(listed.contains(&image) && listed.contains("registry"), "{listed}");
    Ok(())
}
