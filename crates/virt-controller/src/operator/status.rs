//! The status of a KubeVirt object. Pure.

use std::fmt;

use ferrovirt_api::v1::{KubeVirtCondition, KubeVirtStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::inputs::Inputs;

/// How far an installation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something is being installed for the first time; what is waited for.
    Deploying(String),
    /// Another version is being installed.
    Updating(String),
    /// All is there and works.
    Deployed,
    /// All was there, and something does not work now.
    Unready(String),
    /// Something cannot be done.
    Failed(String),
    /// Being removed; what is waited for.
    Deleting(String),
    /// A removal that may not be done, as there are workloads.
    DeletionBlocked(String),
    /// Removed.
    Deleted,
    /// Not the object that counts.
    Refused(String),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deploying(what) => write!(f, "deploying: {what}"),
            Self::Updating(what) => write!(f, "updating: {what}"),
            Self::Deployed => f.write_str("deployed"),
            Self::Unready(what) => write!(f, "not ready: {what}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Deleting(what) => write!(f, "deleting: {what}"),
            Self::DeletionBlocked(why) => write!(f, "not deleted: {why}"),
            Self::Deleted => f.write_str("deleted"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

impl Progress {
    fn phase(&self, before: Option<&str>) -> String {
        match self {
            Self::Deploying(_) => "Deploying",
            Self::Updating(_) | Self::Deployed | Self::Unready(_) => "Deployed",
            Self::Failed(_) => before.unwrap_or("Deploying"),
            Self::Deleting(_) | Self::DeletionBlocked(_) => "Deleting",
            Self::Deleted => "Deleted",
            Self::Refused(_) => before.unwrap_or_default(),
        }
        .to_owned()
    }

    /// Type, status, reason and message of each condition.
    fn conditions(&self, available: bool) -> Vec<(&'static str, bool, &'static str, String)> {
        let all = |reason, message: &String, states: [(&'static str, bool); 3]| -> Vec<_> {
            let states = states.into_iter();
            states
                .map(|(kind, status)| (kind, status, reason, message.clone()))
                .collect()
        };
        let states = |available, progressing, degraded| {
            [
                ("Available", available),
                ("Progressing", progressing),
                ("Degraded", degraded),
            ]
        };
        let created = (
            "Created",
            true,
            "AllResourcesCreated",
            "All resources were created.".to_owned(),
        );
        let ready = "All components are ready.".to_owned();
        let mut conditions = match self {
            Self::Deploying(what) => all("DeploymentInProgress", what, states(false, true, false)),
            Self::Updating(what) => all("UpdateInProgress", what, states(true, true, true)),
            Self::Deployed => all("AllComponentsReady", &ready, states(true, false, false)),
            Self::Unready(what) => all("ComponentsNotReady", what, states(false, true, true)),
            Self::Failed(why) => all("DeploymentFailed", why, states(available, false, true)),
            Self::Deleting(what) => all("DeletionInProgress", what, states(false, true, true)),
            Self::DeletionBlocked(why) => all("DeletionFailed", why, states(available, false, true)),
            Self::Deleted => all(
                "Deleted",
                &"All resources were removed.".to_owned(),
                states(false, false, true),
            ),
            Self::Refused(_) => Vec::new(),
        };
        match self {
            Self::Deployed | Self::Unready(_) | Self::Updating(_) => conditions.push(created),
            Self::Failed(why) => conditions.push(("Synchronized", false, "DeploymentFailed", why.clone())),
            Self::DeletionBlocked(why) => conditions.push(("Synchronized", false, "DeletionFailed", why.clone())),
            Self::Refused(why) => conditions.push(("Synchronized", false, "ExistingDeployment", why.clone())),
            Self::Deploying(_) | Self::Deleting(_) | Self::Deleted => {}
        }
        conditions
    }
}

/// The status after `old`, or `None` if it says the same.
#[must_use]
pub fn status(
    old: Option<&KubeVirtStatus>,
    progress: &Progress,
    inputs: Option<&Inputs>,
    generation: Option<i64>,
    operator_version: &str,
    now: Timestamp,
) -> Option<KubeVirtStatus> {
    let before = old.cloned().unwrap_or_default();
    let available = before
        .conditions
        .iter()
        .any(|c| c.r#type == "Available" && c.status == "True");
    let mut new = before.clone();
    new.phase = Some(progress.phase(before.phase.as_deref()));
    new.operator_version = Some(operator_version.to_owned());
    if let Some(inputs) = inputs {
        let id = inputs.deployment_id();
        new.target_deployment_id = Some(id.clone());
        new.target_kube_virt_version = Some(inputs.version.clone());
        new.target_kube_virt_registry = Some(inputs.registry.clone());
        new.default_architecture = Some(architecture().to_owned());
        if *progress == Progress::Deployed {
            new.observed_deployment_id = Some(id);
            new.observed_kube_virt_version = Some(inputs.version.clone());
            new.observed_kube_virt_registry = Some(inputs.registry.clone());
            new.observed_generation = generation;
        }
    }
    let conditions = progress.conditions(available).into_iter();
    new.conditions = conditions
        .map(|(kind, status, reason, message)| {
            let status = if status { "True" } else { "False" };
            let same = before
                .conditions
                .iter()
                .find(|c| c.r#type == kind && c.status == status);
            KubeVirtCondition {
                r#type: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_probe_time: None,
                last_transition_time: same.map_or_else(|| Some(Time(now)), |c| c.last_transition_time.clone()),
            }
        })
        .collect();
    (new != before).then_some(new)
}

/// Of VMs that name none: that of this process.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(status: &KubeVirtStatus) -> String {
        let conditions: Vec<String> = status
            .conditions
            .iter()
            .map(|c| format!("{}={}:{}", c.r#type, c.status, c.reason.as_deref().unwrap_or_default()))
            .collect();
        format!(
            "{} {}",
            status.phase.as_deref().unwrap_or_default(),
            conditions.join(" ")
        )
    }

    #[test]
    fn an_installation_from_beginning_to_end() {
        let wait = |what: &str| what.to_owned();
        let mut status: Option<KubeVirtStatus> = None;
        for (progress, expected) in [
            (
                Progress::Deploying(wait("x")),
                "Deploying Available=False:DeploymentInProgress Progressing=True:DeploymentInProgress Degraded=False:DeploymentInProgress",
            ),
            (
                Progress::Failed(wait("x")),
                "Deploying Available=False:DeploymentFailed Progressing=False:DeploymentFailed Degraded=True:DeploymentFailed Synchronized=False:DeploymentFailed",
            ),
            (
                Progress::Deployed,
                "Deployed Available=True:AllComponentsReady Progressing=False:AllComponentsReady Degraded=False:AllComponentsReady Created=True:AllResourcesCreated",
            ),
            (
                Progress::Failed(wait("x")),
                "Deployed Available=True:DeploymentFailed Progressing=False:DeploymentFailed Degraded=True:DeploymentFailed Synchronized=False:DeploymentFailed",
            ),
            (
                Progress::Updating(wait("x")),
                "Deployed Available=True:UpdateInProgress Progressing=True:UpdateInProgress Degraded=True:UpdateInProgress Created=True:AllResourcesCreated",
            ),
            (
                Progress::DeletionBlocked(wait("x")),
                "Deleting Available=True:DeletionFailed Progressing=False:DeletionFailed Degraded=True:DeletionFailed Synchronized=False:DeletionFailed",
            ),
            (
                Progress::Deleting(wait("x")),
                "Deleting Available=False:DeletionInProgress Progressing=True:DeletionInProgress Degraded=True:DeletionInProgress",
            ),
            (
                Progress::Deleted,
                "Deleted Available=False:Deleted Progressing=False:Deleted Degraded=True:Deleted",
            ),
        ] {
            let new = self::status(status.as_ref(), &progress, None, Some(1), "v1", Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(summary(&new), expected, "{progress:?}");
            let later = Timestamp::from_second(60).unwrap();
            assert_eq!(self::status(Some(&new), &progress, None, Some(1), "v1", later), None);
            status = Some(new);
        }
    }
}
