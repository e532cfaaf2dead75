//! libvirt, behind a narrow interface: define, start, act, describe, watch.
//!
//! One thread owns the connection and makes all calls, so a hanging call cannot stop the rest of the launcher;
//! libvirt's event loop has another. Both only exchange messages with the driver. A lost connection is opened
//! again by itself, and what the domain is then is reported as [`Event::Connected`], not before libvirtd knows it.

mod ffi;
mod places;
pub mod sev;
mod xml;

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::{mpsc as async_mpsc, oneshot};
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainShutoffReason, DomainState, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::ErrorNumber;
use virt::sys;

pub use ffi::{Value, forbid_autostart};
pub use places::{DeviceKind, Place};
pub use xml::Description;

/// A call that libvirt refused or that was lost.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
}

impl From<virt::error::Error> for Error {
    fn from(error: virt::error::Error) -> Self {
        Self {
            message: error.message().to_owned(),
        }
    }
}

impl Error {
    fn gone() -> Self {
        Self {
            message: "the libvirt thread has ended".into(),
        }
    }
}

/// What the domain is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Its CPUs run.
    Running,
    /// Its CPUs stand still, for this reason.
    Paused(&'static str),
    /// It ended well: `Shutdown`, `Destroyed` …
    Off(&'static str),
    /// It ended badly: `Crashed`, `Failed`, `Panicked`.
    Crashed(&'static str),
}

/// What libvirt reports by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Connected (again); the domain as it is now, if it is defined.
    Connected(Option<(Activity, bool)>),
    /// The domain changed.
    Activity(Activity),
    /// The guest agent connected or went away.
    Agent(bool),
}

/// Statistics by libvirt's names, and some of ours.
pub type Stats = Vec<(String, Value)>;

/// Things to do to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Stop its CPUs.
    Suspend,
    /// Let them run.
    Resume,
    /// Press the power button.
    AcpiShutdown,
    /// Press reset.
    Reset,
    /// Ask the guest to reboot by ACPI.
    AcpiReboot,
    /// End it now.
    Destroy,
}

enum Request {
    Define(String, oneshot::Sender<Result<Vec<Place>, Error>>),
    Start(bool, oneshot::Sender<Result<Description, Error>>),
    Act(Verb, oneshot::Sender<Result<(), Error>>),
    Domain(oneshot::Sender<Result<Domain, Error>>),
    Stats(oneshot::Sender<Result<Stats, Error>>),
    SevPlatform(oneshot::Sender<Result<sev::Platform, Error>>),
    SevLaunch(oneshot::Sender<Result<sev::Launch, Error>>),
    SevSecret(sev::Secret, oneshot::Sender<Result<(), Error>>),
    Closed(u64),
}

/// Handle of the libvirt thread; cheap to clone.
#[derive(Clone)]
pub struct Hypervisor {
    requests: mpsc::Sender<Request>,
}

impl Hypervisor {
    /// Starts both threads and connects to libvirtd at `socket`, waiting there as long as it takes.
    pub fn start(
        socket: &Path,
        domain_name: String,
        events: async_mpsc::UnboundedSender<Event>,
    ) -> Result<Self, io::Error> {
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(io::Error::other)?;
        thread("libvirt-events", || {
            while virt::event::event_run_default_impl().is_ok() {}
            tracing::error!("libvirt's event loop ended");
        })?;
        let (requests, queue) = mpsc::channel();
        let uri = format!("qemu+unix:///session?mode=direct&socket={}", socket.display());
        let owner = Owner {
            uri,
            domain_name,
            events,
            requests: requests.clone(),
            connection: None,
            serial: 0,
        };
        thread("libvirt", move || owner.run(&queue))?;
        Ok(Self { requests })
    }

