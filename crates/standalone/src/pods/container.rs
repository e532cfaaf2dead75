//! From a pod's container to what `container-init` is told. Pure but for looking at the host's devices.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ferrovirt_core::names::VHOST_VSOCK_RESOURCE;
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, SecurityContext};
use kube::ResourceExt;
use nix::sys::stat::{major, minor};

use super::config::RunnerConfig;
use super::spec::{ContainerSpec, Device, Mount, User};
use super::volumes::{Volumes, field_value, unsupported};

/// User and group of our image.
pub(super) const DEFAULT_USER: u32 = 107;
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container can never be started as the pod describes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// A kubelet's word, for `state.waiting.reason`.
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    fn config(message: impl Into<String>) -> Self {
        Self {
            reason: "CreateContainerConfigError",
            message: message.into(),
        }
    }
}

/// How a container takes part in its pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Starts before the main ones and ends after them.
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

/// All containers in the order of their start.
pub(super) fn in_start_order(spec: &PodSpec) -> impl Iterator<Item = (Role, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        (if sidecar { Role::Sidecar } else { Role::Init }, container)
    });
    init.chain(spec.containers.iter().map(|container| (Role::Main, container)))
}

/// Group that owns what the pod's containers may write.
pub(super) fn group(pod: &Pod) -> u32 {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| id(context.fs_group)).unwrap_or(DEFAULT_USER)
}

/// Judges the whole pod before anything of it is made.
pub(super) fn refuse(pod: &Pod, config: &RunnerConfig) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    for (_, container) in in_start_order(spec) {
        let image = container.image.as_deref().unwrap_or_default();
        if !config.is_ours(image) {
            return Some(Refusal {
                reason: "ErrImagePull",
                message: format!(
                    "container \"{}\" wants image \"{image}\", but this machine runs only Ferrovirt's own ({}); \
                     containers belong on a cluster",
                    container.name, config.image
                ),
            });
        }
        let privileged = container
            .security_context
            .as_ref()
            .and_then(|context| context.privileged);
        let sub_path = container
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.sub_path.is_some());
        let refused = [
            (privileged == Some(true), "privileged"),
            (
                container
                    .volume_devices
                    .as_ref()
                    .is_some_and(|devices| !devices.is_empty()),
                "volumeDevices",
            ),
            (sub_path, "volumeMounts.subPath"),
        ];
        if let Some((_, what)) = refused.iter().find(|(set, _)| *set) {
            return Some(Refusal::config(format!(
                "container \"{}\": {what} is not supported on one machine",
                container.name
            )));
        }
    }
    let shared = [
        (spec.host_network, "hostNetwork"),
        (spec.host_pid, "hostPID"),
        (spec.host_ipc, "hostIPC"),
    ];
    if let Some((_, what)) = shared.iter().find(|(set, _)| *set == Some(true)) {
        return Some(Refusal::config(format!("spec.{what} is not supported on one machine")));
    }
    spec.volumes.iter().flatten().find_map(unsupported).map(Refusal::config)
}

/// What a container is made of besides the pod.
pub(super) struct Surroundings<'a> {
    pub config: &'a RunnerConfig,
    pub volumes: &'a Volumes,
    pub ips: &'a [IpAddr],
    pub cgroups: Vec<PathBuf>,
    pub log: PathBuf,
    /// The host's name servers, as `resolv.conf` text.
    pub resolv_conf: String,
}

/// Describes one container.
///
/// # Errors
/// The pod asks for something that cannot be.
pub(super) fn describe(pod: &Pod, container: &Container, around: Surroundings<'_>) -> Result<ContainerSpec, Refusal> {
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| Refusal::config("the pod has no spec"))?;
    let user = user(spec, container)?;
    let hostname = spec
        .hostname
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| pod.name_any());
    let hostname: String = hostname.chars().take(63).collect();
    let mut env = environment(pod, container, around.ips)?;
    env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    env.entry("HOSTNAME".into()).or_insert_with(|| hostname.clone());
    env.entry(crate::tail::FORMAT_VARIABLE.into())
        .or_insert_with(|| "cri".into());
    env.entry("HOME".into()).or_insert_with(|| "/".into());
    let words = container
        .command
        .iter()
        .flatten()
        .chain(container.args.iter().flatten());
    let command: Vec<String> = words.map(|word| expand(word, &env)).collect();
    if command.is_empty() {
        return Err(Refusal::config(format!(
            "container \"{}\" has no command",
            container.name
        )));
    }
    let runtime = around.config.data.runtime();
    Ok(ContainerSpec {
        mount_point: runtime.join("root"),
        skeleton: runtime.join("usr"),
        executables: around.config.executables(),
        etc: etc_files(spec, &hostname, &user, around.ips, around.resolv_conf),
        mounts: mounts(container, around.volumes, around.config)?,
        devices: devices(around.config, user.gid, wants(container, VHOST_VSOCK_RESOURCE)),
        netns: around.config.network.netns_of(&pod.uid().unwrap_or_default()),
        cgroups: around.cgroups,
        hostname,
        log: around.log,
        user,
        command,
        env,
        cwd: container
            .working_dir
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "/".into())
            .into(),
    })
}

