//! Start-up, step by step; each step consumes the one before and fails with a reason of its own.

use std::error::Error;
use std::time::Duration;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::machine::{AccessCredential, DhcpOptions, Machine, Source};
use ferrovirt_protocol::launcher::{Nic, NodeFacts};
use tokio_util::sync::CancellationToken;

use crate::children::Children;
use crate::disks::{self, KernelFiles, Prepared};
use crate::hooks::{Hooks, Patience};
use crate::hypervisor::{Description, Hypervisor};
use crate::layout::Layout;
use crate::machine::{self, Given};
use crate::{dhcp, downward_metrics, filesystems, ignition, state, swtpm, virtual_functions};

/// Why the guest could not be started.
#[derive(Debug)]
pub struct StartFailure {
    /// Step that failed, as one word.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
}

/// Largest message, in bytes: it becomes part of the VMI's status, and what it is about (a guest's author's own
/// container, say) may have chosen its words.
const MAX_MESSAGE: usize = 1024;

impl StartFailure {
    fn new(reason: &'static str, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self { reason, message }.bounded()
    }

    fn bounded(mut self) -> Self {
        if self.message.len() > MAX_MESSAGE {
            let end = self.message.floor_char_boundary(MAX_MESSAGE);
            self.message.truncate(end);
            self.message.push('…');
        }
        self
    }
}

/// A started guest.
pub struct Started {
    /// What libvirt made of it.
    pub description: Description,
    /// DHCP servers to run; their requests are queued already.
    pub dhcp: Vec<dhcp::Server>,
    /// Its CPUs do not run yet.
    pub paused: bool,
    /// Keys and passwords of its users.
    pub credentials: Vec<AccessCredential>,
    /// Who tells it about itself and its node, if it wants to know.
    pub metrics: Option<downward_metrics::Reporter>,
    /// Seconds it has for its shutdown.
    pub grace: Duration,
}

/// What the steps work with.
pub struct Context {
    /// Paths.
    pub layout: Layout,
    /// Processes.
    pub children: Children,
    /// libvirt.
    pub hypervisor: Hypervisor,
    /// How many hook sidecars the pod has, if it was said.
    pub hook_sidecars: Option<usize>,
    /// Serial consoles are logged unless they say otherwise.
    pub console_log: bool,
}

/// Goes all the way. Where others are waited for, `abort` ends it.
pub async fn start(
    context: Context,
    vmi: VirtualMachineInstance,
    node: NodeFacts,
    abort: CancellationToken,
) -> Result<Started, StartFailure> {
    let parsed = Parsed::new(context, &vmi, node)?;
    let directory = parsed.context.layout.hooks();
    // The sidecars of network bindings are known to who made the pod only.
    let listed = parsed.machine.hook_sidecars.len();
    let sidecars = parsed.context.hook_sidecars.unwrap_or(listed);
    let met = Hooks::meet(&directory, sidecars, &vmi, Patience::default(), abort.clone());
    let hooks = met.await;
    let hooks = hooks.map_err(|error| StartFailure::new("HookSidecarFailed", &error))?;
    let Context { layout, hypervisor, .. } = &parsed.context;
    let metrics = downward_metrics::Reporter::of(&parsed.machine, layout, hypervisor, &vmi);
    let parsed = abort.run_until_cancelled_owned(parsed.find_virtual_functions()).await;
    let parsed = parsed.ok_or_else(|| StartFailure {
        reason: "NetworkNotReady",
        message: "the guest is to stop before it started".to_owned(),
    })?;
    let mut started = parsed?.prepare(hooks).await?.define().await?.start().await?;
    started.metrics = metrics;
    Ok(started)
}

/// The VMI was understood.
struct Parsed {
    context: Context,
    machine: Machine,
    node: NodeFacts,
    given: Given,
}

impl Parsed {
    fn new(context: Context, vmi: &VirtualMachineInstance, node: NodeFacts) -> Result<Self, StartFailure> {
        let config = machine::config(node.cluster.as_ref(), context.console_log);
        let machine = machine::parse(vmi, &config).map_err(|message| StartFailure {
            reason: "InvalidMachine",
            message,
        })?;
        Ok(Self {
            given: Given::new(vmi, &machine),
            context,
            machine,
            node,
        })
    }

    async fn find_virtual_functions(mut self) -> Result<Self, StartFailure> {
        let file = self.context.layout.network_status();
        let given = virtual_functions::given(&self.machine, &file).await;
        let given = given.map_err(|error| StartFailure::new("NetworkNotReady", &error))?;
        self.given.virtual_functions.extend(given);
        Ok(self)
    }

