//! What virt-api asks of the node: streams into guests, actions, guest agent facts.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use ferrovirt_api::v1::{SEVMeasurementInfo, SEVPlatformInfo, SEVSecretOptions, VirtualMachineInstance};
use ferrovirt_protocol::launcher::launcher_client::LauncherClient;
use ferrovirt_protocol::launcher::{
    ActRequest, Action, GuestInfoRequest, ScreenshotRequest, SevMeasurementReply, SevMeasurementRequest,
    SevPlatformReply, SevPlatformRequest, SevSecretRequest,
};
use ferrovirt_protocol::paths;
use ferrovirt_protocol::streams::{Duplex, NodeAgent, Stream, StreamError};
use nix::sys::socket::{Shutdown, shutdown};
use rustls::ClientConfig;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::session::launcher::Launcher;
use crate::sockets;
use crate::vsock::{self, Credentials};

/// Longest wait for an action; a reset of a busy guest may take a while.
const ACT_TIMEOUT: Duration = Duration::from_secs(60);
/// Ports of USB redirection that a guest has.
const USB_PORTS: usize = 4;
/// Largest picture of a screen; an honest one has a few bytes per pixel.
const MAX_SCREENSHOT: usize = 32 << 20;

/// A guest as virt-api can reach it.
#[derive(Clone)]
struct Guest {
    vmi_uid: String,
    pod_uid: String,
    client: Option<LauncherClient<Channel>>,
    console: Arc<Slot>,
    vnc: Arc<Slot>,
    /// One per port of USB redirection.
    usb: [Arc<Slot>; USB_PORTS],
    /// Context ID of its virtual sockets.
    cid: Option<u32>,
}

/// The guests of this node; sessions publish them.
#[derive(Clone, Default)]
pub(crate) struct Guests(Arc<Mutex<HashMap<(String, String), Guest>>>);

impl Guests {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Guest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where a VMI's guest is now.
    pub(crate) fn publish(&self, vmi: &VirtualMachineInstance, pod_uid: &str, launcher: Option<&Launcher>) {
        let uid = vmi.metadata.uid.clone().unwrap_or_default();
        let mut guests = self.lock();
        let guest = guests.entry(key(vmi)).or_insert_with(|| Guest {
            vmi_uid: String::new(),
            pod_uid: String::new(),
            client: None,
            console: Arc::default(),
            vnc: Arc::default(),
            usb: Default::default(),
            cid: None,
        });
        if guest.vmi_uid != uid || guest.pod_uid != pod_uid {
            (guest.console, guest.vnc) = (Arc::default(), Arc::default());
            guest.usb = Default::default();
        }
        guest.vmi_uid = uid;
        guest.pod_uid = pod_uid.to_owned();
        guest.cid = vsock::context_id(vmi.status.as_ref().and_then(|status| status.vsockcid));
        guest.client = launcher.map(|launcher| launcher.client.clone());
    }

    /// Forgets a VMI, unless another one has taken its name.
    pub(crate) fn forget(&self, namespace: &str, name: &str, uid: &str) {
        let mut guests = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if guests.get(&key).is_some_and(|guest| guest.vmi_uid == uid) {
            guests.remove(&key);
        }
    }

    /// Those that can be asked: namespace, name, and where to.
    pub(crate) fn launchers(&self) -> Vec<(String, String, LauncherClient<Channel>)> {
        let guests = self.lock();
        let reachable = guests.iter().filter_map(|((namespace, name), guest)| {
            let client = guest.client.clone()?;
            Some((namespace.clone(), name.clone(), client))
        });
        reachable.collect()
    }

    fn find(&self, namespace: &str, name: &str) -> Result<Guest, StreamError> {
        let not_here = || StreamError::NotHere(format!("{namespace}/{name}"));
        self.lock()
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
            .ok_or_else(not_here)
    }
}