fn id(value: Option<i64>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}

/// Who a container runs as.
pub(super) fn user(spec: &PodSpec, container: &Container) -> Result<User, Refusal> {
    let empty = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&empty);
    let pod = spec.security_context.clone().unwrap_or_default();
    let uid = id(own.run_as_user).or(id(pod.run_as_user)).unwrap_or(DEFAULT_USER);
    let gid = id(own.run_as_group).or(id(pod.run_as_group)).unwrap_or(DEFAULT_USER);
    if uid == 0 && own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        let message = format!(
            "container \"{}\" has runAsNonRoot and would run as root",
            container.name
        );
        return Err(Refusal::config(message));
    }
    let mut groups: Vec<u32> = vec![gid];
    groups.extend(id(pod.fs_group));
    groups.extend(
        pod.supplemental_groups
            .iter()
            .flatten()
            .filter_map(|group| u32::try_from(*group).ok()),
    );
    groups.dedup();
    let added = own
        .capabilities
        .iter()
        .flat_map(|capabilities| capabilities.add.iter().flatten());
    let mut capabilities = Vec::new();
    for name in added {
        let name = format!("CAP_{}", name.trim_start_matches("CAP_"));
        if name.parse::<caps::Capability>().is_err() {
            return Err(Refusal::config(format!(
                "container \"{}\": unknown capability {name}",
                container.name
            )));
        }
        capabilities.push(name);
    }
    Ok(User {
        uid,
        gid,
        groups,
        capabilities,
    })
}

/// The environment that the pod gives.
pub(super) fn environment(
    pod: &Pod,
    container: &Container,
    ips: &[IpAddr],
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut env = BTreeMap::new();
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        let message = format!(
            "container \"{}\": envFrom is not supported on one machine",
            container.name
        );
        return Err(Refusal::config(message));
    }
    for EnvVar {
        name,
        value,
        value_from,
    } in container.env.iter().flatten()
    {
        let value = match (value, value_from) {
            (Some(value), _) => expand(value, &env),
            (None, None) => String::new(),
            (None, Some(source)) => {
                let field = source.field_ref.as_ref().map(|field| field.field_path.as_str());
                match field {
                    Some("status.podIP" | "status.podIPs") => {
                        ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
                    }
                    Some(path) => field_value(pod, path).map_err(Refusal::config)?,
                    None => {
                        let message = format!(
                            "container \"{}\": env {name} needs a value or a fieldRef",
                            container.name
                        );
                        return Err(Refusal::config(message));
                    }
                }
            }
        };
        env.insert(name.clone(), value);
    }
    Ok(env)
}

/// Replaces `$(NAME)` where NAME is known; `$$` stands for one `$`.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    let _ = write!(out, "$({name})");
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn mounts(container: &Container, volumes: &Volumes, config: &RunnerConfig) -> Result<Vec<Mount>, Refusal> {
    let mut mounts = vec![Mount {
        source: config.data.capability_cache(),
        target: ferrovirt_protocol::paths::CAPABILITY_CACHE_DIR.into(),
        read_only: true,
    }];
    for mount in container.volume_mounts.iter().flatten() {
        let source = volumes.sources.get(&mount.name).ok_or_else(|| {
            Refusal::config(format!(
                "container \"{}\" mounts volume \"{}\", which the pod has not",
                container.name, mount.name
            ))
        })?;
        let target = Path::new("/").join(&mount.mount_path);
        if target == Path::new("/") || target.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(Refusal::config(format!(
                "mountPath \"{}\" is not allowed",
                mount.mount_path
            )));
        }
        mounts.push(Mount {
            source: source.path.clone(),
            target,
            read_only: source.read_only || mount.read_only == Some(true),
        });
    }
    Ok(mounts)
}

