//! Evictions of launcher pods: a VMI that should move rather than end answers 429, and is marked so that it moves.

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::conditions;
use ferrovirt_core::names::{APP_LABEL, DOMAIN_ANNOTATION, VIRT_LAUNCHER};
use ferrovirt_core::vmi::Phase;
use ferrovirt_core::vmi::conditions::LIVE_MIGRATABLE;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::status::{self, Refusal};

/// What an eviction of a VMI's pod leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// The pod goes, and the guest with it.
    Allow,
    /// The VMI is marked to leave this node; the pod stays meanwhile.
    Mark { node: String },
    /// The pod stays.
    Refuse(String),
}

/// Whether the client only wants to know.
pub(super) fn dry_run(eviction: Option<&Value>) -> bool {
    let option = eviction.and_then(|eviction| eviction.pointer("/deleteOptions/dryRun"));
    option
        .and_then(Value::as_array)
        .is_some_and(|values| !values.is_empty())
}

/// Judges the eviction of a pod; `default` is the cluster's eviction strategy.
///
/// # Errors
/// 429, which clients such as `kubectl drain` answer by asking again later.
pub(super) async fn judge(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    default: &str,
    dry_run: bool,
) -> Result<(), Refusal> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.get_opt(pod).await.map_err(status::from_client)?;
    let Some((name, node)) = found.as_ref().and_then(guest_of) else {
        return Ok(());
    };
    let vmis: Api<VirtualMachineInstance> = Api::namespaced(client.clone(), namespace);
    let Some(vmi) = vmis.get_opt(name).await.map_err(status::from_client)? else {
        return Ok(());
    };
    match decide(&vmi, node, default) {
        Verdict::Allow => Ok(()),
        Verdict::Refuse(why) => Err(later(why)),
        Verdict::Mark { node } => {
            let patch = json!([
                {"op": "test", "path": "/status/nodeName", "value": node},
                {"op": "add", "path": "/status/evacuationNodeName", "value": node},
            ]);
            let patch = serde_json::from_value(patch).map_err(status::internal)?;
            let parameters = PatchParams {
                dry_run,
                ..PatchParams::default()
            };
            vmis.patch_status(name, &parameters, &Patch::<()>::Json(patch))
                .await
                .map_err(|error| {
                    later(format!(
                        "cannot mark VMI \"{namespace}/{name}\": {}",
                        status::chain(&error)
                    ))
                })?;
            // These words are looked for by those who evict.
            Err(later(format!(
                "Eviction triggered evacuation of VMI \"{namespace}/{name}\""
            )))
        }
    }
}

