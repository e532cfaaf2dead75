//! Debian packages: which versions there are, fetched and unpacked. Nothing is installed and no package's script is run, so
//! neither root nor a chroot is needed, and the host's own packages play no part.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::contents::{PREFERENCES, SOURCES};
use super::{run, say, sha256_text};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Security updates must come in without being asked for.
const LISTS_LAST: Duration = Duration::from_secs(24 * 3600);

/// A package in the version that is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Its source package, and that one's version where it differs.
    pub source: Option<String>,
    pub maintainer: String,
    pub homepage: Option<String>,
    /// Path in Debian's pool.
    pub file: String,
    pub sha256: String,
}

/// An apt with state of its own.
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Prepares it in `dir`, and fetches the lists of packages if there are none or old ones.
    pub fn open(dir: &Path) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing; install the package debian-archive-keyring");
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("cannot make {}", dir.join(part).display()))?;
        }
        let apt = Self { dir: dir.to_owned() };
        let sources = SOURCES.join("\n").replace("KEYRING", KEYRING) + "\n";
        apt.write("sources.list", &sources)?;
        apt.write("preferences", PREFERENCES)?;
        apt.write("status", "")?;
        apt.write("apt.conf", &apt.configuration())?;
        let fetched = apt.dir.join("fetched");
        let age = fs::metadata(&fetched)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_none_or(|age| age > LISTS_LAST) {
            say("fetching Debian's lists of packages");
            match run(apt.command("apt-get").args(["-qq", "update"])) {
                Ok(()) => {
                    fs::write(&fetched, "").with_context(|| format!("cannot write {}", fetched.display()))?;
                    apt.forget_resolutions()?;
                }
                Err(error) if age.is_some() => {
                    say(&format!("{error:#}; going on with the lists of the last time"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(apt)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn configuration(&self) -> String {
        let dir = self.dir.display();
        format!(
            "Dir::Etc::main \"/dev/null\";\n\
             Dir::Etc::parts \"/dev/null\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::Etc::trusted \"/dev/null\";\n\
             Dir::Etc::trustedparts \"/dev/null\";\n\
             Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
             Dir::Etc::preferences \"{dir}/preferences\";\n\
             Dir::State \"{dir}\";\n\
             Dir::State::lists \"{dir}/lists\";\n\
             Dir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}/cache\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             APT::Architecture \"amd64\";\n\
             APT::Architectures \"amd64\";\n\
             APT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Debug::NoLocking \"true\";\n"
        )
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn forget_resolutions(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).context("cannot read apt's directory")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "resolved") {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The packages and all that they depend on, by name.
    pub fn resolve(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        let question = format!("{SOURCES:?}{PREFERENCES}{wanted:?}");
        let known = self.dir.join(format!("{}.resolved", sha256_text(&question)?));
        if let Ok(text) = fs::read(&known)
            && let Ok(packages) = serde_json::from_slice(&text)
        {
            return Ok(packages);
        }
        let plan = output(self.command("apt-get").args(["-qq", "-s", "install"]).args(wanted))?;
        let exact = parse_plan(&plan);
        let stanzas = output(self.command("apt-cache").args(["-q", "show"]).args(&exact))?;
        let packages = parse_stanzas(&stanzas, &exact)?;
        fs::write(&known, serde_json::to_vec(&packages)?)
            .with_context(|| format!("cannot write {}", known.display()))?;
        Ok(packages)
    }

    /// Fetches what is not there yet, checked against the signed lists, and returns where.
    pub fn download(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let exact = packages
            .iter()
            .map(|package| format!("{}={}", package.name, package.version));
        run(self
            .command("apt-get")
            .args(["-qq", "-y", "--download-only", "install"])
            .args(exact))?;
        // Older versions than Debian has now are of no more use.
        run(self.command("apt-get").args(["-qq", "autoclean"]))?;
        let archives = self.dir.join("cache/archives");
        packages
            .iter()
            .map(|package| {
                let version = package.version.replace(':', "%3a");
                let path = archives.join(format!("{}_{version}_{}.deb", package.name, package.architecture));
                if path.exists() {
                    Ok(path)
                } else {
                    bail!("apt fetched no {}", path.display())
                }
            })
            .collect()
    }
}

/// Unpacks a package's files.
pub fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(dir))
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}; the images are built from Debian packages"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// `NAME=VERSION` of each package that apt would install.
fn parse_plan(plan: &str) -> Vec<String> {
    let mut exact: Vec<String> = plan
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            let version = rest.strip_prefix('(')?.split(' ').next()?;
            Some(format!("{name}={version}"))
        })
        .collect();
    exact.sort();
    exact
}

fn parse_stanzas(text: &str, exact: &[String]) -> Result<Vec<Package>> {
    let mut found = stanzas(text)?;
    exact
        .iter()
        .map(|exact| {
            let package = found.remove(exact);
            package.with_context(|| format!("apt would install {exact} but says nothing about it"))
        })
        .collect()
}

/// What `apt-cache show` says, by `NAME=VERSION`.
pub fn stanzas(text: &str) -> Result<BTreeMap<String, Package>> {
    let mut found = BTreeMap::new();
    for stanza in text.split("\n\n") {
        let fields: BTreeMap<&str, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_once(": "))
            .collect();
        let Some(name) = fields.get("Package") else { continue };
        let field = |field: &str| {
            let value = fields.get(field).map(|value| (*value).to_owned());
            value.with_context(|| format!("apt says no {field} of package {name}"))
        };
        let package = Package {
            name: (*name).to_owned(),
            version: field("Version")?,
            architecture: field("Architecture")?,
            source: field("Source").ok(),
            maintainer: field("Maintainer")?,
            homepage: field("Homepage").ok(),
            file: field("Filename")?,
            sha256: field("SHA256")?,
        };
        found.insert(format!("{}={}", package.name, package.version), package);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_install() {
        let plan =
            "Inst libc6 (2.36-9 Debian:12/stable [amd64]) []\nInst acl (1:2 Debian [all])\nConf acl (1:2 Debian)\n";
        assert_eq!(parse_plan(plan), ["acl=1:2", "libc6=2.36-9"]);
    }

    #[test]
    fn what_apt_says_of_packages() {
        let text = "Package: acl\nVersion: 1:2\nArchitecture: all\nMaintainer: M <m@x>\nDescription: a\n b: c\n\
                    Filename: pool/a.deb\nSHA256: ab\n\nPackage: acl\nVersion: 1\nArchitecture: all\nMaintainer: M\n\
                    Filename: pool/b.deb\nSHA256: cd\n";
        let packages = parse_stanzas(text, &["acl=1:2".to_owned()]).unwrap();
        assert_eq!(packages.len(), 1);
        assert_eq!(
            (packages[0].file.as_str(), packages[0].source.as_deref()),
            ("pool/a.deb", None)
        );
        let error = parse_stanzas(text, &["acl=9".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("acl=9"), "{error}");
    }
}
