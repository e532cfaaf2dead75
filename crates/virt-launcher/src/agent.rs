//! The guest agent: what the guest says about itself.
//!
//! The guest is not trusted: answers are bounded in size and time, and calls are made on a thread of their own, so a
//! silent agent delays nothing else. libvirtd itself gives up an agent that says more than ten megabytes at a time.

mod exec;
mod freeze;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ferrovirt_api::v1::{
    GuestAgentCommandInfo, VirtualMachineInstanceFileSystem, VirtualMachineInstanceFileSystemDisk,
    VirtualMachineInstanceFileSystemInfo, VirtualMachineInstanceGuestAgentInfo, VirtualMachineInstanceGuestOSInfo,
    VirtualMachineInstanceGuestOSUser, VirtualMachineInstanceNetworkInterface,
};
use ferrovirt_core::vmi::addresses;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use virt::domain::Domain;

pub use exec::{Command, Ended};

use crate::hypervisor;

/// Seconds the agent may take for one command of its own.
const TIMEOUT: i32 = 5;
/// Longest answer that is looked at.
const MAX_ANSWER: usize = 1 << 20;
/// Longest lists and string that are passed on: all together they are half of what virt-handler listens to.
const MAX_ITEMS: usize = 128;
const MAX_INTERFACES: usize = 64;
const MAX_ADDRESSES: usize = 16;
const MAX_TEXT: usize = 256;
/// Longest name of a bus and longest serial number of a disk.
const MAX_BUS: usize = 16;
const MAX_SERIAL: usize = 64;
/// What file systems do.
const FROZEN: &str = "frozen";
const THAWED: &str = "thawed";

/// What the agent said, and whether it said all we asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `VirtualMachineInstanceGuestAgentInfo` plus `interfaces`.
    pub json: Vec<u8>,
    /// Every command was answered.
    pub complete: bool,
    /// File systems stand still: the agent says nothing else, lest it write.
    pub frozen: bool,
}

impl Report {
    /// What is known now, if `known` is what was known before.
    pub fn over(self, known: &[u8]) -> Vec<u8> {
        if self.frozen && !known.is_empty() {
            with_freeze_status(known, true)
        } else {
            self.json
        }
    }
}

/// What is known, with another state of the file systems.
pub fn with_freeze_status(known: &[u8], frozen: bool) -> Vec<u8> {
    let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(known).unwrap_or_default();
    let status = if frozen { FROZEN } else { THAWED };
    fields.insert("fsFreezeStatus".to_owned(), status.into());
    serde_json::to_vec(&fields).unwrap_or_default()
}

/// Why the agent did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// libvirt's words.
    #[error("{0}")]
    NoAnswer(String),
    /// A guest that wants our memory.
    #[error("the guest agent's answer has {0} bytes, more than the {MAX_ANSWER} that are read")]
    TooLong(usize),
    /// Not what the agent's protocol says.
    #[error("the guest agent's answer is not understood: {0}")]
    Unreadable(String),
    /// Not in time; a command may still run in the guest.
    #[error("the guest did not answer within {}s", .0.as_secs())]
    TimedOut(Duration),
    /// Earlier commands hang in the guest.
    #[error("{0} commands still run in the guest; no other is started before one of them ends")]
    Busy(usize),
    /// The launcher ends.
    #[error("the launcher no longer asks the guest agent")]
    Gone,
}

enum Request {
    Collect(Domain, oneshot::Sender<Report>),
    Command {
        domain: Domain,
        text: String,
        seconds: i32,
        reply: oneshot::Sender<Result<String, AgentError>>,
    },
    Shutdown(Domain),
    Reboot(Domain, oneshot::Sender<Result<(), AgentError>>),
}

/// Handle of the agent thread.
#[derive(Clone)]
pub struct Agent {
    requests: mpsc::Sender<Request>,
    /// One permit per command that may run in the guest.
    commands: Arc<Semaphore>,
}

