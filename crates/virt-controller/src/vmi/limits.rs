//! Limits of pods where quotas count them: without any, nothing could be created in such a namespace.

use std::collections::BTreeMap;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::machine::Machine;
use ferrovirt_core::names::MEMORY_LIMIT_RATIO_LABEL;
use ferrovirt_core::overhead::{TRANSLATIONS, vcpus};
use ferrovirt_core::preset::selects;
use ferrovirt_core::vmi::conditions as rules;
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, ResourceQuota};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::context::Trouble;

/// How many times the memory that it requests a pod may have where the namespace does not say.
const MEMORY_RATIO: f64 = 2.0;

/// Limits that a pod is to get.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wanted {
    /// As many CPUs as its guest has.
    cpu: bool,
    /// So many times the memory that it requests.
    memory: Option<f64>,
}

fn compute(pod: &Pod) -> Option<&Container> {
    let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.find(|container| container.name == "compute")
}

/// Whether a pod has no limit of a resource.
fn lacks(pod: &Pod, resource: &str) -> bool {
    let resources = compute(pod).and_then(|container| container.resources.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    limits.is_none_or(|limits| !limits.contains_key(resource))
}

/// Whether a quota counts limits of a resource.
fn counts(quotas: &[ResourceQuota], resource: &str) -> bool {
    let hard = quotas.iter().filter_map(|quota| quota.spec.as_ref()?.hard.as_ref());
    hard.into_iter()
        .any(|hard| hard.contains_key(&format!("limits.{resource}")))
}

/// How many times the memory that they request pods may have, by the namespace's labels.
fn ratio(labels: &BTreeMap<String, String>) -> f64 {
    let said = labels
        .get(MEMORY_LIMIT_RATIO_LABEL)
        .and_then(|ratio| ratio.parse().ok());
    said.filter(|ratio: &f64| ratio.is_finite() && *ratio >= 1.0)
        .unwrap_or(MEMORY_RATIO)
}

/// Which limits a pod is to get beside its own. Asks the API server only for what may matter.
///
/// # Errors
/// The namespace or its quotas cannot be read.
pub async fn wanted(client: &Client, namespace: &str, pod: &Pod, config: &ClusterConfig) -> Result<Wanted, Trouble> {
    let (cpu, memory) = (lacks(pod, "cpu"), lacks(pod, "memory"));
    if !cpu && !memory {
        return Ok(Wanted::default());
    }
    let failed = |error: &kube::Error| {
        let doing = format!("failed to read the quotas of namespace {namespace}");
        Trouble::failed(rules::FAILED_CREATE, &doing, error)
    };
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
    let quotas = quotas
        .list(&ListParams::default())
        .await
        .map_err(|error| failed(&error))?
        .items;
    let (by_quota, memory) = (cpu && counts(&quotas, "cpu"), memory && counts(&quotas, "memory"));
    let selector = config.auto_cpu_limit.as_ref().filter(|_| cpu && !by_quota);
    let labels = if memory || selector.is_some() {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let metadata = namespaces
            .get_metadata(namespace)
            .await
            .map_err(|error| failed(&error))?;
        metadata.labels().clone()
    } else {
        BTreeMap::new()
    };
    Ok(Wanted {
        cpu: by_quota || selector.is_some_and(|selector| selects(selector, &labels)),
        memory: memory.then(|| ratio(&labels)),
    })
}

/// Gives a pod the limits that it is to get. What it requests is within them.
pub fn add(pod: &mut Pod, vmi: &VirtualMachineInstance, config: &ClusterConfig, wanted: Wanted) {
    let containers = pod.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    let Some(compute) = containers.into_iter().find(|container| container.name == "compute") else {
        return;
    };
    let resources = compute.resources.get_or_insert_default();
    let millis = |name: &str| {
        let request = resources.requests.as_ref().and_then(|requests| requests.get(name));
        let millis = request.and_then(|request| Quantity(request.0.clone()).millis().ok());
        millis.and_then(|millis| u64::try_from(millis).ok()).unwrap_or_default()
    };
    let (cpu, memory) = (millis("cpu"), millis("memory") / 1000);
    let limits = resources.limits.get_or_insert_default();
    if wanted.cpu {
        let own = Machine::parse(vmi, config).map_or(1, |machine| vcpus(&machine, &vmi.spec));
        let limit = own.saturating_mul(1000).max(cpu);
        limits.insert("cpu".to_owned(), K8sQuantity(format!("{limit}m")));
    }
    if let Some(ratio) = wanted.memory {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a ratio of bytes; the cast saturates"
        )]
        let limit = (memory as f64 * ratio) as u64;
        let translations = if config.use_emulation { TRANSLATIONS } else { 0 };
        let limit = limit.saturating_add(translations);
        limits.insert("memory".to_owned(), K8sQuantity(limit.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
    use ferrovirt_core::machine::Architecture;
    use kube::api::{Patch, PatchParams, PostParams};
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: &Value) -> Pod {
        let containers = json!([{"name": "other"}, {"name": "compute", "resources": resources}]);
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn quotas_that_count_limits_are_found() {
        let quota = |hard: Value| -> ResourceQuota { serde_json::from_value(json!({"spec": {"hard": hard}})).unwrap() };
        for (quotas, cpu, memory) in [
            (vec![], false, false),
            (vec![quota(json!({"requests.cpu": "4", "memory": "1Gi"}))], false, false),
            (vec![quota(json!({"limits.cpu": "4"}))], true, false),
            (
                vec![
                    quota(json!({"limits.memory": "1Gi"})),
                    quota(json!({"limits.cpu": "4"})),
                ],
                true,
                true,
            ),
        ] {
            assert_eq!(
                (counts(&quotas, "cpu"), counts(&quotas, "memory")),
                (cpu, memory),
                "{quotas:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_namespace_and_its_quotas_decide() {
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("system:serviceaccount:kubevirt:kubevirt-controller"));
        let none = pod(&json!({}));
        let mut config = ClusterConfig::default();
        let look = async |pod: &Pod, config: &ClusterConfig| wanted(&client, "default", pod, config).await.unwrap();
        assert_eq!(look(&none, &config).await, Wanted::default());

        let labels = json!({"metadata": {"labels": {"limit": "yes", MEMORY_LIMIT_RATIO_LABEL: "3"}}});
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let change = Patch::Merge(labels);
        namespaces
            .patch("default", &PatchParams::default(), &change)
            .await
            .unwrap();
        let selector = |value: &str| serde_json::from_value(json!({"matchLabels": {"limit": value}})).unwrap();
        for (value, cpu) in [("yes", true), ("no", false)] {
            config.auto_cpu_limit = Some(selector(value));
            assert_eq!(look(&none, &config).await, Wanted { cpu, memory: None });
        }

        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"limits.memory": "9Gi", "limits.cpu": "9"}}});
        let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), "default");
        let quota = serde_json::from_value(quota).unwrap();
        quotas.create(&PostParams::default(), &quota).await.unwrap();
        let all = Wanted {
            cpu: true,
            memory: Some(3.0),
        };
        assert_eq!(look(&none, &config).await, all);
        let some = pod(&json!({"limits": {"cpu": "1"}}));
        assert_eq!(look(&some, &config).await, Wanted { cpu: false, ..all });
        let both = pod(&json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
        assert_eq!(look(&both, &config).await, Wanted::default());
    }

    #[test]
    fn namespaces_say_how_many_times_the_memory() {
        for (label, times) in [
            (None, 2.0),
            (Some("1.5"), 1.5),
            (Some("1"), 1.0),
            (Some("0.5"), 2.0),
            (Some("much"), 2.0),
            (Some("inf"), 2.0),
        ] {
            let labels = label.map(|label| (MEMORY_LIMIT_RATIO_LABEL.to_owned(), label.to_owned()));
            let found = ratio(&labels.into_iter().collect());
            assert!((found - times).abs() < f64::EPSILON, "{label:?}: {found}");
        }
    }

    #[test]
    fn pods_lack_what_they_have_no_limit_of() {
        let some = pod(&json!({"limits": {"memory": "1Gi"}}));
        assert_eq!((lacks(&some, "cpu"), lacks(&some, "memory")), (true, false));
        assert!(lacks(&pod(&json!({})), "memory"));
    }

    #[test]
    fn limits_are_no_less_than_what_is_requested() {
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..ClusterConfig::default()
        };
        let emulated = ClusterConfig {
            use_emulation: true,
            ..config.clone()
        };
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x"},
            "spec": {"domain": {"devices": {}, "memory": {"guest": "1Gi"}, "cpu": {"cores": 3}}},
        }))
        .unwrap();
        let all = |memory| Wanted {
            cpu: true,
            memory: Some(memory),
        };
        for (config, cpu, wanted, limits) in [
            (
                &config,
                "300m",
                all(2.0),
                json!({"x/y": "1", "cpu": "3000m", "memory": "2000"}),
            ),
            (
                &config,
                "4",
                all(1.5),
                json!({"x/y": "1", "cpu": "4000m", "memory": "1500"}),
            ),
            (&config, "300m", Wanted::default(), json!({"x/y": "1"})),
            (
                &emulated,
                "300m",
                Wanted {
                    cpu: false,
                    memory: Some(1.0),
                },
                json!({"x/y": "1", "memory": (1000 + TRANSLATIONS).to_string()}),
            ),
        ] {
            let mut pod = pod(&json!({"requests": {"cpu": cpu, "memory": "1000"}, "limits": {"x/y": "1"}}));
            add(&mut pod, &vmi, config, wanted);
            let resources = compute(&pod).and_then(|compute| compute.resources.clone()).unwrap();
            assert_eq!(serde_json::to_value(resources.limits).unwrap(), limits, "{wanted:?}");
        }
    }
}
