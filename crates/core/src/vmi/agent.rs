//! What a guest agent must be able to do. Pure.

use ferrovirt_api::v1::{Probe, VirtualMachineInstanceSpec};

use super::conditions::AGENT_VERSION_NOT_SUPPORTED;
use crate::conditions::Desired;

/// Commands without which the agent tells too little, or cannot shut its guest down.
const BASIC: [&str; 10] = [
    "guest-ping",
    "guest-get-time",
    "guest-info",
    "guest-shutdown",
    "guest-network-get-interfaces",
    "guest-get-fsinfo",
    "guest-get-host-name",
    "guest-get-users",
    "guest-get-timezone",
    "guest-get-osinfo",
];
/// What public keys are given to users by.
const KEYS: [&str; 1] = ["guest-ssh-add-authorized-keys"];
/// What passwords are given to users by.
const PASSWORDS: [&str; 1] = ["guest-set-user-password"];
/// What probes run commands by.
const EXEC: [&str; 2] = ["guest-exec", "guest-exec-status"];

/// Whether anything is decided on an agent having this command.
#[must_use]
pub fn matters(command: &str) -> bool {
    let groups = [&BASIC[..], &KEYS, &PASSWORDS, &EXEC];
    groups.iter().any(|group| group.contains(&command))
}

/// `AgentVersionNotSupported`, if an agent that has these commands lacks what its VMI uses.
#[must_use]
pub fn not_supported(spec: &VirtualMachineInstanceSpec, commands: &[String]) -> Option<Desired> {
    let credentials = &spec.access_credentials;
    let keys = credentials.iter().any(|credential| {
        let key = credential.ssh_public_key.as_ref();
        key.is_some_and(|key| key.propagation_method.qemu_guest_agent.is_some())
    });
    let passwords = credentials.iter().any(|credential| {
        let password = credential.user_password.as_ref();
        password.is_some_and(|password| password.propagation_method.qemu_guest_agent.is_some())
    });
    let runs = |probe: &Option<Probe>| probe.as_ref().is_some_and(|probe| probe.exec.is_some());
    let exec = runs(&spec.readiness_probe) || runs(&spec.liveness_probe);
    let groups = [
        (true, "basic commands", &BASIC[..]),
        (keys, "public key commands", &KEYS),
        (passwords, "password commands", &PASSWORDS),
        (exec, "exec probe commands", &EXEC),
    ];
    groups
        .into_iter()
        .filter(|(used, ..)| *used)
        .find_map(|(_, what, group)| {
            let lacks = |name: &&&str| !commands.iter().any(|command| command == **name);
            let missing: Vec<&str> = group.iter().filter(lacks).copied().collect();
            (!missing.is_empty()).then(|| {
                // KubeVirt has its sentence as the reason, and clients look for it there.
                let reason = format!("This guest agent doesn't support required {what}");
                let message = format!("{reason}: {}", missing.join(", "));
                Desired::new(AGENT_VERSION_NOT_SUPPORTED, true, reason, message)
            })
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_agent_must_have_what_its_vmi_uses() {
        let by_agent = json!({"source": {"secret": {"secretName": "s"}}, "propagationMethod": {"qemuGuestAgent": {"users": ["x"]}}});
        let on_seed = json!({"source": {"secret": {"secretName": "s"}}, "propagationMethod": {"noCloud": {}}});
        let keys = |how: &Value| json!({"accessCredentials": [{"sshPublicKey": how}]});
        let password = json!({"source": {"secret": {"secretName": "s"}}, "propagationMethod": {"qemuGuestAgent": {}}});
        let passwords = json!({"accessCredentials": [{"userPassword": password}]});
        let probe = json!({"readinessProbe": {"exec": {"command": ["true"]}}});
        for (spec, lacks, reason) in [
            (json!({}), "", None),
            (json!({}), "guest-get-users", Some("basic commands: guest-get-users")),
            (json!({}), "guest-exec", None),
            (json!({}), "guest-set-user-password", None),
            (keys(&by_agent), "", None),
            (
                keys(&by_agent),
                "guest-ssh-add-authorized-keys",
                Some("public key commands: guest-ssh-add-authorized-keys"),
            ),
            (keys(&on_seed), "guest-ssh-add-authorized-keys", None),
            (
                passwords,
                "guest-set-user-password",
                Some("password commands: guest-set-user-password"),
            ),
            (probe.clone(), "guest-exec", Some("exec probe commands: guest-exec")),
            (probe, "", None),
        ] {
            let mut whole = json!({"domain": {"devices": {}}});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let whole = serde_json::from_value(whole).unwrap();
            let groups = [&BASIC[..], &KEYS, &PASSWORDS, &EXEC].concat();
            assert!(groups.iter().all(|name| matters(name)) && !matters("guest-suspend-ram"));
            let all = groups.into_iter().filter(|name| *name != lacks);
            let all: Vec<String> = all.map(str::to_owned).collect();
            let told = not_supported(&whole, &all).map(|desired| desired.message);
            let expected = reason.map(|what| format!("This guest agent doesn't support required {what}"));
            assert_eq!(told, expected, "{spec} without {lacks:?}");
        }
    }
}