fn key(vmi: &VirtualMachineInstance) -> (String, String) {
    (
        vmi.metadata.namespace.clone().unwrap_or_default(),
        vmi.metadata.name.clone().unwrap_or_default(),
    )
}

/// Who is connected to one stream of one guest.
#[derive(Default)]
struct Slot(Mutex<Weak<OwnedFd>>);

impl Slot {
    /// Takes the stream over: whoever was connected sees its end. With `preserve` it is left to them.
    fn take(&self, stream: &UnixStream, preserve: bool) -> io::Result<Option<Arc<OwnedFd>>> {
        let mut holder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = holder.upgrade() {
            if preserve {
                return Ok(None);
            }
            // Fails only when that connection has ended already.
            let _ = shutdown(other.as_raw_fd(), Shutdown::Both);
        }
        let handle = Arc::new(stream.as_fd().try_clone_to_owned()?);
        *holder = Arc::downgrade(&handle);
        Ok(Some(handle))
    }

    fn is_taken(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upgrade()
            .is_some()
    }
}

/// A connection that somebody else can end through the slot.
struct Held {
    stream: UnixStream,
    _handle: Arc<OwnedFd>,
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The node as virt-api sees it. Cheap to clone; knows the guests while [`crate::run_with`] runs.
#[derive(Clone)]
pub struct Agent {
    pub(crate) guests: Guests,
    pods_dir: PathBuf,
    ready: watch::Sender<bool>,
    credentials: Credentials,
}

impl Agent {
    /// An agent that serves guests whose pods are below `pods_dir`.
    #[must_use]
    pub fn new(pods_dir: PathBuf) -> Self {
        Self {
            guests: Guests::default(),
            pods_dir,
            ready: watch::channel(false).0,
            credentials: Credentials::default(),
        }
    }

    /// Waits until the node is offered to the scheduler.
    pub async fn ready(&self) {
        // The sender lives as long as this.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Shows this to programs in guests that want TLS on their virtual sockets.
    pub(crate) fn set_credentials(&self, config: Arc<ClientConfig>) {
        self.credentials.set(config);
    }

    pub(crate) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    fn client(&self, namespace: &str, vmi: &str) -> Result<LauncherClient<Channel>, StreamError> {
        let not_here = || StreamError::NotHere(format!("{namespace}/{vmi}"));
        self.guests.find(namespace, vmi)?.client.ok_or_else(not_here)
    }
}

fn refused(status: &tonic::Status) -> StreamError {
    StreamError::Refused(format!("virt-launcher: {}", status.message()))
}

async fn within<T>(answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, StreamError> {
    match tokio::time::timeout(ACT_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refused(&status)),
        Err(_) => Err(refused(&tonic::Status::deadline_exceeded(
            "virt-launcher does not answer",
        ))),
    }
}

#[async_trait]
impl NodeAgent for Agent {
    async fn stream(&self, namespace: &str, vmi: &str, stream: Stream) -> Result<Box<dyn Duplex>, StreamError> {
        let guest = self.guests.find(namespace, vmi)?;
        let usb = guest.usb.iter().position(|slot| !slot.is_taken()).unwrap_or_default();
        let usb_socket = format!("{}{usb}", paths::USB_REDIRECTION_SOCKET);
        let (name, slot, preserve, what) = match stream {
            Stream::Console => (paths::SERIAL_SOCKET, &guest.console, false, "console"),
            Stream::Vnc { preserve_session } => (paths::VNC_SOCKET, &guest.vnc, preserve_session, "VNC"),
            // Nobody's device is taken out.
            Stream::UsbRedir => (usb_socket.as_str(), &guest.usb[usb], true, "every USB port"),
            Stream::Vsock { port, tls } => {
                let who = format!("{namespace}/{vmi}");
                return vsock::connect(&who, guest.cid, port, tls, &self.credentials).await;
            }
        };
        let busy = || StreamError::Busy(format!("{what} of VirtualMachineInstance {namespace}/{vmi}"));
        // QEMU serves one client at a time, so the other must not even connect.
        if preserve && slot.is_taken() {
            return Err(busy());
        }
        let relative = sockets::guest_socket(&guest.pod_uid, &guest.vmi_uid, name);
        let failed = |source| StreamError::Connect {
            path: relative.display().to_string(),
            source,
        };
        let connection = sockets::connect_beneath(&self.pods_dir, &relative)
            .await
            .map_err(failed)?;
        match slot.take(&connection, preserve).map_err(failed)? {
            Some(handle) => Ok(Box::new(Held {
                stream: connection,
                _handle: handle,
            })),
            None => Err(busy()),
        }
    }

