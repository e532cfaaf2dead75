//! `ferrovirt up`, `down` and `status` as a user meets them. Needs root.
#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// An installation of its own: `ferrovirt`, and beside it something that is no launcher, as no guest is started.
struct Installed {
    directory: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ferrovirt-up-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let executable = env!("CARGO_BIN_EXE_ferrovirt");
        for name in ["ferrovirt", "virt-launcher"] {
            let path = directory.path().join(name);
            if fs::hard_link(executable, &path).is_err() {
                fs::copy(executable, &path).unwrap();
            }
        }
        Self { directory }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("ferrovirt"));
        command.args(arguments).arg("--data-dir").arg(self.data());
        command
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        text(self.command(arguments).output().unwrap())
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        self.run(&["down", "--purge", "--yes"]);
    }
}

fn text(output: Output) -> (bool, String) {
    let all = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(all).unwrap())
}

#[tokio::test]
async fn a_day_in_the_life() {
    let home = Installed::new();
    let (_, status) = home.run(&["status"]);
    assert!(status.contains("not running; `ferrovirt up` starts it"), "{status}");
    let up = ["up", "--background", "--listen", "127.0.0.1:0", "--kvm", "off"];
    let (ok, said) = home.run(&up);
    assert!(ok && said.contains("is ready at https://127.0.0.1:"), "{said}");

    let kubeconfig = kube::config::Kubeconfig::read_from(home.data().join("kubeconfig")).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let nodes = kube::Api::<k8s_openapi::api::core::v1::Node>::all(client);
    let nodes = nodes.list(&Default::default()).await.unwrap().items;
    let ready = nodes[0].status.clone().unwrap().conditions.unwrap();
    assert!(
        ready
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    );

    let (ok, said) = home.run(&up);
    assert!(ok && said.contains("already running"), "{said}");
    let (ok, said) = home.run(&["up"]);
    assert!(!ok && said.contains("already running"), "{said}");
    let (_, status) = home.run(&["status"]);
    assert!(
        status.contains("running, version") && status.contains("No virtual machines"),
        "{status}"
    );

    let (ok, said) = home.run(&["down"]);
    assert!(ok && said.contains("control plane stopped"), "{said}");
    let (ok, said) = home.run(&["down"]);
    assert!(ok && said.contains("no control plane is running"), "{said}");
    let (ok, said) = text(
        home.command(&["down", "--purge"])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap(),
    );
    assert!(!ok && said.contains("add --yes"), "{said}");
    let (ok, said) = home.run(&["down", "--purge", "--yes"]);
    assert!(ok && said.contains("is removed"), "{said}");
    assert!(!home.data().exists());
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let home = Installed::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for mode in [&["up"][..], &["up", "--background"]] {
        let (ok, said) = home.run(&[mode, &["--listen", &address]].concat());
        assert!(
            !ok && said.contains(&format!("another program listens on {address}; choose another address")),
            "{said}"
        );
    }
}

#[test]
fn who_is_not_root_is_told() {
    let home = Installed::new();
    let (ok, said) = text(home.command(&["up"]).uid(65534).gid(65534).output().unwrap());
    assert!(!ok && said.contains("you are not root"), "{said}");
}

#[test]
fn a_missing_launcher_is_told() {
    let home = Installed::new();
    fs::remove_file(home.directory.path().join("virt-launcher")).unwrap();
    let (ok, said) = home.run(&["up"]);
    assert!(!ok && said.contains("virt-launcher is not beside"), "{said}");
}

#[test]
fn nothing_but_a_data_directory_is_purged() {
    let home = Installed::new();
    fs::create_dir(home.data()).unwrap();
    fs::write(home.data().join("precious"), "").unwrap();
    let (ok, said) = home.run(&["down", "--purge", "--yes"]);
    assert!(
        !ok && said.contains("is no data directory of ferrovirt; nothing was removed"),
        "{said}"
    );
    assert!(home.data().join("precious").exists());
}
