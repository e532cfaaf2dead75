//! What an image consists of, as an SPDX 2.3 document: Debian packages and Rust crates, each with version and digest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::contents::SUITE;
use super::debian::Package;
use super::sha256_text;

/// Where what is built here comes from.
const SUITE_OF_SOURCES: &str = "trixie";

/// A crate that is compiled into an executable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    /// As in Cargo.lock; our own crates have none.
    pub sha256: Option<String>,
}

/// What cargo knows of this workspace.
pub struct Workspace {
    metadata: Value,
    checksums: BTreeMap<(String, String), String>,
}

impl Workspace {
    /// Asks cargo, which must not change Cargo.lock for it.
    pub fn read() -> Result<Self> {
        let output = crate::cargo::cargo()
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform=x86_64-unknown-linux-gnu",
            ])
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let root = metadata["workspace_root"].as_str().unwrap_or(".");
        let lock = std::fs::read_to_string(format!("{root}/Cargo.lock")).context("cannot read Cargo.lock")?;
        Ok(Self {
            checksums: checksums(&lock),
            metadata,
        })
    }

    /// Where cargo builds.
    pub fn target(&self) -> &str {
        self.metadata["target_directory"].as_str().unwrap_or("target")
    }

    /// The crates that are compiled into the executable of crate `name`.
    pub fn crates_of(&self, name: &str) -> Result<BTreeSet<Crate>> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let by_id = |list: Vec<Value>| -> BTreeMap<String, Value> {
            let id = |value: &Value| value["id"].as_str().unwrap_or_default().to_owned();
            list.into_iter().map(|value| (id(&value), value)).collect()
        };
        let packages = by_id(list(&self.metadata["packages"]));
        let nodes = by_id(list(&self.metadata["resolve"]["nodes"]));
        let root = packages
            .iter()
            .find(|(_, package)| package["name"] == name && package["source"].is_null());
        let mut queue = vec![
            root.with_context(|| format!("the workspace has no crate {name}"))?
                .0
                .clone(),
        ];
        let mut seen = BTreeSet::new();
        let mut crates = BTreeSet::new();
        while let Some(id) = queue.pop() {
            let Some(package) = packages.get(&id) else { continue };
            // Macros run in the compiler.
            let is_macro = list(&package["targets"])
                .iter()
                .any(|target| list(&target["kind"]).contains(&json!("proc-macro")));
            if is_macro || !seen.insert(id.clone()) {
                continue;
            }
            let text = |field: &str| package[field].as_str().map(str::to_owned);
            let (name, version) = (text("name").unwrap_or_default(), text("version").unwrap_or_default());
            crates.insert(Crate {
                sha256: self.checksums.get(&(name.clone(), version.clone())).cloned(),
                license: text("license"),
                name,
                version,
            });
            for dependency in nodes.get(&id).map(|node| list(&node["deps"])).unwrap_or_default() {
                let normal = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
                queue.extend(dependency["pkg"].as_str().filter(|_| normal).map(str::to_owned));
            }
        }
        Ok(crates)
    }
}

/// Name and version of each package of Cargo.lock with its checksum.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let value = |field: &str| {
            let line = package
                .lines()
                .find_map(|line| line.strip_prefix(field)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(checksum)) = (value("name"), value("version"), value("checksum")) {
            all.insert((name, version), checksum);
        }
    }
    all
}

/// The document. The same image gives the same text.
pub fn document(
    image: &str,
    version: &str,
    created: &str,
    packages: &[&Package],
    crates: &BTreeSet<Crate>,
) -> Result<String> {
    let none = "NOASSERTION";
    let mut elements = vec![json!({
        "SPDXID": "SPDXRef-Image", "name": image, "versionInfo": version, "downloadLocation": none,
        "filesAnalyzed": false, "primaryPackagePurpose": "CONTAINER",
        "licenseConcluded": none, "licenseDeclared": env!("CARGO_PKG_LICENSE"), "copyrightText": none,
    })];
    elements.extend(packages.iter().map(|package| debian_element(package)));
    elements.extend(crates.iter().map(crate_element));
    let relationships: Vec<Value> = elements
        .iter()
        .map(|element| {
            let (from, kind) = match element["SPDXID"].as_str() {
                Some("SPDXRef-Image") => ("SPDXRef-DOCUMENT", "DESCRIBES"),
                _ => ("SPDXRef-Image", "CONTAINS"),
            };
            json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": element["SPDXID"]})
        })
        .collect();
    let contents = sha256_text(&serde_json::to_string(&elements)?)?;
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{image}-{version}"),
        "documentNamespace": format!("{}/spdx/{image}-{version}-{contents}", env!("CARGO_PKG_REPOSITORY")),
        "creationInfo": {"created": created, "creators": ["Tool: cargo xtask images"]},
        "packages": elements,
        "relationships": relationships,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn debian_element(package: &Package) -> Value {
    let Package {
        name,
        version,
        architecture,
        ..
    } = package;
    let suite = if architecture == "source" {
        SUITE_OF_SOURCES
    } else {
        SUITE
    };
    let url = format!(
        "pkg:deb/debian/{}@{}?arch={architecture}&distro={suite}",
        percent(name),
        percent(version)
    );
    let mut element = json!({
        "SPDXID": format!("SPDXRef-deb-{}-{}", identifier(name), identifier(version)),
        "name": name,
        "versionInfo": version,
        "supplier": supplier(&package.maintainer),
        "downloadLocation": format!("https://deb.debian.org/debian/{}", package.file),
        "filesAnalyzed": false,
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}],
    });
    if let Some(homepage) = &package.homepage {
        element["homepage"] = json!(homepage);
    }
    if let Some(source) = &package.source {
        element["sourceInfo"] = json!(format!("built from Debian source package {source}"));
    }
    if package.file.contains("/updates/") {
        element["downloadLocation"] = json!(format!("https://deb.debian.org/debian-security/{}", package.file));
    }
    element
}

