//! What the cluster is made of, built or downloaded once per machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::process::tail;
use super::run::output;

/// What is the same for every version of the sources of a Go program.
const GO_ENVIRONMENT: [(&str, &str); 3] = [
    ("CGO_ENABLED", "0"),
    ("GOFLAGS", "-buildvcs=false"),
    ("GOTOOLCHAIN", "auto"),
];

/// Programs from this Debian release that must be installed.
const INSTALLED: [&str; 12] = [
    "busybox-static",
    "conntrack",
    "containernetworking-plugins",
    "docker-registry",
    "ipset",
    "iproute2",
    "iptables",
    "nftables",
    "runc",
    "skopeo",
    "umoci",
    "util-linux",
];

/// Where the executables are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// All of Kubernetes' components.
    pub kubernetes: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
    /// Outlives others, as the first process of pods and nodes.
    pub pause: PathBuf,
    /// Enforces NetworkPolicies on a node.
    pub network_policy: PathBuf,
    /// Makes volumes for claims.
    pub volumes: PathBuf,
    /// etcd 3.5.
    pub etcd: PathBuf,
    /// The directory of containerd 2.1 and its shim.
    pub containerd: PathBuf,
}

/// Builds and downloads what is not in the cache yet, one caller at a time.
///
/// # Errors
/// Debian's mirrors or the Go module proxy cannot be reached, or a build fails: then with the end of its log.
pub fn all(cache: &Path) -> Result<Programs> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the cache")?;
    install()?;
    Ok(Programs {
        etcd: debian(cache, "trixie", "etcd-server")?.join("usr/bin/etcd"),
        // Its image volumes are newer than what Debian 12 has.
        containerd: debian(cache, "sid", "containerd")?.join("usr/bin"),
        pause: go(cache, "pause", None)?,
        coredns: go(cache, "coredns", Some("github.com/coredns/coredns"))?,
        network_policy: go(cache, "network-policy", Some("k8s.io/client-go"))?,
        volumes: go(cache, "volumes", Some("k8s.io/client-go"))?,
        kubernetes: go(cache, "kubernetes", Some("k8s.io/kubernetes"))?,
    })
}

fn install() -> Result<()> {
    let missing: Vec<&str> = INSTALLED
        .into_iter()
        .filter(|package| {
            !output("dpkg-query", &["-W", "-f", "${db:Status-Status}", package])
                .is_ok_and(|status| status == "installed")
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("cluster: installing {}", missing.join(" "));
    let mut args = vec!["-qq", "install", "-y", "--no-install-recommends"];
    args.extend(&missing);
    let install = || {
        let status = Command::new("apt-get")
            .args(&args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .context("cannot run apt-get: this takes Debian 12")?;
        Ok::<_, anyhow::Error>(status)
    };
    if !install()?.status.success() {
        output("apt-get", &["-qq", "update"])?;
        let second = install()?;
        if !second.status.success() {
            bail!(
                "apt-get {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&second.stderr).trim()
            );
        }
    }
    Ok(())
}

/// The unpacked package of another Debian release, which does not touch this one's installation.
fn debian(cache: &Path, suite: &str, package: &str) -> Result<PathBuf> {
    let root = cache.join("debian").join(format!("{suite}-{package}"));
    if root.exists() {
        return Ok(root);
    }
    println!("cluster: downloading {package} of Debian {suite}");
    let work = cache.join("debian").join(format!("{suite}-{package}.part"));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    for directory in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(directory)).with_context(|| format!("cannot make {}", work.display()))?;
    }
    fs::write(
        work.join("sources.list"),
        format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
        ),
    )?;
    let at = |name: &str| work.join(name).display().to_string();
    let options = [
        "-qq".to_owned(),
        "-oAPT::Sandbox::User=root".to_owned(),
        "-oDir::Etc::sourceparts=/dev/null".to_owned(),
        format!("-oDir::Etc::sourcelist={}", at("sources.list")),
        format!("-oDir::State::lists={}", at("lists")),
        format!("-oDir::Cache={}", at("cache")),
    ];
    for action in [&["update"][..], &["download", package][..]] {
        let result = Command::new("apt-get")
            .args(&options)
            .args(action)
            .current_dir(&work)
            .output()
            .context("cannot run apt-get")?;
        if !result.status.success() {
            bail!(
                "apt-get {} from Debian {suite} failed: {}",
                action.join(" "),
                String::from_utf8_lossy(&result.stderr).trim()
            );
        }
    }
    let archive = fs::read_dir(&work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    output("dpkg", &["-x", &archive.display().to_string(), &at("root")])?;
    fs::rename(work.join("root"), &root).with_context(|| format!("cannot make {}", root.display()))?;
    fs::remove_dir_all(&work)?;
    Ok(root)
}

/// The executable of one of our Go modules; named by the version of its main dependency and by its sources.
fn go(cache: &Path, name: &str, main: Option<&str>) -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name);
    let version = match main {
        Some(module) => required(&fs::read_to_string(sources.join("go.mod"))?, module)
            .with_context(|| format!("{}/go.mod does not require {module}", sources.display()))?,
        None => "1".to_owned(),
    };
    let flags = link_flags(name, &version);
    let key = format!("{version}-{}", fingerprint(&sources, &flags)?);
    let executable = cache.join(name).join(key).join(name);
    if executable.exists() {
        return Ok(executable);
    }
    build(cache, &sources, &flags, &executable)?;
    Ok(executable)
}