fn later(why: String) -> Refusal {
    status::failure(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", why)
}

/// The VMI and the node of a launcher pod that lives.
fn guest_of(pod: &Pod) -> Option<(&str, &str)> {
    let metadata = &pod.metadata;
    let launcher = metadata.labels.as_ref()?.get(APP_LABEL)? == VIRT_LAUNCHER;
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let vmi = metadata.annotations.as_ref()?.get(DOMAIN_ANNOTATION)?;
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    (launcher && !ended).then_some((vmi.as_str(), node))
}

fn decide(vmi: &VirtualMachineInstance, node: &str, default: &str) -> Verdict {
    let name = format!(
        "\"{}/{}\"",
        vmi.metadata.namespace.as_deref().unwrap_or_default(),
        vmi.metadata.name.as_deref().unwrap_or_default()
    );
    if matches!(Phase::of(vmi), Phase::Succeeded | Phase::Failed) || vmi.metadata.deletion_timestamp.is_some() {
        return Verdict::Allow;
    }
    let strategy = vmi.spec.eviction_strategy.as_deref().unwrap_or(default);
    let status = vmi.status.clone().unwrap_or_default();
    let migratable = conditions::is_true(&status.conditions, LIVE_MIGRATABLE);
    match strategy {
        "LiveMigrate" if !migratable => {
            let why = conditions::find(&status.conditions, LIVE_MIGRATABLE)
                .and_then(|condition| condition.message.as_deref())
                .map(|message| format!(": {message}"))
                .unwrap_or_default();
            return Verdict::Refuse(format!(
                "VMI {name} has the eviction strategy LiveMigrate and cannot be migrated{why}"
            ));
        }
        "LiveMigrate" | "External" => {}
        "LiveMigrateIfPossible" if migratable => {}
        _ => return Verdict::Allow,
    }
    if status.node_name.as_deref() != Some(node) {
        return Verdict::Refuse(format!("VMI {name} is migrating to this pod"));
    }
    if status
        .evacuation_node_name
        .as_deref()
        .is_some_and(|from| !from.is_empty())
    {
        return Verdict::Refuse(format!("Evacuation of VMI {name} is in progress"));
    }
    Verdict::Mark { node: node.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmi(strategy: Option<&str>, status: Value) -> VirtualMachineInstance {
        let mut vmi = json!({
            "metadata": {"name": "x", "namespace": "ns"},
            "spec": {"domain": {"devices": {}}},
            "status": status,
        });
        if let Some(strategy) = strategy {
            vmi["spec"]["evictionStrategy"] = strategy.into();
        }
        serde_json::from_value(vmi).unwrap()
    }

    /// Shows `spec.evictionStrategy`.
    #[test]
    fn verdicts() {
        let status = |node: &str, migratable: bool| {
            let condition = json!({"type": "LiveMigratable", "status": if migratable { "True" } else { "False" }, "message": "a disk is local"});
            json!({"phase": "Running", "nodeName": node, "conditions": [condition]})
        };
        let mark = || Verdict::Mark { node: "n".into() };
        let refuse = |why: &str| Verdict::Refuse(why.to_owned());
        let blocked = "VMI \"ns/x\" has the eviction strategy LiveMigrate and cannot be migrated: a disk is local";
        let mut marked = status("n", true);
        marked["evacuationNodeName"] = "n".into();
        let mut ended = status("n", false);
        ended["phase"] = "Failed".into();
        let rows = [
            (Some("None"), "LiveMigrate", status("n", true), Verdict::Allow),
            (None, "None", status("n", true), Verdict::Allow),
            (None, "LiveMigrate", status("n", true), mark()),
            (Some("LiveMigrate"), "None", status("n", true), mark()),
            (Some("LiveMigrate"), "None", status("n", false), refuse(blocked)),
            (Some("LiveMigrate"), "None", ended, Verdict::Allow),
            (
                Some("LiveMigrateIfPossible"),
                "None",
                status("n", false),
                Verdict::Allow,
            ),
            (Some("LiveMigrateIfPossible"), "None", status("n", true), mark()),
            (Some("External"), "None", status("n", false), mark()),
            (
                Some("External"),
                "None",
                status("other", false),
                refuse("VMI \"ns/x\" is migrating to this pod"),
            ),
            (
                Some("LiveMigrate"),
                "None",
                marked,
                refuse("Evacuation of VMI \"ns/x\" is in progress"),
            ),
        ];
        for (strategy, default, status, expected) in rows {
            let found = decide(&vmi(strategy, status.clone()), "n", default);
            assert_eq!(found, expected, "{strategy:?} {default} {status}");
        }
    }

    #[test]
    fn only_living_launchers_have_a_guest() {
        let pod = |app: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"labels": {"kubevirt.io": app}, "annotations": {"kubevirt.io/domain": "x"}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        assert_eq!(guest_of(&pod("virt-launcher", "Running")), Some(("x", "n")));
        assert_eq!(guest_of(&pod("virt-launcher", "Succeeded")), None);
        assert_eq!(guest_of(&pod("virt-handler", "Running")), None);
        assert!(dry_run(Some(&json!({"deleteOptions": {"dryRun": ["All"]}}))));
        assert!(!dry_run(Some(&json!({"deleteOptions": {}}))));
    }
}
