//! Lines that people type.

use clap::FromArgMatches;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let words = std::iter::once("virtctl").chain(line.split_whitespace());
    Cli::from_arg_matches(&command("virtctl").try_get_matches_from(words)?)
}

#[test]
fn lines_that_people_type() {
    for line in [
        "start vm",
        "start vm --paused",
        "start --paused=true vm -n ns",
        "-n ns start vm",
        "--namespace=ns start vm --dry-run=false",
        "stop vm --force --grace-period=0",
        "stop vm --force=true --grace-period 0",
        "stop vm --grace-period -1",
        "restart vm --grace-period=-1",
        "pause vm name",
        "pause vmi/name --dry-run",
        "console vmi --timeout=5",
        "console --timeout 30s vmi --kubeconfig /k --context c",
        "vnc vmi --proxy-only --port=5900 --address=0.0.0.0",
        "vnc vmi --proxy-only=true --preserve-session",
        "vnc screenshot vmi --file=-",
        "vnc screenshot vmi -f a.png -m -n ns",
        "evacuate-cancel vmi name --dry-run",
        "evacuate-cancel vm/name",
        "create vm --name=a --volume-containerdisk=src:image:1,bootorder:1 --memory=1Gi",
        "create vm --infer-instancetype=true --volume-pvc=src:a",
        "validate -f a.yaml -f -",
        "validate --file a.yaml --feature-gates A,B",
        "usbredir 0951:1666 vmi",
        "usbredir --no-launch vmi",
        "expand --vm name",
        "expand -f vm.yaml -o json",
        "ssh user@vm/name --identity-file=k -p 2222 --local-ssh-opts=-oA=b -t -v",
        "ssh vmi/name/ns --username u --known-hosts= -i k -c id",
        "scp file user@vm/name:dir --recursive --preserve",
        "scp -r vm/name:dir .",
        "port-forward vm/name 8080:80 udp/53 --address ::1",
        "port-forward --stdio=true vmi/name/ns 22",
        "expose vmi name --port 22 --name n --protocol udp --type NodePort",
        "expose vm name --name n --ip-family ipv4,ipv6 --ip-family-policy preferdualstack --type loadbalancer",
        "vnc -n ns screenshot vmi -f a.png",
        "vnc vmi --vnc-type tiger --vnc-path /usr/bin/x",
        "vnc vmi --vnc-type real",
        "vnc vmi --proxy-only --address localhost",
        "port-forward --address localhost --vsock --vsock-tls=False vmi/name 22",
        "ssh vm/name --vsock",
        "scp --vsock file vm/name:file",
        "start vm --paused=True --paused=f --dry-run=1 -n a -n b",
        "start vm --kubeconfig= --token= --context= --certificate-authority=",
        "create vm --cloud-init=NoCloud --ssh-key=a,b --ga-manage-ssh=F",
        "credentials add-ssh-key -u jane -f key.pub --create-secret vm",
        "credentials remove-ssh-key --user jane --value key --force vm",
        "credentials set-password --user jane --password p --secret s --update-secret vm",
        "permitted-devices",
        "adm log-verbosity --virt-api --virt-launcher",
        "adm log-verbosity --all=3 --reset=true",
        "guestfs claim --image=i --pull-policy=IfNotPresent --kvm=false --uid 1 --gid 2 --fsGroup 3 --vm vm",
        "guestfs --root claim",
        "version -c",
        "version --client=true -v 4",
        "version --request-timeout=5 --client-certificate c --client-key k",
        "completion bash",
        "options",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn lines_that_make_no_sense() {
    for (line, why) in [
        ("", "Usage"),
        ("begin vm", "unrecognized subcommand"),
        ("start", "<VM>"),
        ("start a b", "unexpected argument"),
        ("start vm --paused=maybe", "invalid value"),
        ("pause vm a b", "unexpected"),
        ("console vmi --timeout=soon", "is no duration"),
        ("vnc vmi --port 70000", "not in 0..=65535"),
        ("vnc", "<VMI>"),
        ("vnc screenshot vmi", "--file"),
        ("create", "Usage"),
        ("create vm --cloud-init=floppy", "invalid value"),
        ("validate", "--file"),
        ("expand", "--vm"),
        ("expand --vm a -f b", "cannot be used with"),
        ("port-forward vm/name", "<PORTS>"),
        ("port-forward name 80", "type and name"),
        ("port-forward vm/name 80:x", "no port"),
        ("expose vm name --port 1", "--name"),
        ("vnc vmi --vnc-type abacus", "invalid value"),
        ("credentials add-ssh-key -u jane vm", "--file"),
        (
            "credentials add-ssh-key -u jane -f a --value b vm",
            "cannot be used with",
        ),
        ("guestfs", "<PVC>"),
    ] {
        let error = parse(line).err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| panic!("{line} was accepted"));
        assert!(error.contains(why), "{line}: {error}");
    }
}

#[test]
fn help() {
    let mut all = command("virtctl").term_width(100).render_help().to_string();
    for sub in command("virtctl").get_subcommands() {
        let mut found = command("virtctl").term_width(100);
        found.build();
        let found = found.find_subcommand_mut(sub.get_name()).unwrap();
        all.push_str(&format!("\n---- {}\n{}", sub.get_name(), found.render_help()));
        for inner in found.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            let name = inner.get_name().to_owned();
            all.push_str(&format!("\n---- {} {name}\n{}", sub.get_name(), inner.render_help()));
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn the_grammar_is_consistent() {
    command("virtctl").debug_assert();
    command("kubectl virt").debug_assert();
}

#[test]
fn names_of_the_program() {
    for (path, name) in [
        ("/usr/bin/virtctl", "virtctl"),
        ("kubectl-virt", "kubectl virt"),
        ("/x/kubectl_virt", "kubectl virt"),
    ] {
        assert_eq!(program_name(Some(&path.into())), name);
    }
}

#[test]
fn the_last_of_repeated_flags_counts() {
    for (line, paused, namespace) in [
        ("start vm --paused --paused=false", false, None),
        ("start vm --paused=F --paused=T -n a -n b", true, Some("b")),
        ("-n a start vm --namespace b", false, Some("b")),
        ("start vm -n a --namespace=", false, None),
    ] {
        let mut cli = parse(line).unwrap();
        cli.tidy();
        let Command::Start(start) = cli.command else { panic!() };
        assert_eq!(
            (start.paused, cli.global.namespace.as_deref()),
            (paused, namespace),
            "{line}"
        );
    }
}

#[test]
fn booleans_as_go_spells_them() {
    for (text, expected) in [
        ("true", Ok(true)),
        ("True", Ok(true)),
        ("TRUE", Ok(true)),
        ("t", Ok(true)),
        ("T", Ok(true)),
        ("1", Ok(true)),
        ("false", Ok(false)),
        ("False", Ok(false)),
        ("FALSE", Ok(false)),
        ("f", Ok(false)),
        ("F", Ok(false)),
        ("0", Ok(false)),
        ("yes", Err(())),
        ("", Err(())),
    ] {
        assert_eq!(boolean(text).map_err(drop), expected, "{text}");
    }
}

#[test]
fn users_of_guests_are_no_users_of_the_kubeconfig() {
    for (line, expected) in [
        ("start vm --user jane", Some("jane")),
        ("credentials set-password vm --user jane -p x", None),
        ("create vm --user jane", None),
    ] {
        let mut cli = parse(line).unwrap();
        cli.tidy();
        assert_eq!(cli.global.user.as_deref(), expected, "{line}");
    }
}
