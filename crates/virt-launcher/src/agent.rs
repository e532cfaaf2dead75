//! The guest agent: what the guest says about itself.
//!
//! The guest is not trusted: answers are bounded in size and time, and calls are made on a thread of their own, so a
//! silent agent delays nothing else.

use std::io;
use std::sync::mpsc;

use ferrovirt_api::v1::{
    GuestAgentCommandInfo, VirtualMachineInstanceFileSystem, VirtualMachineInstanceFileSystemInfo,
    VirtualMachineInstanceGuestAgentInfo, VirtualMachineInstanceGuestOSInfo, VirtualMachineInstanceGuestOSUser,
    VirtualMachineInstanceNetworkInterface,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use virt::domain::Domain;

use crate::hypervisor;

/// Seconds the agent may take for one command.
const TIMEOUT: i32 = 5;
/// Longest answer that is looked at.
const MAX_ANSWER: usize = 1 << 20;
/// Longest list and string that is passed on.
const MAX_ITEMS: usize = 256;
const MAX_TEXT: usize = 1024;

/// What the agent said, and whether it said all we asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `VirtualMachineInstanceGuestAgentInfo` plus `interfaces`.
    pub json: Vec<u8>,
    /// Every command was answered.
    pub complete: bool,
}

enum Request {
    Collect(Domain, oneshot::Sender<Report>),
    Shutdown(Domain),
}

/// Handle of the agent thread.
#[derive(Clone)]
pub struct Agent {
    requests: mpsc::Sender<Request>,
}

impl Agent {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (requests, queue) = mpsc::channel();
        hypervisor::thread("guest-agent", move || {
            while let Ok(request) = queue.recv() {
                match request {
                    Request::Collect(domain, reply) => drop(reply.send(collect(&domain))),
                    Request::Shutdown(domain) => shutdown(&domain),
                }
            }
        })?;
        Ok(Self { requests })
    }

    /// Asks for everything; `None` if the thread is gone.
    pub async fn collect(&self, domain: Domain) -> Option<Report> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Collect(domain, reply)).ok()?;
        answer.await.ok()
    }

    /// Asks the guest to shut down, without waiting.
    pub fn shut_down(&self, domain: Domain) {
        let _ = self.requests.send(Request::Shutdown(domain));
    }
}

fn shutdown(domain: &Domain) {
    if let Err(error) = domain.qemu_agent_command(r#"{"execute":"guest-shutdown"}"#, TIMEOUT, 0) {
        tracing::info!(
            error = error.message(),
            "the guest agent did not take the shutdown request"
        );
    }
}

fn ask<T: DeserializeOwned>(domain: &Domain, command: &str) -> Option<T> {
    #[derive(Deserialize)]
    struct Answer<T> {
        #[serde(rename = "return")]
        value: T,
    }
    let text = match domain.qemu_agent_command(&json!({ "execute": command }).to_string(), TIMEOUT, 0) {
        Ok(text) if text.len() <= MAX_ANSWER => text,
        Ok(text) => {
            tracing::warn!(command, bytes = text.len(), "the guest agent's answer is too long");
            return None;
        }
        Err(error) => {
            tracing::debug!(command, error = error.message(), "the guest agent did not answer");
            return None;
        }
    };
    serde_json::from_str::<Answer<T>>(&text)
        .inspect_err(|error| tracing::debug!(command, %error, "guest agent"))
        .ok()
        .map(|a| a.value)
}

