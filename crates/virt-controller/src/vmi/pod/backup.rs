//! What programs for backups run in the launcher's container: `virt-freezer`, around the copy of the guest's disks.
//! The annotations are Velero's (backup hooks).

use std::collections::BTreeMap;

use ferrovirt_core::names;
use serde_json::json;

/// More than `virt-freezer` takes; Velero alone would wait for 30 s, take the hook for failed, and leave a guest that
/// stands still.
const TIMEOUT: &str = "60s";

/// Adds the hooks to a pod's annotations, among which are its VMI's: they say whether there are none, else `skip` does,
/// and what they say of a hook itself (another command, or a timeout) stays.
pub(super) fn hooks(namespace: &str, vmi: &str, skip: bool, annotations: &mut BTreeMap<String, String>) {
    let own = annotations.get(names::SKIP_BACKUP_HOOKS_ANNOTATION);
    if own.and_then(|value| names::boolean(value)).unwrap_or(skip) {
        return;
    }
    for (moment, flag) in [("pre", "--freeze"), ("post", "--unfreeze")] {
        let command = json!(["/usr/bin/virt-freezer", flag, "--name", vmi, "--namespace", namespace]);
        for (what, value) in [
            ("container", "compute".to_owned()),
            ("command", command.to_string()),
            ("timeout", TIMEOUT.to_owned()),
        ] {
            let key = format!("{moment}.hook.backup.velero.io/{what}");
            annotations.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(own: &[(&str, &str)], skip: bool) -> BTreeMap<String, String> {
        let own = own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut annotations = own.collect();
        hooks("ns", "vm", skip, &mut annotations);
        annotations
    }

    #[test]
    fn a_vmis_own_hooks_stay() {
        let own = [
            ("pre.hook.backup.velero.io/command", "[\"true\"]"),
            ("pre.hook.backup.velero.io/timeout", "5s"),
        ];
        let expected = [
            (
                "post.hook.backup.velero.io/command",
                r#"["/usr/bin/virt-freezer","--unfreeze","--name","vm","--namespace","ns"]"#,
            ),
            ("post.hook.backup.velero.io/container", "compute"),
            ("post.hook.backup.velero.io/timeout", "60s"),
            ("pre.hook.backup.velero.io/command", r#"["true"]"#),
            ("pre.hook.backup.velero.io/container", "compute"),
            ("pre.hook.backup.velero.io/timeout", "5s"),
        ];
        let annotations = annotations(&own, false);
        let found: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn hooks_can_be_left_out() {
        let key = names::SKIP_BACKUP_HOOKS_ANNOTATION;
        for (own, skip, hooks) in [
            (None, false, true),
            (None, true, false),
            (Some("true"), false, false),
            (Some("T"), false, false),
            (Some("false"), true, true),
            (Some("perhaps"), false, true),
        ] {
            let own: Vec<(&str, &str)> = own.map(|value| (key, value)).into_iter().collect();
            let found = annotations(&own, skip).keys().any(|key| key.contains("velero"));
            assert_eq!(found, hooks, "{own:?} {skip}");
        }
    }
}