impl Agent {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (requests, queue) = mpsc::channel();
        hypervisor::thread("guest-agent", move || {
            while let Ok(request) = queue.recv() {
                match request {
                    Request::Collect(domain, reply) => drop(reply.send(collect(&domain))),
                    // What nobody waits for any more is not asked: a silent agent takes long for each question.
                    Request::Command { reply, .. } if reply.is_closed() => {}
                    Request::Reboot(_, reply) if reply.is_closed() => {}
                    Request::Command {
                        domain,
                        text,
                        seconds,
                        reply,
                    } => drop(reply.send(say(&domain, &text, seconds))),
                    Request::Shutdown(domain) => shutdown(&domain),
                    Request::Reboot(domain, reply) => drop(reply.send(freeze::reboot(&domain))),
                }
            }
        })?;
        Ok(Self {
            requests,
            commands: Arc::new(Semaphore::new(exec::MAX_RUNNING)),
        })
    }

    /// Asks for everything; `None` if the thread is gone.
    pub async fn collect(&self, domain: Domain) -> Option<Report> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Collect(domain, reply)).ok()?;
        answer.await.ok()
    }

    /// Asks whether the agent is there.
    ///
    /// # Errors
    /// It does not answer within `timeout`.
    pub async fn ping(&self, domain: Domain, timeout: Duration) -> Result<(), AgentError> {
        let ping = json!({ "execute": "guest-ping" });
        let answer = self.command::<Value>(domain, &ping, timeout);
        let answered = tokio::time::timeout(timeout, answer).await;
        answered.map_err(|_| AgentError::TimedOut(timeout))?.map(drop)
    }

    /// Has the agent do something that returns nothing.
    ///
    /// # Errors
    /// It does not, or does not answer.
    pub async fn order(&self, domain: Domain, command: &Value) -> Result<(), AgentError> {
        let timeout = Duration::from_secs(u64::from(TIMEOUT.unsigned_abs()));
        self.command::<Value>(domain, command, timeout).await.map(drop)
    }

    /// One command of the agent, on its thread; takes [`TIMEOUT`] there at most. Cancelling it before its turn has
    /// come means that it is not asked.
    async fn command<T: DeserializeOwned>(
        &self,
        domain: Domain,
        command: &Value,
        timeout: Duration,
    ) -> Result<T, AgentError> {
        self.command_within(domain, command, whole_seconds(timeout)).await
    }

    /// The same, for a command that may take longer.
    async fn command_within<T: DeserializeOwned>(
        &self,
        domain: Domain,
        command: &Value,
        seconds: i32,
    ) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Command {
            domain,
            text: command.to_string(),
            seconds,
            reply,
        };
        self.requests.send(request).map_err(|_| AgentError::Gone)?;
        read(&answer.await.map_err(|_| AgentError::Gone)??)
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

/// libvirt counts in whole seconds.
fn whole_seconds(timeout: Duration) -> i32 {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(TIMEOUT).clamp(1, TIMEOUT)
}

/// Sends one command and returns the whole answer.
fn say(domain: &Domain, command: &str, seconds: i32) -> Result<String, AgentError> {
    match domain.qemu_agent_command(command, seconds, 0) {
        Ok(text) if text.len() <= MAX_ANSWER => Ok(text),
        Ok(text) => Err(AgentError::TooLong(text.len())),
        // The guest's words are among libvirt's.
        Err(error) => Err(AgentError::NoAnswer(text(error.message().to_owned()))),
    }
}

/// What an answer returns.
fn read<T: DeserializeOwned>(answer: &str) -> Result<T, AgentError> {
    #[derive(Deserialize)]
    struct Answer<T> {
        #[serde(rename = "return")]
        value: T,
    }
    serde_json::from_str::<Answer<T>>(answer)
        .map(|answer| answer.value)
        .map_err(|error| AgentError::Unreadable(text(error.to_string())))
}

