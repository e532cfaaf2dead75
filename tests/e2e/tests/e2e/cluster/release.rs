//! Which version is installed, and installing another as a user does.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, condition, run};
use serde_json::{Value, json};

/// How long all components may take to be replaced, one node after the other.
const ROLLOUT: Duration = Duration::from_secs(240);
/// The images of a release.
const IMAGES: [&str; 3] = ["ferrovirt", "virt-handler", "virt-launcher"];

/// Where a version's images are, and which it is.
#[derive(Clone, Debug)]
pub struct Release {
    /// Registry and path.
    pub registry: String,
    /// Tag of the images, and version.
    pub tag: String,
}

impl Release {
    /// What the operator that runs is of.
    pub fn of_operator(home: &Home) -> Result<Self> {
        let path = "jsonpath={.spec.template.spec.containers[0].image}";
        let image = run(&mut home.kubectl(&["get", "deployment", "virt-operator", "-n", "kubevirt", "-o", path]))?;
        let (repository, tag) = image.rsplit_once(':').context("the operator's image has a tag")?;
        let (registry, _) = repository
            .rsplit_once('/')
            .context("the operator's image has a registry")?;
        Ok(Self {
            registry: registry.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The same images under the tag of a later version, one that no node has pulled.
    pub fn later(&self) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let later = Self {
            registry: self.registry.clone(),
            tag: format!("v99.0.{}", now.as_secs()),
        };
        for image in IMAGES {
            let name = |release: &Self| format!("docker://{}/{image}:{}", release.registry, release.tag);
            run(std::process::Command::new("skopeo")
                .args(["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"])
                .args([name(self), name(&later)]))?;
        }
        Ok(later)
    }

    /// Writes the manifests that users apply.
    fn manifests(&self, home: &Home, directory: &str) -> Result<String> {
        let args = ["manifests", directory, "--registry", &self.registry, "--tag", &self.tag];
        run(&mut home.ferrovirt(&args))?;
        Ok(format!("{directory}/ferrovirt-operator.yaml"))
    }

    /// Applies the operator's manifests and waits until the new one runs.
    pub fn install_operator(&self, home: &Home) -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = self.manifests(home, &directory.path().to_string_lossy())?;
        run(&mut home.kubectl(&["apply", "-f", &file]))?;
        let rollout = [
            "rollout",
            "status",
            "deployment/virt-operator",
            "-n",
            "kubevirt",
            "--timeout=120s",
        ];
        run(&mut home.kubectl(&rollout)).map(drop)
    }

    /// Removes what was applied for the operator.
    pub fn remove_operator(&self, home: &Home) -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = self.manifests(home, &directory.path().to_string_lossy())?;
        run(&mut home.kubectl(&["delete", "-f", &file, "--timeout=120s"])).map(drop)
    }

    /// Waits until all components are of this version, and gives the KubeVirt object.
    pub async fn deployed(&self, home: &Home) -> Result<Value> {
        let kubevirt = home
            .wait(
                "KubeVirt",
                "kubevirt",
                "kubevirt",
                ROLLOUT,
                &format!("{} is deployed", self.tag),
                |kubevirt| {
                    let status = &kubevirt["status"];
                    status["observedKubeVirtVersion"] == self.tag.as_str()
                        && status["targetKubeVirtVersion"] == self.tag.as_str()
                        && status["observedDeploymentID"] == status["targetDeploymentID"]
                        && condition(kubevirt, "Available")["status"] == "True"
                        && condition(kubevirt, "Progressing")["status"] == "False"
                        && condition(kubevirt, "Degraded")["status"] == "False"
                },
            )
            .await?;
        ensure!(
            kubevirt["status"]["phase"] == "Deployed"
                && kubevirt["status"]["observedKubeVirtRegistry"] == self.registry.as_str(),
            "{}",
            kubevirt["status"]
        );
        Ok(kubevirt)
    }

    /// Makes this version the installed one, whatever was tried before.
    pub async fn restore(&self, home: &Home) -> Result<()> {
        patch_kubevirt(home, &json!({"imageTag": null}))?;
        self.install_operator(home)?;
        self.deployed(home).await.map(drop)
    }
}

/// Changes `spec` of the KubeVirt object.
pub fn patch_kubevirt(home: &Home, spec: &Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    let args = ["patch", "kv/kubevirt", "-n", "kubevirt", "--type=merge", "-p", &patch];
    run(&mut home.kubectl(&args)).map(drop)
}

/// The pods of some components that are not about to go.
pub fn pods(home: &Home, components: &str) -> Result<Vec<Value>> {
    let selector = format!("kubevirt.io in ({components})");
    let list = run(&mut home.kubectl(&["get", "pods", "-n", "kubevirt", "-l", &selector, "-o", "json"]))?;
    let list: Value = serde_json::from_str(&list)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .into_iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect())
}