fn link_flags(name: &str, version: &str) -> String {
    let mut flags = "-s -w".to_owned();
    if name == "kubernetes" {
        // kubectl cannot parse a server's version that nobody has set.
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
        for (key, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X k8s.io/component-base/version.{key}={value}"));
        }
    }
    flags
}

fn build(cache: &Path, sources: &Path, flags: &str, executable: &Path) -> Result<()> {
    let name = executable
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let log = cache.join(format!("{name}-build.log"));
    println!(
        "cluster: building {name} (once per machine; Kubernetes takes some minutes), see {}",
        log.display()
    );
    let part = executable.with_extension("part");
    if let Some(parent) = executable.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(&log)?;
    let mut child = Command::new("nice")
        .args([
            "-n",
            "5",
            &compiler()?.display().to_string(),
            "build",
            "-trimpath",
            "-ldflags",
            flags,
            "-o",
        ])
        .arg(&part)
        .arg(".")
        .current_dir(sources)
        .envs(GO_ENVIRONMENT)
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot run go")?;
    let start = Instant::now();
    let mut said = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() - said > Duration::from_secs(30) {
            said = start.elapsed();
            println!("cluster: still building {name} after {} s", said.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("go build of {name} failed; {}", tail(&log));
    }
    fs::rename(&part, executable).with_context(|| format!("cannot make {}", executable.display()))
}

fn compiler() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/go/bin")])
        .map(|directory| directory.join("go"))
        .find(|program| program.is_file())
        .context("there is no Go; install Go 1.26 or later into /usr/local/go (https://go.dev/dl)")
}

/// The version of a module that a go.mod requires.
fn required(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
            .filter(|version| version.starts_with('v'))
            .map(str::to_owned)
    })
}

fn fingerprint(sources: &Path, flags: &str) -> Result<String> {
    let mut hash = Sha256::new();
    let mut files: Vec<PathBuf> = fs::read_dir(sources)
        .with_context(|| format!("cannot read {}", sources.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.to_string_lossy().ends_with("_test.go"))
        .collect();
    files.sort();
    for file in files {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    hash.update(flags);
    Ok(hash
        .finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_requirements() {
        let text = "module x\n\nrequire k8s.io/kubernetes v1.36.2\n\nrequire (\n\tk8s.io/api v0.36.2 // indirect\n)\n\n\
                    replace (\n\tk8s.io/client-go => k8s.io/client-go v0.36.2\n)\n";
        for (module, version) in [
            ("k8s.io/kubernetes", Some("v1.36.2")),
            ("k8s.io/api", Some("v0.36.2")),
            ("k8s.io/client-go", None),
            ("k8s.io/absent", None),
        ] {
            assert_eq!(required(text, module).as_deref(), version, "{module}");
        }
    }

    #[test]
    fn kubernetes_knows_its_version() {
        let flags = link_flags("kubernetes", "v1.36.2");
        for part in ["gitVersion=v1.36.2", "gitMajor=1 ", "gitMinor=36 "] {
            assert!(flags.contains(part), "{flags}");
        }
        assert_eq!(link_flags("coredns", "v1.15.0"), "-s -w");
    }
}