    async fn act(&self, namespace: &str, vmi: &str, action: Action) -> Result<(), StreamError> {
        let request = ActRequest {
            action: action.into(),
            ..ActRequest::default()
        };
        within(self.client(namespace, vmi)?.act(request)).await.map(drop)
    }

    async fn freeze(&self, namespace: &str, vmi: &str, thaw_after: Duration) -> Result<(), StreamError> {
        let request = ActRequest {
            action: Action::Freeze.into(),
            thaw_seconds: thaw_after.as_secs() + u64::from(thaw_after.subsec_nanos() > 0),
            ..ActRequest::default()
        };
        within(self.client(namespace, vmi)?.act(request)).await.map(drop)
    }

    async fn screenshot(&self, namespace: &str, vmi: &str, move_cursor: bool) -> Result<Vec<u8>, StreamError> {
        let mut client = self.client(namespace, vmi)?;
        let picture = async {
            let mut parts = client.screenshot(ScreenshotRequest { move_cursor }).await?.into_inner();
            let mut png = Vec::new();
            while let Some(part) = parts.message().await? {
                if png.len() + part.png.len() > MAX_SCREENSHOT {
                    return Err(tonic::Status::out_of_range("the screen is too large for a picture"));
                }
                png.extend_from_slice(&part.png);
            }
            Ok(tonic::Response::new(png))
        };
        within(picture).await
    }

    async fn guest_info(&self, namespace: &str, vmi: &str) -> Result<serde_json::Value, StreamError> {
        let mut client = self.client(namespace, vmi)?;
        let reply = within(client.guest_info(GuestInfoRequest {})).await?;
        serde_json::from_slice(&reply.json)
            .map_err(|error| refused(&tonic::Status::internal(format!("virt-launcher sent no JSON: {error}"))))
    }

    async fn sev_platform(&self, namespace: &str, vmi: &str) -> Result<SEVPlatformInfo, StreamError> {
        let mut client = self.client(namespace, vmi)?;
        let SevPlatformReply { pdh, cert_chain } = within(client.sev_platform(SevPlatformRequest {})).await?;
        Ok(SEVPlatformInfo {
            pdh: Some(pdh),
            cert_chain: Some(cert_chain),
            ..SEVPlatformInfo::default()
        })
    }

    async fn sev_measurement(&self, namespace: &str, vmi: &str) -> Result<SEVMeasurementInfo, StreamError> {
        let mut client = self.client(namespace, vmi)?;
        let reply = within(client.sev_measurement(SevMeasurementRequest {})).await?;
        Ok(measurement(reply))
    }