#[derive(Deserialize)]
struct Info {
    version: String,
    supported_commands: Vec<GuestAgentCommandInfo>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Os {
    id: Option<String>,
    name: Option<String>,
    pretty_name: Option<String>,
    version: Option<String>,
    version_id: Option<String>,
    kernel_release: Option<String>,
    kernel_version: Option<String>,
    machine: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HostName {
    host_name: String,
}

#[derive(Deserialize)]
struct Timezone {
    zone: Option<String>,
    offset: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    user: String,
    domain: Option<String>,
    login_time: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileSystem {
    name: String,
    mountpoint: String,
    #[serde(rename = "type")]
    kind: String,
    used_bytes: Option<i64>,
    total_bytes: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Interface {
    name: String,
    hardware_address: Option<String>,
    #[serde(default)]
    ip_addresses: Vec<IpAddress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct IpAddress {
    ip_address: String,
}

fn collect(domain: &Domain) -> Report {
    // A silent agent is given up at the first command, not asked seven times.
    let Some(info) = ask::<Info>(domain, "guest-info") else {
        return Report {
            json: Vec::new(),
            complete: false,
        };
    };
    let (os, host_name) = (
        ask::<Os>(domain, "guest-get-osinfo"),
        ask::<HostName>(domain, "guest-get-host-name"),
    );
    let timezone = ask::<Timezone>(domain, "guest-get-timezone");
    let users = ask::<Vec<User>>(domain, "guest-get-users");
    let file_systems = ask::<Vec<FileSystem>>(domain, "guest-get-fsinfo");
    let interfaces = ask::<Vec<Interface>>(domain, "guest-network-get-interfaces");
    let complete = os.is_some()
        && host_name.is_some()
        && timezone.is_some()
        && users.is_some()
        && file_systems.is_some()
        && interfaces.is_some();
    let report = VirtualMachineInstanceGuestAgentInfo {
        guest_agent_version: Some(text(info.version)),
        supported_commands: info.supported_commands.into_iter().take(MAX_ITEMS).collect(),
        hostname: host_name.map(|host| text(host.host_name)),
        os: os.map(os_info),
        timezone: timezone.map(timezone_text),
        user_list: users
            .unwrap_or_default()
            .into_iter()
            .take(MAX_ITEMS)
            .map(user)
            .collect(),
        fs_info: file_systems.map(|list| VirtualMachineInstanceFileSystemInfo {
            disks: list.into_iter().take(MAX_ITEMS).map(file_system).collect(),
        }),
        ..VirtualMachineInstanceGuestAgentInfo::default()
    };
    Report {
        json: to_json(&report, interfaces.unwrap_or_default()),
        complete,
    }
}

fn to_json(report: &VirtualMachineInstanceGuestAgentInfo, interfaces: Vec<Interface>) -> Vec<u8> {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    let interfaces: Vec<_> = interfaces
        .into_iter()
        .filter(|interface| !is_loopback(interface))
        .take(MAX_ITEMS)
        .map(network)
        .collect();
    if let (Value::Object(fields), Ok(list)) = (&mut value, serde_json::to_value(interfaces)) {
        fields.insert("interfaces".into(), list);
    }
    serde_json::to_vec(&value)
        .ok()
        .filter(|bytes| bytes.len() <= MAX_ANSWER)
        .unwrap_or_default()
}

fn is_loopback(interface: &Interface) -> bool {
    interface.name == "lo"
        || (!interface.ip_addresses.is_empty()
            && interface.ip_addresses.iter().all(|address| {
                address
                    .ip_address
                    .parse()
                    .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }))
}

/// Strings of the guest, cut where they get absurd.
fn text(mut value: String) -> String {
    if value.len() > MAX_TEXT {
        let cut = (0..=MAX_TEXT).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
        value.truncate(cut);
    }
    value
}

fn os_info(os: Os) -> VirtualMachineInstanceGuestOSInfo {
    VirtualMachineInstanceGuestOSInfo {
        id: os.id.map(text),
        name: os.name.map(text),
        pretty_name: os.pretty_name.map(text),
        version: os.version.map(text),
        version_id: os.version_id.map(text),
        kernel_release: os.kernel_release.map(text),
        kernel_version: os.kernel_version.map(text),
        machine: os.machine.map(text),
    }
}

fn timezone_text(zone: Timezone) -> String {
    text(format!("{}, {}", zone.zone.unwrap_or_default(), zone.offset))
}

fn user(user: User) -> VirtualMachineInstanceGuestOSUser {
    VirtualMachineInstanceGuestOSUser {
        user_name: text(user.user),
        domain: user.domain.map(text),
        login_time: user.login_time,
    }
}

/// The wire type is a 32 bit integer; more is told as its largest value.
fn bytes(count: Option<i64>) -> i32 {
    i32::try_from(count.unwrap_or(0).max(0)).unwrap_or(i32::MAX)
}

fn file_system(fs: FileSystem) -> VirtualMachineInstanceFileSystem {
    VirtualMachineInstanceFileSystem {
        disk_name: text(fs.name),
        mount_point: text(fs.mountpoint),
        file_system_type: text(fs.kind),
        used_bytes: bytes(fs.used_bytes),
        total_bytes: bytes(fs.total_bytes),
        ..VirtualMachineInstanceFileSystem::default()
    }
}

fn network(interface: Interface) -> VirtualMachineInstanceNetworkInterface {
    let addresses: Vec<String> = interface
        .ip_addresses
        .into_iter()
        .take(MAX_ITEMS)
        .map(|address| text(address.ip_address))
        .collect();
    VirtualMachineInstanceNetworkInterface {
        interface_name: Some(text(interface.name)),
        mac: interface.hardware_address.map(text),
        ip_address: addresses.first().cloned(),
        ip_addresses: addresses,
        info_source: Some("guest-agent".into()),
        ..VirtualMachineInstanceNetworkInterface::default()
    }
}