    async fn prepare(self, hooks: Hooks) -> Result<DisksPrepared, StartFailure> {
        let Self {
            context,
            machine,
            node,
            given,
        } = self;
        let none = DhcpOptions::default();
        let options = |nic: &Nic| {
            machine
                .interfaces
                .iter()
                .find(|i| i.name == nic.network)
                .map(|i| &i.dhcp)
        };
        let servers = node
            .nics
            .iter()
            .map(|nic| dhcp::open(nic, options(nic).unwrap_or(&none)));
        let servers: Result<Vec<_>, _> = servers.collect();
        let servers = servers.map_err(|error| StartFailure::new("NetworkNotReady", &error))?;
        let disks = disks::prepare(&context.layout, &context.children, &hooks, &machine).await;
        let disks = disks.map_err(|error| StartFailure::new("DisksNotPrepared", &error))?;
        state::prepare(&context.layout, &machine).map_err(|error| StartFailure::new("StateNotPrepared", &error))?;
        let served = filesystems::served(&context.layout, &machine).await;
        served.map_err(|error| StartFailure::new("FilesystemsNotServed", &error))?;
        ignition::prepare(&context.layout, &machine)
            .map_err(|error| StartFailure::new("IgnitionNotPrepared", &error))?;
        let kernel = disks::kernel(&context.layout, &machine);
        let kernel = kernel.map_err(|error| StartFailure::new("KernelNotFound", &error))?;
        Ok(DisksPrepared {
            context,
            hooks,
            machine,
            node,
            given,
            disks,
            kernel,
            dhcp: servers.into_iter().flatten().collect(),
        })
    }
}

/// The disks are there.
struct DisksPrepared {
    context: Context,
    hooks: Hooks,
    machine: Machine,
    node: NodeFacts,
    given: Given,
    disks: Vec<Prepared>,
    kernel: KernelFiles,
    dhcp: Vec<dhcp::Server>,
}

impl DisksPrepared {
    async fn define(self) -> Result<DomainDefined, StartFailure> {
        let Self {
            context,
            hooks,
            machine,
            node,
            given,
            disks,
            kernel,
            dhcp,
        } = self;
        let xml = machine::domain_xml(&machine, &node, &disks, kernel, &context.layout, given)
            .map_err(|error| StartFailure::new("DomainNotDefined", &error))?;
        let name = ferrovirt_domain::domain_name(context.layout.namespace(), context.layout.name());
        let xml = hooks.define(xml, &name).await;
        let xml = xml.map_err(|error| StartFailure::new("HookSidecarFailed", &error))?;
        let defined = context.hypervisor.define(xml).await;
        let places = defined.map_err(|error| StartFailure::new("DomainNotDefined", &error))?;
        let told = disks::tell_tags(&context.layout, &context.children, &hooks, &machine, &places).await;
        told.map_err(|error| StartFailure::new("DisksNotPrepared", &error))?;
        Ok(DomainDefined {
            context,
            machine,
            disks,
            dhcp,
        })
    }
}

/// libvirt knows the domain.
struct DomainDefined {
    context: Context,
    machine: Machine,
    disks: Vec<Prepared>,
    dhcp: Vec<dhcp::Server>,
}

impl DomainDefined {
    async fn start(self) -> Result<Started, StartFailure> {
        let paused = self.machine.starts_still();
        let started = self.context.hypervisor.start_domain(paused).await;
        let mut description = started.map_err(|error| {
            let logs = self.context.layout.private().join("libvirt/qemu/log");
            let mut failure = StartFailure::new("GuestNotStarted", &error);
            if let Some(why) = swtpm::why(&failure.message, &logs) {
                failure.message = format!("{}; it ends with: {why}", failure.message);
            }
            failure.bounded()
        })?;
        // What is told of disks is told of volumes, and an empty drive has none.
        let empty = |name: &str| {
            let mut disks = self.machine.disks.iter();
            disks.any(|disk| disk.name == name && disk.source == Source::Empty)
        };
        description.disks.retain(|disk| !empty(&disk.name));
        for disk in &mut description.disks {
            disk.size = self
                .disks
                .iter()
                .find(|prepared| prepared.name == disk.name)
                .map(|prepared| prepared.size);
        }
        let grace = Duration::from_secs(self.machine.termination_grace_seconds);
        Ok(Started {
            description,
            dhcp: self.dhcp,
            paused,
            credentials: self.machine.access_credentials,
            metrics: None,
            grace,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn messages_are_bounded() {
        let short = StartFailure::new("A", &io::Error::other("why"));
        assert_eq!((short.reason, short.message.as_str()), ("A", "why"));
        // A character of two bytes stands across the limit.
        let long = format!("a{}", "ä".repeat(1 << 20));
        let cut = StartFailure::new("A", &io::Error::other(long)).message;
        assert_eq!(cut.len(), MAX_MESSAGE - 1 + '…'.len_utf8());
        assert!(cut.ends_with("ä…"), "{cut}");
    }
}