    async fn sev_secret(&self, namespace: &str, vmi: &str, secret: SEVSecretOptions) -> Result<(), StreamError> {
        let request = SevSecretRequest {
            header: secret.header.unwrap_or_default(),
            secret: secret.secret.unwrap_or_default(),
        };
        within(self.client(namespace, vmi)?.sev_secret(request)).await.map(drop)
    }
}

fn measurement(reply: SevMeasurementReply) -> SEVMeasurementInfo {
    // The API's numbers have a sign; none of these is so large.
    let number = |number: u32| i32::try_from(number).ok();
    SEVMeasurementInfo {
        measurement: Some(reply.measurement),
        api_major: number(reply.api_major),
        api_minor: number(reply.api_minor),
        build_id: number(reply.build_id),
        policy: number(reply.policy),
        loader_sha: Some(reply.loader_sha),
        ..SEVMeasurementInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn agent() -> (tempfile::TempDir, Agent, UnixListener) {
        let pods = tempfile::tempdir().unwrap();
        let path = pods.path().join(sockets::guest_socket("pod", "vmi", "virt-vnc"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let agent = Agent::new(pods.path().to_owned());
        let mut object = VirtualMachineInstance::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some("vm".into());
        object.metadata.uid = Some("vmi".into());
        agent.guests.publish(&object, "pod", None);
        (pods, agent, listener)
    }

    #[tokio::test]
    async fn the_second_client_ends_the_first() {
        let (_pods, agent, listener) = agent().await;
        let take = Stream::Vnc {
            preserve_session: false,
        };
        let mut first = agent.stream("ns", "vm", take).await.unwrap();
        let mut second = agent.stream("ns", "vm", take).await.unwrap();
        assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0);
        drop(listener.accept().await.unwrap());
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"RFB").await.unwrap();
        let mut answer = [0; 3];
        second.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"RFB");
        // The first one's going does not harm the second.
        drop(first);
        second.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn preserving_refuses_while_somebody_is_there() {
        let (_pods, agent, _listener) = agent().await;
        let preserve = Stream::Vnc { preserve_session: true };
        let first = agent.stream("ns", "vm", preserve).await.unwrap();
        assert!(matches!(
            agent.stream("ns", "vm", preserve).await,
            Err(StreamError::Busy(_))
        ));
        drop(first);
        agent.stream("ns", "vm", preserve).await.unwrap();
    }

    #[tokio::test]
    async fn each_device_has_a_port_of_its_own() {
        let (pods, agent, _vnc) = agent().await;
        let listen = |number: usize| {
            let name = format!("{}{number}", paths::USB_REDIRECTION_SOCKET);
            UnixListener::bind(pods.path().join(sockets::guest_socket("pod", "vmi", &name))).unwrap()
        };
        let ports: Vec<UnixListener> = (0..USB_PORTS).map(listen).collect();
        let mut devices = Vec::new();
        for port in &ports {
            let mut device = agent.stream("ns", "vm", Stream::UsbRedir).await.unwrap();
            let (mut server, _) = port.accept().await.unwrap();
            device.write_all(b"usb").await.unwrap();
            let mut said = [0; 3];
            server.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"usb");
            devices.push((device, server));
        }
        let full = agent.stream("ns", "vm", Stream::UsbRedir).await;
        assert!(matches!(full, Err(StreamError::Busy(_))));
        drop(devices.remove(2));
        let _again = agent.stream("ns", "vm", Stream::UsbRedir).await.unwrap();
        ports[2].accept().await.unwrap();
    }

    #[test]
    fn measurements_are_told_in_the_api_s_words() {
        let reply = SevMeasurementReply {
            measurement: "QUFB".into(),
            api_major: 1,
            api_minor: 55,
            build_id: 21,
            policy: 3,
            loader_sha: "e3b0".into(),
        };
        let expected = serde_json::json!({
            "measurement": "QUFB", "apiMajor": 1, "apiMinor": 55, "buildID": 21, "policy": 3, "loaderSHA": "e3b0",
        });
        assert_eq!(serde_json::to_value(measurement(reply)).unwrap(), expected);
    }

    #[tokio::test]
    async fn who_is_not_here_is_said_so() {
        let (_pods, agent, _listener) = agent().await;
        assert!(matches!(
            agent.stream("ns", "other", Stream::Console).await,
            Err(StreamError::NotHere(_))
        ));
        assert!(matches!(
            agent.stream("ns", "vm", Stream::Console).await,
            Err(StreamError::Connect { .. })
        ));
        assert!(matches!(
            agent.act("ns", "vm", Action::Pause).await,
            Err(StreamError::NotHere(_))
        ));
    }
}
