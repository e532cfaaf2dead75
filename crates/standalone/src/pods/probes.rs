//! Readiness and liveness probes: http and tcp, asked from the host at the pod's address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Readiness,
    Liveness,
}

/// A probe's verdict has changed, or a liveness probe has failed (again).
#[derive(Debug)]
pub(super) struct ProbeResult {
    pub container: String,
    pub purpose: Purpose,
    pub outcome: Result<(), String>,
}

/// The probes of one running container; dropping it ends them.
pub(super) struct Running {
    _tasks: JoinSet<()>,
    told: bool,
}

impl Running {
    /// Whether the container was told to end before; from now on it was.
    pub(super) fn told_before(&mut self) -> bool {
        std::mem::replace(&mut self.told, true)
    }
}

/// Starts the probes of a container that has just been started, if it has any.
pub(super) fn start(container: &Container, ip: IpAddr, results: mpsc::Sender<ProbeResult>) -> Option<Running> {
    let mut tasks = JoinSet::new();
    let probes = [
        (Purpose::Readiness, &container.readiness_probe),
        (Purpose::Liveness, &container.liveness_probe),
    ];
    for (purpose, probe) in probes {
        if let Some(probe) = probe.clone() {
            let ports = container.clone();
            tasks.spawn(run(ports, purpose, probe, ip, results.clone()));
        }
    }
    (!tasks.is_empty()).then_some(Running {
        _tasks: tasks,
        told: false,
    })
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
            .unwrap_or(default),
    )
}

async fn run(container: Container, purpose: Purpose, probe: Probe, ip: IpAddr, results: mpsc::Sender<ProbeResult>) {
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut verdict = Verdict::new(
        probe
            .success_threshold
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1)
            .max(1),
        probe
            .failure_threshold
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(3)
            .max(1),
    );
    loop {
        let timeout = seconds(probe.timeout_seconds, 1);
        let asked = tokio::time::timeout(timeout, ask(&container, &probe, ip)).await;
        let outcome = asked.unwrap_or_else(|_| Err(format!("no answer within {}s", timeout.as_secs())));
        let says = verdict.take(outcome.is_ok());
        let wanted = match purpose {
            Purpose::Readiness => says.changed,
            Purpose::Liveness => says.failing,
        };
        if wanted
            && results
                .send(ProbeResult {
                    container: container.name.clone(),
                    purpose,
                    outcome,
                })
                .await
                .is_err()
        {
            return;
        }
        tokio::time::sleep(seconds(probe.period_seconds, 10)).await;
    }
}

/// Counts outcomes in a row.
#[derive(Debug)]
struct Verdict {
    success_threshold: u32,
    failure_threshold: u32,
    in_row: u32,
    last: Option<bool>,
    holds: Option<bool>,
}

#[derive(Debug, PartialEq, Eq)]
struct Says {
    /// The verdict is another one than before.
    changed: bool,
    /// The failure threshold is reached (again).
    failing: bool,
}

impl Verdict {
    fn new(success_threshold: u32, failure_threshold: u32) -> Self {
        Self {
            success_threshold,
            failure_threshold,
            in_row: 0,
            last: None,
            holds: None,
        }
    }

    fn take(&mut self, success: bool) -> Says {
        self.in_row = if self.last == Some(success) { self.in_row + 1 } else { 1 };
        self.last = Some(success);
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.in_row < threshold {
            return Says {
                changed: false,
                failing: false,
            };
        }
        let failing = !success && self.in_row.is_multiple_of(threshold);
        let changed = self.holds.replace(success) != Some(success);
        Says { changed, failing }
    }
}

async fn ask(container: &Container, probe: &Probe, ip: IpAddr) -> Result<(), String> {
    if let Some(tcp) = &probe.tcp_socket {
        let address = SocketAddr::new(host(tcp.host.as_deref(), ip)?, port(container, &tcp.port)?);
        return TcpStream::connect(address)
            .await
            .map(drop)
            .map_err(|error| format!("dial tcp {address}: {error}"));
    }
    match &probe.http_get {
        Some(get) => ask_http(container, get, ip).await,
        None => Err("only httpGet and tcpSocket probes are supported on one machine".into()),
    }
}

async fn ask_http(container: &Container, get: &HTTPGetAction, ip: IpAddr) -> Result<(), String> {
    if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
        return Err("only probes over plain HTTP are supported on one machine".into());
    }
    let address = SocketAddr::new(host(get.host.as_deref(), ip)?, port(container, &get.port)?);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let mut request = hyper::Request::get(path)
        .header("User-Agent", "kube-probe/ferrovirt")
        .header("Connection", "close");
    let headers = get.http_headers.iter().flatten();
    let mut host_header = address.to_string();
    for header in headers {
        if header.name.eq_ignore_ascii_case("host") {
            host_header.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request.header("Host", host_header).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| format!("Get \"http://{address}{path}\": {error}"))?;
    let failed = |error: &dyn std::fmt::Display| format!("Get \"http://{address}{path}\": {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
    let exchange = async { tokio::join!(sender.send_request(request), connection).0 };
    let response = exchange.await.map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

fn host(named: Option<&str>, ip: IpAddr) -> Result<IpAddr, String> {
    named.filter(|host| !host.is_empty()).map_or(Ok(ip), |host| {
        host.parse().map_err(|_| format!("host \"{host}\" is no IP address"))
    })
}

fn port(container: &Container, wanted: &IntOrString) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.container_port);
            named.or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("port {wanted:?} is unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn thresholds_count_outcomes_in_a_row() {
        let mut verdict = Verdict::new(2, 3);
        let outcomes = [true, true, false, false, true, false, false, false, false, false, false];
        let says: Vec<(bool, bool)> = outcomes
            .map(|outcome| verdict.take(outcome))
            .iter()
            .map(|says| (says.changed, says.failing))
            .collect();
        let mut expected = [(false, false); 11];
        expected[1] = (true, false);
        expected[7] = (true, true);
        expected[10] = (false, true);
        assert_eq!(says, expected);
    }

    #[tokio::test]
    async fn http_answers_are_judged_by_their_code() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for code in ["204 No Content", "503 Busy"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                stream
                    .write_all(format!("HTTP/1.1 {code}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
            }
        });
        let probe: Probe =
            serde_json::from_value(serde_json::json!({"httpGet": {"path": "/healthz", "port": port}})).unwrap();
        let ip = "127.0.0.1".parse().unwrap();
        let container = Container::default();
        ask(&container, &probe, ip).await.unwrap();
        assert!(ask(&container, &probe, ip).await.unwrap_err().contains("503"));
        server.await.unwrap();
        assert!(ask(&container, &probe, ip).await.is_err());
    }
}