    async fn call<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| Error::gone())?;
        answer.await.map_err(|_| Error::gone())?
    }

    /// Defines the domain, and tells where libvirt put its devices.
    pub async fn define(&self, xml: String) -> Result<Vec<Place>, Error> {
        self.call(|reply| Request::Define(xml, reply)).await
    }

    /// Starts the defined domain, and tells what became of it.
    pub async fn start_domain(&self, paused: bool) -> Result<Description, Error> {
        self.call(|reply| Request::Start(paused, reply)).await
    }

    /// Does one thing to the domain, and answers when it is done.
    pub async fn act(&self, verb: Verb) -> Result<(), Error> {
        self.call(|reply| Request::Act(verb, reply)).await
    }

    /// What the domain uses, with the names that disks and NICs have in the VMI.
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.call(Request::Stats).await
    }

    /// The node's AMD SEV.
    pub async fn sev_platform(&self) -> Result<sev::Platform, Error> {
        self.call(Request::SevPlatform).await
    }

    /// What was measured when the domain was started.
    pub async fn sev_launch(&self) -> Result<sev::Launch, Error> {
        self.call(Request::SevLaunch).await
    }

    /// Lays a secret into the memory of the paused domain.
    pub async fn sev_secret(&self, secret: sev::Secret) -> Result<(), Error> {
        self.call(|reply| Request::SevSecret(secret, reply)).await
    }

    /// The domain, for calls that may take long and are made on another thread (the guest agent's).
    pub async fn domain(&self) -> Result<Domain, Error> {
        self.call(Request::Domain).await
    }
}

/// Starts a thread with a small stack; these threads live as long as the process.
pub fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(256 << 10)
        .spawn(body)
        .map(drop)
}

/// The owner of the connection, on its own thread.
struct Owner {
    uri: String,
    domain_name: String,
    events: async_mpsc::UnboundedSender<Event>,
    requests: mpsc::Sender<Request>,
    connection: Option<Connect>,
    serial: u64,
}

impl Owner {
    fn run(mut self, queue: &mpsc::Receiver<Request>) {
        self.connected();
        while let Ok(request) = queue.recv() {
            match request {
                Request::Define(xml, reply) => drop(reply.send(self.define(&xml))),
                Request::Start(paused, reply) => drop(reply.send(self.start(paused))),
                Request::Act(verb, reply) => drop(reply.send(self.act(verb))),
                Request::Domain(reply) => drop(reply.send(self.domain())),
                Request::Stats(reply) => drop(reply.send(self.stats())),
                Request::SevPlatform(reply) => drop(reply.send(sev::platform(self.connected()))),
                Request::SevLaunch(reply) => drop(reply.send(self.domain().and_then(|domain| sev::launch(&domain)))),
                Request::SevSecret(secret, reply) => {
                    drop(reply.send(self.domain().and_then(|domain| sev::inject(&domain, &secret))));
                }
                Request::Closed(serial) if serial == self.serial => {
                    self.disconnect();
                    self.connected();
                }
                Request::Closed(_) => {}
            }
        }
    }

    fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            ffi::unsubscribe(&connection);
        }
    }

    /// The open connection; opens it again when it was lost.
    fn connected(&mut self) -> &Connect {
        if self
            .connection
            .as_ref()
            .is_some_and(|connection| !connection.is_alive().unwrap_or(false))
        {
            tracing::warn!("the connection to libvirtd was lost");
            self.disconnect();
        }
        if self.connection.is_none() {
            let (connection, observed) = loop {
                match self.open() {
                    Ok(opened) => break opened,
                    // libvirtd died while it answered (its socket lives on, so the next attempt waits in its queue),
                    // or it is still looking for the guest. Neither says that the guest has ended.
                    Err(error) => tracing::debug!(%error, "cannot connect to libvirtd yet"),
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            let _ = self.events.send(Event::Connected(observed));
            self.connection = Some(connection);
        }
        self.connection.as_ref().expect("it was just opened")
    }

    /// A new connection, and the domain as it is found there.
    fn open(&mut self) -> Result<(Connect, Option<(Activity, bool)>), Error> {
        let connection = Connect::open(Some(&self.uri))?;
        self.serial += 1;
        let observed = self
            .watch(&connection)
            .and_then(|()| observe(&connection, &self.domain_name));
        match observed {
            Ok(observed) => Ok((connection, observed)),
            Err(error) => {
                ffi::unsubscribe(&connection);
                Err(error)
            }
        }
    }

    fn watch(&self, connection: &Connect) -> Result<(), Error> {
        let (serial, events, requests) = (self.serial, self.events.clone(), self.requests.clone());
        ffi::subscribe(connection, move || {
            let (events, requests) = (events.clone(), requests.clone());
            Box::new(move |signal| match signal {
                ffi::Signal::Lifecycle(event, detail) => {
                    if let Some(activity) = activity_of_event(event, detail) {
                        let _ = events.send(Event::Activity(activity));
                    }
                }
                ffi::Signal::Agent(connected) => drop(events.send(Event::Agent(connected))),
                ffi::Signal::Closed => drop(requests.send(Request::Closed(serial))),
            })
        })?;
        // A libvirtd that hangs is noticed, too; seldom, since each check wakes both sides.
        connection.set_keep_alive(30, 2)?;
        Ok(())
    }

    fn domain(&mut self) -> Result<Domain, Error> {
        let name = self.domain_name.clone();
        Ok(self.connected().lookup_domain_by_name(&name)?)
    }

    fn define(&mut self, xml: &str) -> Result<Vec<Place>, Error> {
        let domain = self.connected().define_domain_xml(xml)?;
        Ok(places::places(&domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?))
    }

    fn start(&mut self, paused: bool) -> Result<Description, Error> {
        let domain = self.domain()?;
        domain.create_with_flags(if paused {
            sys::VIR_DOMAIN_START_PAUSED
        } else {
            sys::VIR_DOMAIN_NONE
        })?;
        Ok(xml::describe(&domain.xml_desc(0)?))
    }

    fn stats(&mut self) -> Result<Stats, Error> {
        let domain = self.domain()?;
        let mut stats = ffi::stats(&domain)?;
        let description = xml::describe(&domain.xml_desc(0)?);
        let names = |key: &str, device: &str| -> Option<(String, String)> {
            let (kind, index) = key.strip_suffix(".name")?.split_once('.')?;
            let disk = || {
                Some(
                    description
                        .disks
                        .iter()
                        .find(|disk| disk.target == device)?
                        .name
                        .clone(),
                )
            };
            let network = || Some(description.taps.iter().find(|(tap, _)| tap == device)?.1.clone());
            match kind {
                "block" => Some((format!("block.{index}.volume"), disk()?)),
                "net" => Some((format!("net.{index}.network"), network()?)),
                _ => None,
            }
        };
        let named: Vec<_> = stats
            .iter()
            .filter_map(|(key, value)| match value {
                Value::Text(device) => names(key, device),
                Value::Number(_) => None,
            })
            .map(|(key, name)| (key, Value::Text(name)))
            .collect();
        stats.extend(named);
        Ok(stats)
    }

    fn act(&mut self, verb: Verb) -> Result<(), Error> {
        let domain = self.domain()?;
        match verb {
            Verb::Suspend => domain.suspend()?,
            Verb::Resume => domain.resume()?,
            Verb::AcpiShutdown => drop(domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)?),
            Verb::Reset => drop(domain.reset()?),
            Verb::AcpiReboot => domain.reboot(sys::VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)?,
            Verb::Destroy => domain.destroy()?,
        }
        Ok(())
    }
}

