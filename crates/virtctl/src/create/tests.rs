//! What comes out of which flags; and that admission takes it.

use clap::FromArgMatches;

use super::*;
use crate::cli::{Cli, Command, command};

fn created(line: &str) -> anyhow::Result<Value> {
    Ok(created_with_warnings(line)?.0)
}

fn created_with_warnings(line: &str) -> anyhow::Result<(Value, Vec<&'static str>)> {
    let words = ["virtctl", "create", "vm"].into_iter().chain(line.split_whitespace());
    let cli = Cli::from_arg_matches(&command("virtctl").try_get_matches_from(words)?)?;
    let Command::Create(Create::Vm(arguments)) = cli.command else {
        panic!("{line} is no create vm");
    };
    let password = arguments.password_file.as_ref().map(|_| "secret");
    let name = arguments.name.as_deref().unwrap_or("vm-x");
    machine(&arguments, name, cli.global.namespace.as_deref(), password)
}

#[test]
fn without_flags() {
    let expected = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm-x"},
        "spec": {
            "runStrategy": "Always",
            "template": {"spec": {
                "domain": {"devices": {}, "resources": {}, "memory": {"guest": "512Mi"}},
                "terminationGracePeriodSeconds": 180,
            }},
        },
    });
    assert_eq!(created("").unwrap(), expected);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn what_flags_do() {
    let spec = "/spec/template/spec";
    for (line, pointer, expected) in [
        ("--name=a", "/metadata/name", json!("a")),
        ("-n ns", "/metadata", json!({"name": "vm-x", "namespace": "ns"})),
        (
            "--volume-import=type:http,url:https://h/x,size:1Gi,extraheaders:A:1;B:2,secretextraheaders:s",
            "/spec/dataVolumeTemplates/0/spec/source/http",
            json!({"url": "https://h/x", "extraHeaders": ["A:1", "B:2"], "secretExtraHeaders": ["s"]}),
        ),
        (
            "--volume-import=type:registry,imagestream:is,size:1Gi,pullmethod:node",
            "/spec/dataVolumeTemplates/0/spec/source/registry",
            json!({"imageStream": "is", "pullMethod": "node"}),
        ),
        (
            "--volume-sysprep=src:answers,type:configMap",
            &format!("{spec}/volumes/0/sysprep"),
            json!({"configMap": {"name": "answers"}}),
        ),
        (
            "--access-cred=src:keys,method:configdrive --user=jane",
            &format!("{spec}/volumes/0/cloudInitConfigDrive/userData"),
            json!("#cloud-config\nuser: jane\n"),
        ),
        (
            "--access-cred=src:keys,user:jane",
            &format!("{spec}/volumes/0/cloudInitNoCloud/userData"),
            json!("#cloud-config\nruncmd:\n- - setsebool\n  - -P\n  - virt_qemu_ga_manage_ssh\n  - on\n"),
        ),
        (
            "--ssh-key=one,two --cloud-init=ConfigDrive",
            &format!("{spec}/volumes/0/cloudInitConfigDrive/userData"),
            json!("#cloud-config\nssh_authorized_keys:\n- one\n- two\n"),
        ),
        ("--run-strategy=Manual", "/spec/runStrategy", json!("Manual")),
        (
            "--termination-grace-period=5",
            "/spec/template/spec/terminationGracePeriodSeconds",
            json!(5),
        ),
        ("--memory=2Gi", "/spec/template/spec/domain/memory/guest", json!("2Gi")),
        (
            "--volume-containerdisk=src:host:5000/image:1 --volume-containerdisk=src:b,name:second",
            &format!("{spec}/volumes"),
            json!([
                {"name": "vm-x-containerdisk-0", "containerDisk": {"image": "host:5000/image:1"}},
                {"name": "second", "containerDisk": {"image": "b"}},
            ]),
        ),
        (
            "--volume-pvc=src:claim,bootorder:2 --volume-containerdisk=src:i,bootorder:1",
            &format!("{spec}/domain/devices/disks"),
            json!([
                {"name": "vm-x-containerdisk-0", "disk": {"bus": "virtio"}, "bootOrder": 1},
                {"name": "claim", "disk": {"bus": "virtio"}, "bootOrder": 2},
            ]),
        ),
        (
            "--volume-import=type:http,url:https://h/x.img,size:1Gi",
            "/spec/dataVolumeTemplates/0",
            json!({"metadata": {"name": "vm-x-imported-0"}, "spec": {
                "source": {"http": {"url": "https://h/x.img"}},
                "storage": {"resources": {"requests": {"storage": "1Gi"}}},
            }}),
        ),
        (
            "--volume-blank=size:1Gi,name:empty",
            "/spec/dataVolumeTemplates/0/spec/source",
            json!({"blank": {}}),
        ),
        (
            "--volume-datasource=src:ns/debian",
            "/spec/dataVolumeTemplates/0/spec/sourceRef",
            json!({"kind": "DataSource", "namespace": "ns", "name": "debian"}),
        ),
        (
            "--volume-clone-pvc=src:ns/gold",
            "/spec/dataVolumeTemplates/0/spec/source",
            json!({"pvc": {"namespace": "ns", "name": "gold"}}),
        ),
        (
            "--volume-sysprep=src:answers,type:secret",
            &format!("{spec}/volumes/0"),
            json!({"name": "sysprepdisk", "sysprep": {"secret": {"name": "answers"}}}),
        ),
        (
            "--instancetype=virtualmachineinstancetype/small --preference=linux",
            "/spec/instancetype",
            json!({"kind": "virtualmachineinstancetype", "name": "small"}),
        ),
        (
            "--infer-preference --volume-pvc=src:a --volume-pvc=src:b,bootorder:1",
            "/spec/preference",
            json!({"inferFromVolume": "b"}),
        ),
        (
            "--infer-instancetype-from=a --volume-pvc=src:a",
            "/spec/instancetype",
            json!({"inferFromVolume": "a"}),
        ),
        (
            "--cloud-init=configdrive --cloud-init-user-data=eA== --cloud-init-network-data=eQ==",
            &format!("{spec}/volumes/0/cloudInitConfigDrive"),
            json!({"userDataBase64": "eA==", "networkDataBase64": "eQ=="}),
        ),
        (
            "--access-cred=src:keys,user:jane",
            &format!("{spec}/accessCredentials/0"),
            json!({"sshPublicKey": {"source": {"secret": {"secretName": "keys"}},
                "propagationMethod": {"qemuGuestAgent": {"users": ["jane"]}}}}),
        ),
        (
            "--access-cred=src:keys,method:nocloud",
            &format!("{spec}/volumes/0"),
            json!({"name": "cloudinitdisk", "cloudInitNoCloud": {"userData": "#cloud-config\n"}}),
        ),
        (
            "--access-cred=src:words,type:password",
            &format!("{spec}/accessCredentials/0/userPassword/propagationMethod"),
            json!({"qemuGuestAgent": {}}),
        ),
    ] {
        let found = created(line).unwrap();
        assert_eq!(found.pointer(pointer), Some(&expected), "{line}: {found}");
    }
    let made = created("--user=jane --password-file=p --ssh-key=one --ssh-key=two --ga-manage-ssh").unwrap();
    let data = made.pointer("/spec/template/spec/volumes/0/cloudInitNoCloud/userData");
    let text = data.and_then(Value::as_str).unwrap();
    let config: Value = serde_yaml_ng::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    let expected = json!({
        "user": "jane",
        "password": "secret",
        "chpasswd": {"expire": false},
        "ssh_authorized_keys": ["one", "two"],
        "runcmd": [["setsebool", "-P", "virt_qemu_ga_manage_ssh", "on"]],
    });
    assert_eq!(config, expected);
    let sized = created("--instancetype=small").unwrap();
    assert!(sized.pointer("/spec/template/spec/domain/memory").is_none(), "{sized}");
}

