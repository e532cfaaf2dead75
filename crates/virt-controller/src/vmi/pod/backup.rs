//! What programs for backups run in the launcher's container: `virt-freezer`, around the copy of the guest's disks.
//! The annotations are Velero's (backup hooks).

use std::collections::BTreeMap;

use serde_json::json;

/// Annotations of a pod by their keys; what its VMI says itself (another command, or a timeout) stays.
pub(super) fn hooks(namespace: &str, vmi: &str, annotations: &mut BTreeMap<String, String>) {
    for (moment, flag) in [("pre", "--freeze"), ("post", "--unfreeze")] {
        let command = json!(["/usr/bin/virt-freezer", flag, "--name", vmi, "--namespace", namespace]);
        for (what, value) in [("container", "compute".to_owned()), ("command", command.to_string())] {
            let key = format!("{moment}.hook.backup.velero.io/{what}");
            annotations.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmis_own_hooks_stay() {
        let mut annotations =
            BTreeMap::from([("pre.hook.backup.velero.io/command".to_owned(), "[\"true\"]".to_owned())]);
        hooks("ns", "vm", &mut annotations);
        let expected = [
            (
                "post.hook.backup.velero.io/command",
                r#"["/usr/bin/virt-freezer","--unfreeze","--name","vm","--namespace","ns"]"#,
            ),
            ("post.hook.backup.velero.io/container", "compute"),
            ("pre.hook.backup.velero.io/command", r#"["true"]"#),
            ("pre.hook.backup.velero.io/container", "compute"),
        ];
        let found: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }
}