/// Asks by `say`, which is given the whole command and returns the whole answer.
fn ask<T: DeserializeOwned>(say: impl Fn(&str) -> Result<String, AgentError>, command: &str) -> Option<T> {
    say(&json!({ "execute": command }).to_string())
        .and_then(|answer| read(&answer))
        .inspect_err(|error| tracing::debug!(command, %error, "the guest agent was asked in vain"))
        .ok()
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
    #[serde(default)]
    disk: Vec<Disk>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Disk {
    #[serde(default)]
    bus_type: String,
    serial: Option<String>,
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
    report(|command| say(domain, command, TIMEOUT))
}

fn report(say: impl Fn(&str) -> Result<String, AgentError>) -> Report {
    let say = &say;
    // A silent agent is given up at the first command, not asked seven times.
    let Some(info) = ask::<Info>(say, "guest-info") else {
        return Report {
            json: Vec::new(),
            complete: false,
            frozen: false,
        };
    };
    let freeze = ask::<String>(say, "guest-fsfreeze-status");
    let freeze = [FROZEN, THAWED]
        .into_iter()
        .find(|known| freeze.as_deref() == Some(known));
    let known = VirtualMachineInstanceGuestAgentInfo {
        guest_agent_version: Some(text(info.version)),
        supported_commands: info
            .supported_commands
            .into_iter()
            .take(MAX_ITEMS)
            .map(|command| GuestAgentCommandInfo {
                name: text(command.name),
                ..command
            })
            .collect(),
        fs_freeze_status: freeze.map(str::to_owned),
        ..VirtualMachineInstanceGuestAgentInfo::default()
    };
    if freeze == Some(FROZEN) {
        return Report {
            json: to_json(&known, Vec::new()),
            complete: true,
            frozen: true,
        };
    }
    let (os, host_name) = (
        ask::<Os>(say, "guest-get-osinfo"),
        ask::<HostName>(say, "guest-get-host-name"),
    );
    let timezone = ask::<Timezone>(say, "guest-get-timezone");
    let users = ask::<Vec<User>>(say, "guest-get-users");
    let file_systems = ask::<Vec<FileSystem>>(say, "guest-get-fsinfo");
    let interfaces = ask::<Vec<Interface>>(say, "guest-network-get-interfaces");
    let complete = os.is_some()
        && host_name.is_some()
        && timezone.is_some()
        && users.is_some()
        && file_systems.is_some()
        && interfaces.is_some();
    let report = VirtualMachineInstanceGuestAgentInfo {
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
            disks: known_file_systems(list),
        }),
        ..known
    };
    Report {
        json: to_json(&report, interfaces.unwrap_or_default()),
        complete,
        frozen: false,
    }
}

fn to_json(report: &VirtualMachineInstanceGuestAgentInfo, interfaces: Vec<Interface>) -> Vec<u8> {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    let interfaces: Vec<_> = interfaces
        .into_iter()
        .filter(|interface| !is_loopback(interface))
        .take(MAX_INTERFACES)
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

/// Strings of the guest, on one line and cut where they get absurd.
fn text(value: String) -> String {
    cut(value, MAX_TEXT)
}

fn cut(mut value: String, limit: usize) -> String {
    value.truncate(value.floor_char_boundary(limit));
    if value.contains(char::is_control) {
        value = value.replace(char::is_control, " ");
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

fn known_file_systems(list: Vec<FileSystem>) -> Vec<VirtualMachineInstanceFileSystem> {
    // Of all together.
    let mut disks = MAX_ITEMS;
    let list = list.into_iter().take(MAX_ITEMS);
    list.map(|fs| {
        let known: Vec<_> = fs.disk.into_iter().take(disks).map(disk).collect();
        disks -= known.len();
        VirtualMachineInstanceFileSystem {
            disk: known,
            disk_name: text(fs.name),
            mount_point: text(fs.mountpoint),
            file_system_type: text(fs.kind),
            used_bytes: fs.used_bytes.unwrap_or(0).max(0),
            total_bytes: fs.total_bytes.unwrap_or(0).max(0),
        }
    })
    .collect()
}

fn disk(disk: Disk) -> VirtualMachineInstanceFileSystemDisk {
    VirtualMachineInstanceFileSystemDisk {
        bus_type: cut(disk.bus_type, MAX_BUS),
        serial: disk.serial.map(|serial| cut(serial, MAX_SERIAL)),
    }
}

fn network(interface: Interface) -> VirtualMachineInstanceNetworkInterface {
    let told = interface.ip_addresses.into_iter().map(|address| address.ip_address);
    let mut addresses: Vec<String> = told
        .filter(|address| address.parse::<std::net::IpAddr>().is_ok())
        .collect();
    addresses::sort(&mut addresses);
    addresses.truncate(MAX_ADDRESSES);
    VirtualMachineInstanceNetworkInterface {
        interface_name: Some(text(interface.name)),
        mac: interface.hardware_address.map(text),
        ip_address: addresses::first(&addresses).cloned(),
        ip_addresses: addresses,
        info_source: Some("guest-agent".into()),
        ..VirtualMachineInstanceNetworkInterface::default()
    }
}