fn crate_element(krate: &Crate) -> Value {
    let Crate { name, version, .. } = krate;
    let mut element = json!({
        "SPDXID": format!("SPDXRef-crate-{}-{}", identifier(name), identifier(version)),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        // Old crates separate alternatives by a slash.
        "licenseDeclared": krate.license.as_deref().map_or("NOASSERTION".to_owned(), |license| license.replace('/', " OR ")),
        "copyrightText": "NOASSERTION",
    });
    if let Some(sha256) = &krate.sha256 {
        element["downloadLocation"] = json!(format!("https://static.crates.io/crates/{name}/{name}-{version}.crate"));
        element["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": sha256}]);
        let url = format!("pkg:cargo/{name}@{}", percent(version));
        element["externalRefs"] =
            json!([{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}]);
    }
    element
}

/// SPDX identifiers have letters, digits, dots and hyphens; what is replaced keeps its code, so that they stay different.
fn identifier(text: &str) -> String {
    let part = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' => c.to_string(),
        _ => format!(".{:02x}.", u32::from(c)),
    };
    text.chars().map(part).collect()
}

fn percent(text: &str) -> String {
    let part = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' | '~' => c.to_string(),
        ':' => ":".to_owned(),
        _ => format!("%{:02X}", u32::from(c)),
    };
    text.chars().map(part).collect()
}

/// `Name <address>` as SPDX writes it.
fn supplier(maintainer: &str) -> String {
    match maintainer.split_once(" <") {
        Some((name, address)) => format!("Organization: {} ({})", name, address.trim_end_matches('>')),
        None => format!("Organization: {maintainer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"b\"\nversion = \"2\"\n";
        assert_eq!(
            checksums(lock),
            BTreeMap::from([(("a".into(), "1.0".into()), "ab".into())])
        );
    }

    #[test]
    fn crates_that_are_compiled_in() {
        let crates = Workspace::read().unwrap().crates_of("xtask").unwrap();
        let named = |name: &str| crates.iter().find(|krate| krate.name == name);
        assert!(
            named("serde_json")
                .unwrap()
                .sha256
                .as_ref()
                .is_some_and(|sum| sum.len() == 64)
        );
        assert!(named("xtask").unwrap().sha256.is_none());
        assert!(named("clap_derive").is_none(), "a macro");
        assert!(named("tempfile").is_some() && named("hyper").is_none());
    }

    #[test]
    fn the_document() {
        let package = Package {
            name: "libstdc++6".into(),
            version: "1:12+deb".into(),
            architecture: "amd64".into(),
            source: Some("gcc".into()),
            maintainer: "GCC <gcc@debian.org>".into(),
            homepage: None,
            file: "pool/l.deb".into(),
            sha256: "ab".into(),
        };
        let krate = Crate {
            name: "a_b".into(),
            version: "1.0.0+x".into(),
            license: Some("MIT/Apache-2.0".into()),
            sha256: None,
        };
        let text = document("i", "1", "1970-01-01T00:00:00Z", &[&package], &BTreeSet::from([krate])).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let packages = document["packages"].as_array().unwrap();
        assert_eq!(packages[1]["SPDXID"], "SPDXRef-deb-libstdc.2b..2b.6-1.3a.12.2b.deb");
        assert_eq!(
            packages[1]["externalRefs"][0]["referenceLocator"],
            "pkg:deb/debian/libstdc%2B%2B6@1:12%2Bdeb?arch=amd64&distro=bookworm"
        );
        assert_eq!(packages[1]["supplier"], "Organization: GCC (gcc@debian.org)");
        assert_eq!(packages[2]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(document["relationships"].as_array().unwrap().len(), 3);
        assert_eq!(document["relationships"][0]["relationshipType"], "DESCRIBES");
    }
}
