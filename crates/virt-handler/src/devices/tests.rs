//! Against a kubelet's side of the interface that this file plays: registration, listing, allocation, restarts.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::api::device_plugin_client::DevicePluginClient;
use super::api::registration_server::{Registration, RegistrationServer};
use super::api::{AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse, RegisterRequest};
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

struct Kubelet(mpsc::UnboundedSender<RegisterRequest>);

#[tonic::async_trait]
impl Registration for Kubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(Empty {}))
    }
}

/// A kubelet that was just started: whatever plugins had left is gone.
fn kubelet(directory: &Path) -> (mpsc::UnboundedReceiver<RegisterRequest>, AbortOnDropHandle<()>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let listener = UnixListener::bind(directory.join("kubelet.sock")).unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(Kubelet(sender)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let task = tokio::spawn(async move { server.await.unwrap() });
    (receiver, AbortOnDropHandle::new(task))
}

async fn plugin(directory: &Path, endpoint: &str) -> DevicePluginClient<Channel> {
    let path = Arc::new(directory.join(endpoint));
    let connector = service_fn(move |_: tonic::transport::Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .unwrap();
    DevicePluginClient::new(channel)
}

async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(DEADLINE, receiver.recv()).await.unwrap().unwrap()
}

fn guests(guests_per_node: u32) -> Arc<ClusterConfig> {
    Arc::new(ClusterConfig {
        guests_per_node,
        ..ClusterConfig::default()
    })
}

/// The next list of a plugin's devices.
async fn next_list(lists: &mut tonic::Streaming<ListAndWatchResponse>) -> ListAndWatchResponse {
    let list = tokio::time::timeout(DEADLINE, lists.message()).await;
    list.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_device_is_registered_listed_allocated_and_follows_the_kubelet() {
    let (sockets, dev) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, node) = (sockets.path().to_owned(), dev.path().join("tun"));
    std::fs::write(&node, "").unwrap();
    let (mut registrations, first) = kubelet(&directory);
    let devices = vec![
        Device {
            name: "tun",
            path: node.clone(),
        },
        Device::new("absent", "/nonexistent/device"),
    ];
    let (registered, mut seen) = watch::channel(0);
    let (config, given) = watch::channel(guests(1000));
    let plugins = tokio::spawn({
        let directory = directory.clone();
        async move { run(&directory, devices, given, &registered).await }
    });

    let request = next(&mut registrations).await;
    assert_eq!(
        (
            request.version.as_str(),
            request.resource_name.as_str(),
            request.endpoint.as_str()
        ),
        ("v1beta1", "devices.kubevirt.io/tun", "kubevirt-tun.sock")
    );
    tokio::time::timeout(DEADLINE, seen.wait_for(|count| *count == 1))
        .await
        .unwrap()
        .unwrap();

    let mut client = plugin(&directory, &request.endpoint).await;
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    let list = lists.message().await.unwrap().unwrap();
    assert_eq!((list.devices.len(), list.devices[7].id.as_str()), (1000, "tun7"));
    assert!(list.devices.iter().all(|device| device.health == "Healthy"));

    let container = ContainerAllocateRequest {
        devices_ids: vec!["tun1".into(), "tun2".into()],
    };
    let container_requests = vec![container.clone(), container];
    let answer = client
        .allocate(AllocateRequest { container_requests })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.container_responses.len(), 2);
    for response in &answer.container_responses {
        assert_eq!(response.devices.len(), 1);
        let device = &response.devices[0];
        assert_eq!(
            (device.host_path.as_ref(), device.permissions.as_str()),
            (node.to_str().unwrap(), "mrw")
        );
    }

    std::fs::remove_file(&node).unwrap();
    let list = next_list(&mut lists).await;
    assert!(list.devices.iter().all(|device| device.health == "Unhealthy"));
    std::fs::write(&node, "").unwrap();
    let list = next_list(&mut lists).await;
    assert!(list.devices.iter().all(|device| device.health == "Healthy"));

    drop(first);
    let (mut registrations, _second) = kubelet(&directory);
    let request = next(&mut registrations).await;
    assert_eq!(request.resource_name, "devices.kubevirt.io/tun");
    let mut client = plugin(&directory, &request.endpoint).await;
    client.get_device_plugin_options(Empty {}).await.unwrap();

    config.send_replace(guests(3));
    let request = next(&mut registrations).await;
    let mut client = plugin(&directory, &request.endpoint).await;
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(next_list(&mut lists).await.devices.len(), 3);

    plugins.abort();
    assert!(plugins.await.unwrap_err().is_cancelled());
    assert!(!directory.join(&request.endpoint).exists());
}

#[tokio::test]
async fn a_daemon_is_offered_with_the_directory_of_its_socket() {
    let (sockets, daemons) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, path) = (sockets.path().to_owned(), daemons.path().to_owned());
    let (mut registrations, _kubelet) = kubelet(&directory);
    let user = nix::unistd::getuid().as_raw();
    let daemon = Offer::Daemon(Daemon::at("pr-helper", &path, user), 9);
    assert_eq!(daemon.present(), [false]);
    let (registered, _) = watch::channel(0);
    let _plugin = AbortOnDropHandle::new(tokio::spawn({
        let directory = directory.clone();
        async move { offer(&directory, vec![daemon], &registered).await }
    }));
    let socket = path.join("pr-helper.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let request = next(&mut registrations).await;
    assert_eq!(
        (request.resource_name.as_str(), request.endpoint.as_str()),
        ("devices.kubevirt.io/pr-helper", "kubevirt-pr-helper.sock")
    );
    let mut client = plugin(&directory, &request.endpoint).await;
    let container_requests = vec![ContainerAllocateRequest::default()];
    let answer = client.allocate(AllocateRequest { container_requests }).await.unwrap();
    let given = &answer.get_ref().container_responses[0];
    assert!(given.devices.is_empty());
    let mount = &given.mounts[0];
    assert_eq!(
        (mount.container_path.as_ref(), mount.read_only),
        (path.to_str().unwrap(), true)
    );
    assert_eq!(mount.container_path, mount.host_path);

    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    let list = lists.message().await.unwrap().unwrap();
    assert_eq!((list.devices.len(), list.devices[7].id.as_str()), (9, "pr-helper7"));
    assert!(list.devices.iter().all(|device| device.health == "Healthy"));
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    let list = next_list(&mut lists).await;
    assert!(list.devices.iter().all(|device| device.health == "Unhealthy"));
}

#[test]
fn kvm_is_only_offered_where_it_was_proved() {
    let verdict = |usable| Verdict {
        usable,
        why: String::new(),
    };
    let names = |usable| -> Vec<&str> { known(&verdict(usable)).iter().map(|device| device.name).collect() };
    assert_eq!(names(false), ["tun", "vhost-net", "vhost-vsock", "sev"]);
    assert_eq!(names(true), ["tun", "vhost-net", "vhost-vsock", "sev", "kvm"]);
}