/// What the domain does and whether its agent is connected; `None` only if there is no such domain. Where libvirtd does
/// not tell, or does not know yet, that is an error.
fn observe(connection: &Connect, name: &str) -> Result<Option<(Activity, bool)>, Error> {
    let domain = match connection.lookup_domain_by_name(name) {
        Ok(domain) => domain,
        Err(error) if error.code() == Enum::Known(ErrorNumber::NoDomain) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // A libvirtd that was just started may still be looking for its QEMU, and it sends no event if it finds none.
    // This call needs the domain's job, which that search holds.
    let _ = domain.memory_stats(0);
    let (state, reason) = domain.state()?;
    let reason = match reason {
        Enum::Known(reason) => Some(reason),
        Enum::Unknown(_) => None,
    };
    let activity = state.known().and_then(|state| activity_of_state(state, reason));
    let activity = activity.ok_or_else(|| Error {
        message: format!("libvirtd does not know yet what domain {name} does"),
    })?;
    let agent = xml::describe(&domain.xml_desc(0)?).agent_connected;
    Ok(Some((activity, agent)))
}

/// `None` while libvirtd itself does not know it.
fn activity_of_state(state: DomainState, reason: Option<DomainStateReason>) -> Option<Activity> {
    Some(match (state, reason) {
        // A guest that suspended itself wakes itself: nobody paused it.
        (DomainState::Running | DomainState::Blocked | DomainState::Shutdown | DomainState::PMSuspended, _) => {
            Activity::Running
        }
        (DomainState::Paused, Some(DomainStateReason::Paused(reason))) => Activity::Paused(match reason.known() {
            Some(DomainPausedReason::IOError) => "IOError",
            Some(DomainPausedReason::Watchdog) => "Watchdog",
            Some(DomainPausedReason::ShuttingDown) => "ShuttingDown",
            Some(DomainPausedReason::Migration) => "Migration",
            Some(DomainPausedReason::StartingUp) => "StartingUp",
            _ => "User",
        }),
        (DomainState::Paused, _) => Activity::Paused("User"),
        (DomainState::Crashed, _) => Activity::Crashed("Crashed"),
        (DomainState::Shutoff, Some(DomainStateReason::Shutoff(reason))) => match reason.known() {
            Some(DomainShutoffReason::Shutdown) => Activity::Off("Shutdown"),
            Some(DomainShutoffReason::Destroyed) => Activity::Off("Destroyed"),
            Some(DomainShutoffReason::Crashed) => Activity::Crashed("Crashed"),
            // QEMU ended while no libvirtd watched it.
            _ => Activity::Crashed("Failed"),
        },
        (DomainState::Shutoff, _) => Activity::Crashed("Failed"),
        (DomainState::NoState, _) => return None,
    })
}

fn activity_of_event(event: i32, detail: i32) -> Option<Activity> {
    let (event, detail) = (u32::try_from(event).ok()?, u32::try_from(detail).ok()?);
    match event {
        sys::VIR_DOMAIN_EVENT_RESUMED => Some(Activity::Running),
        sys::VIR_DOMAIN_EVENT_SUSPENDED => Some(Activity::Paused(match detail {
            sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR => "IOError",
            sys::VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG => "Watchdog",
            sys::VIR_DOMAIN_EVENT_SUSPENDED_GUEST_SHUTDOWN => "ShuttingDown",
            _ => "User",
        })),
        sys::VIR_DOMAIN_EVENT_STOPPED => Some(match detail {
            sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => Activity::Off("Shutdown"),
            sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => Activity::Off("Destroyed"),
            sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => Activity::Crashed("Crashed"),
            _ => Activity::Crashed("Failed"),
        }),
        sys::VIR_DOMAIN_EVENT_CRASHED => Some(Activity::Crashed("Panicked")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_found_again_is_what_libvirt_says() {
        let paused = |reason| Some(DomainStateReason::Paused(Enum::Known(reason)));
        let off = |reason| Some(DomainStateReason::Shutoff(Enum::Known(reason)));
        for (state, reason, expected) in [
            (DomainState::Running, None, Some(Activity::Running)),
            (DomainState::PMSuspended, None, Some(Activity::Running)),
            (
                DomainState::Paused,
                paused(DomainPausedReason::IOError),
                Some(Activity::Paused("IOError")),
            ),
            (
                DomainState::Paused,
                paused(DomainPausedReason::Watchdog),
                Some(Activity::Paused("Watchdog")),
            ),
            (
                DomainState::Paused,
                paused(DomainPausedReason::User),
                Some(Activity::Paused("User")),
            ),
            (
                DomainState::Paused,
                Some(DomainStateReason::Paused(Enum::Unknown(99))),
                Some(Activity::Paused("User")),
            ),
            (DomainState::Paused, None, Some(Activity::Paused("User"))),
            (
                DomainState::Shutoff,
                off(DomainShutoffReason::Shutdown),
                Some(Activity::Off("Shutdown")),
            ),
            (
                DomainState::Shutoff,
                off(DomainShutoffReason::Unknown),
                Some(Activity::Crashed("Failed")),
            ),
            (DomainState::Shutoff, None, Some(Activity::Crashed("Failed"))),
            (DomainState::Crashed, None, Some(Activity::Crashed("Crashed"))),
            (DomainState::NoState, None, None),
        ] {
            let said = format!("{state:?} {reason:?}");
            assert_eq!(activity_of_state(state, reason), expected, "{said}");
        }
    }

    /// Asks the test driver in libvirt's library, which has one domain, `test`, and needs no daemon.
    #[test]
    fn only_a_domain_that_is_missing_or_off_has_ended() {
        virt::error::clear_error_callback();
        let connection = Connect::open(Some("test:///default")).unwrap();
        let domain = connection.lookup_domain_by_name("test").unwrap();
        let observed = || observe(&connection, "test").unwrap();
        assert_eq!(observed(), Some((Activity::Running, false)));
        domain.suspend().unwrap();
        assert_eq!(observed(), Some((Activity::Paused("User"), false)));
        domain.destroy().unwrap();
        assert_eq!(observed(), Some((Activity::Off("Destroyed"), false)));
        assert_eq!(observe(&connection, "missing").unwrap(), None);
        // Not even asked for: this is no name.
        assert!(observe(&connection, "te\0st").is_err());
    }
}