#[test]
fn what_admission_would_say() {
    for line in [
        "",
        "--volume-containerdisk=src:image:1,bootorder:1 --user=jane --ssh-key=key --memory=1Gi",
        "--volume-containerdisk=src:image:1 --cloud-init=configdrive --cloud-init-user-data=I2Nsb3VkLWNvbmZpZwo=",
        "--volume-containerdisk=src:image:1 --cloud-init=none --run-strategy=Halted",
    ] {
        let yaml = serde_yaml_ng::to_string(&created(line).unwrap()).unwrap();
        assert_eq!(crate::validate::complaints(&yaml), "", "{line}:\n{yaml}");
    }
}

#[test]
fn what_the_user_should_know() {
    for (line, warning, volumes) in [
        ("--user=a --ssh-key=k", None, 1),
        ("--user=a --password-file=p", Some("clear text"), 1),
        ("--user=a --cloud-init=none", Some("leaves no place"), 0),
        ("--password-file=p --cloud-init=NONE", Some("leaves no place"), 0),
        (
            "--cloud-init-user-data=eA== --cloud-init=none",
            Some("leaves no place"),
            0,
        ),
        ("--cloud-init=none", None, 0),
        ("--access-cred=src:a,user:u --cloud-init=none", None, 0),
        ("--access-cred=src:a,user:u --ga-manage-ssh=false", None, 0),
    ] {
        let (made, warnings) = created_with_warnings(line).unwrap();
        assert_eq!(warnings.len(), usize::from(warning.is_some()), "{line}: {warnings:?}");
        assert!(
            warning.is_none_or(|warning| warnings[0].contains(warning)),
            "{line}: {warnings:?}"
        );
        let found = made.pointer("/spec/template/spec/volumes").and_then(Value::as_array);
        assert_eq!(found.map_or(0, Vec::len), volumes, "{line}: {made}");
    }
}

