//! One device's plugin: its server, and its registration with the kubelet.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::api::device_plugin_server::{DevicePlugin, DevicePluginServer};
use super::api::registration_client::RegistrationClient;
use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device as ApiDevice, DevicePluginOptions, DeviceSpec,
    Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use super::{Daemon, Device, Offer};

/// The interface's version.
const VERSION: &str = "v1beta1";
/// Where the kubelet listens.
const KUBELET_SOCKET: &str = "kubelet.sock";
/// The kubelet answers at once or not at all.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a device is not offered.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot reach the kubelet at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the kubelet did not register {resource}: {}", status.message())]
    Refused { resource: String, status: Box<Status> },
    #[error("the kubelet did not answer within {REGISTER_TIMEOUT:?}")]
    Silent,
}

/// Tells files of the same name apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some(Identity(metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// A bound socket and its server.
struct Serving {
    path: PathBuf,
    bound: Option<Identity>,
    health: watch::Sender<Vec<bool>>,
    /// The kubelet's socket that accepted us.
    registered: Option<Identity>,
    _server: AbortOnDropHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if identity(&self.path) == self.bound {
            // What remains is removed by the next one to bind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Offers one resource for ever. Cancel safe.
pub(super) async fn run(
    directory: &Path,
    offer: Offer,
    mut changes: watch::Receiver<()>,
    registered: &watch::Sender<usize>,
) {
    let (mut serving, mut pause, mut counted) = (None, FIRST_PAUSE, false);
    loop {
        changes.borrow_and_update();
        let retry = match step(directory, &offer, &mut serving).await {
            Ok(()) => {
                pause = FIRST_PAUSE;
                None
            }
            Err(error) => {
                let error = ferrovirt_runtime::logs::chain(&error);
                tracing::warn!(resource = offer.resource(), error, "device plugin");
                pause = (pause * 2).min(LONGEST_PAUSE);
                Some(pause)
            }
        };
        if !counted && serving.as_ref().is_some_and(|serving| serving.registered.is_some()) {
            counted = true;
            registered.send_modify(|count| *count += 1);
        }
        let again = async {
            match retry {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

/// Brings the plugin to where it should be now.
async fn step(directory: &Path, offer: &Offer, slot: &mut Option<Serving>) -> Result<(), Error> {
    let present = offer.present();
    if let Offer::Daemon(daemon, _) = offer
        && present.contains(&true)
    {
        daemon.open();
    }
    let socket = directory.join(offer.socket());
    if slot.as_ref().is_some_and(|serving| identity(&socket) != serving.bound) {
        *slot = None;
    }
    let serving = match slot {
        Some(serving) => serving,
        None if !present.contains(&true) => return Ok(()),
        None => slot.insert(serve(socket, offer.clone(), present.clone())?),
    };
    serving.health.send_if_modified(|health| {
        let changed = *health != present;
        health.clone_from(&present);
        changed
    });
    let path = directory.join(KUBELET_SOCKET);
    let Some(kubelet) = identity(&path) else {
        return Ok(());
    };
    if serving.registered != Some(kubelet) {
        register(path, offer).await?;
        serving.registered = Some(kubelet);
        tracing::info!(resource = offer.resource(), "the kubelet accepted the device plugin");
    }
    Ok(())
}

fn serve(path: PathBuf, offer: Offer, present: Vec<bool>) -> Result<Serving, Error> {
    let failed = |source| Error::Listen {
        path: path.clone(),
        source,
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let (health, seen) = watch::channel(present);
    let resource = offer.resource();
    let service = DevicePluginServer::new(Plugin { offer, health: seen });
    let server = tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        if let Err(error) = served.await {
            tracing::warn!(resource, %error, "the device plugin's server failed");
        }
    });
    Ok(Serving {
        bound: identity(&path),
        path,
        health,
        registered: None,
        _server: AbortOnDropHandle::new(server),
    })
}

async fn register(path: PathBuf, offer: &Offer) -> Result<(), Error> {
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: offer.socket(),
        resource_name: offer.resource(),
        options: Some(DevicePluginOptions::default()),
    };
    let socket = Arc::new(path.clone());
    let connector = service_fn(move |_: tonic::transport::Uri| {
        let socket = Arc::clone(&socket);
        async move { UnixStream::connect(&*socket).await.map(TokioIo::new) }
    });
    let registered = async {
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|source| Error::Connect { path, source })?;
        let answer = RegistrationClient::new(channel).register(request).await;
        answer.map_err(|status| Error::Refused {
            resource: offer.resource(),
            status: Box::new(status),
        })
    };
    match tokio::time::timeout(REGISTER_TIMEOUT, registered).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(Error::Silent),
    }
}

/// The service.
struct Plugin {
    offer: Offer,
    health: watch::Receiver<Vec<bool>>,
}

/// All shares of what is offered, each with its health. A device that is shared has many.
fn list(offer: &Offer, healthy: &[bool]) -> ListAndWatchResponse {
    let ids: Vec<(String, bool)> = match offer {
        Offer::Shared(Device { name, .. }, guests) | Offer::Daemon(Daemon { name, .. }, guests) => {
            let healthy = healthy.contains(&true);
            (0..*guests).map(|n| (format!("{name}{n}"), healthy)).collect()
        }
        Offer::Pool(pool) => pool.ids().into_iter().zip(healthy.iter().copied()).collect(),
    };
    let device = |(id, healthy)| ApiDevice {
        id,
        health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
    };
    ListAndWatchResponse {
        devices: ids.into_iter().map(device).collect(),
    }
}

/// Every container of the request gets the one device node, however many shares of it it asked for.
fn allocate(device: &Device, containers: usize) -> AllocateResponse {
    let path = device.path.display().to_string();
    let container = ContainerAllocateResponse {
        devices: vec![DeviceSpec {
            container_path: path.clone(),
            host_path: path,
            permissions: "mrw".to_owned(),
        }],
        ..ContainerAllocateResponse::default()
    };
    AllocateResponse {
        container_responses: vec![container; containers],
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let offer = self.offer.clone();
        let lists = WatchStream::new(self.health.clone()).map(move |healthy| Ok(list(&offer, &healthy)));
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("all shares of a device are alike"))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(match &self.offer {
            Offer::Shared(device, _) => allocate(device, request.container_requests.len()),
            Offer::Pool(pool) => pool.allocate(&request),
            Offer::Daemon(daemon, _) => daemon.allocate(request.container_requests.len()),
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