/// Whether a container asks for a resource of the node.
fn wants(container: &Container, resource: &str) -> bool {
    let limits = container.resources.as_ref().and_then(|all| all.limits.as_ref());
    limits.is_some_and(|limits| limits.contains_key(resource))
}

/// Devices that a guest's processes use, as far as this machine has them.
///
/// `vsock`: the one for sockets between guest and host, too, which not every guest may have.
pub(super) fn devices(config: &RunnerConfig, gid: u32, vsock: bool) -> Vec<Device> {
    let kvm = *config.kvm.borrow() == Some(true);
    let wanted = [
        ("kvm", kvm, 0o660),
        ("net/tun", true, 0o666),
        ("vhost-net", true, 0o660),
        ("vhost-vsock", vsock, 0o660),
    ];
    let present = wanted.into_iter().filter(|(_, wanted, _)| *wanted);
    present
        .filter_map(|(name, _, mode)| {
            let device = std::fs::metadata(Path::new("/dev").join(name)).ok()?.rdev();
            Some(Device {
                name: name.into(),
                major: major(device),
                minor: minor(device),
                mode,
                gid,
            })
        })
        .collect()
}

fn etc_files(
    spec: &PodSpec,
    hostname: &str,
    user: &User,
    ips: &[IpAddr],
    resolv_conf: String,
) -> BTreeMap<String, String> {
    let subdomain = spec.subdomain.as_deref().filter(|name| !name.is_empty());
    let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in ips {
        let _ = match subdomain {
            Some(subdomain) => writeln!(hosts, "{ip}\t{hostname}.{subdomain} {hostname}"),
            None => writeln!(hosts, "{ip}\t{hostname}"),
        };
    }
    let mut files = accounts(user.uid, user.gid);
    files.insert("hosts".into(), hosts);
    files.insert("hostname".into(), format!("{hostname}\n"));
    files.insert("resolv.conf".into(), dns(spec, resolv_conf));
    files
}

/// Files of `/etc` that give the container's user and group a name.
pub(super) fn accounts(uid: u32, gid: u32) -> BTreeMap<String, String> {
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    if uid != 0 {
        let _ = writeln!(passwd, "qemu:x:{uid}:{gid}:qemu:/:/bin/sh");
    }
    passwd.push_str("nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n");
    let mut group = String::from("root:x:0:\ntty:x:5:\n");
    if gid != 0 {
        let _ = writeln!(group, "qemu:x:{gid}:");
    }
    group.push_str("nogroup:x:65534:\n");
    BTreeMap::from([("passwd".to_owned(), passwd), ("group".to_owned(), group)])
}

/// `dnsPolicy` and `dnsConfig`; there is no cluster DNS, so all policies but `None` begin with the host's servers.
fn dns(spec: &PodSpec, host: String) -> String {
    let mut text = if spec.dns_policy.as_deref() == Some("None") {
        String::new()
    } else {
        host
    };
    let Some(config) = &spec.dns_config else { return text };
    for server in config.nameservers.iter().flatten() {
        let _ = writeln!(text, "nameserver {server}");
    }
    if let Some(searches) = config.searches.as_ref().filter(|searches| !searches.is_empty()) {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    for option in config.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or_default();
        let _ = match &option.value {
            Some(value) => writeln!(text, "options {name}:{value}"),
            None => writeln!(text, "options {name}"),
        };
    }
    text
}

/// The host's name servers for a pod: those of `resolv.conf` without the ones on loopback, which a pod cannot reach;
/// behind systemd's stub resolver stands another file.
pub(super) fn host_resolv_conf() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let reachable = |text: &str| {
        let keep = |line: &&str| {
            let server = line.strip_prefix("nameserver").map(str::trim);
            let loopback = server
                .and_then(|server| server.parse::<IpAddr>().ok())
                .is_some_and(|ip| ip.is_loopback());
            !loopback && !line.starts_with(['#', ';']) && !line.is_empty()
        };
        text.lines()
            .filter(keep)
            .fold(String::new(), |all, line| all + line + "\n")
    };
    let text = reachable(&read("/etc/resolv.conf"));
    if text.contains("nameserver") {
        text
    } else {
        reachable(&read("/run/systemd/resolve/resolv.conf"))
    }
}

#[cfg(test)]
mod tests;