#[test]
fn what_makes_no_sense() {
    for (line, why) in [
        ("--name=Not_Good", "no name of a Kubernetes object"),
        ("--run-strategy=Sometimes", "invalid value"),
        ("--memory=1Gi --instancetype=small", "cannot be used with"),
        ("--volume-containerdisk=image", "is not NAME:VALUE"),
        ("--volume-containerdisk=name:x", "src:VALUE is missing"),
        ("--volume-containerdisk=src:a,src:b", "given twice"),
        ("--volume-containerdisk=src:a,size:1", "size is no parameter of it"),
        ("--volume-containerdisk=src:a,bootorder:0", "no number from 1"),
        (
            "--volume-pvc=src:a,bootorder:1 --volume-pvc=src:b,bootorder:1",
            "multiple times",
        ),
        ("--volume-pvc=src:a --volume-pvc=src:a", "already"),
        ("--volume-pvc=src:ns/a", "of its own namespace"),
        ("--volume-import=type:blank", "size:QUANTITY is missing"),
        ("--volume-import=type:magic,size:1", "no way to import"),
        ("--volume-import=type:http,size:1Gi", "url:VALUE is missing"),
        ("--volume-sysprep=src:a,type:x", "neither configmap nor secret"),
        ("--infer-preference", "no volume to infer it from"),
        ("--infer-preference-from=a", "no volume \"a\""),
        ("--access-cred=src:a", "user:NAME"),
        (
            "--access-cred=src:a,type:password,method:nocloud",
            "cannot carry a password",
        ),
        ("--access-cred=src:a,type:x", "neither ssh nor password"),
        (
            "--access-cred=src:a,method:configdrive --cloud-init=nocloud",
            "must be the same",
        ),
        (
            "--access-cred=src:a,method:configdrive --access-cred=src:a,method:nocloud",
            "all of method",
        ),
        ("--volume-import=type:registry,size:1Gi", "exactly one of"),
        (
            "--volume-import=type:registry,size:1Gi,url:u,imagestream:i",
            "exactly one of",
        ),
        (
            "--access-cred=src:a,method:nocloud --cloud-init=none",
            "leaves no place",
        ),
        ("--user=a --cloud-init-user-data=eA==", "cannot be used with"),
    ] {
        let error = created(line).err().map(|error| format!("{error:#}"));
        let error = error.unwrap_or_else(|| panic!("{line} was accepted"));
        assert!(error.contains(why), "{line}: {error}");
    }
}
