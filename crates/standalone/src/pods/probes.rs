//! Readiness and liveness probes: http and tcp, asked from the host at the pod's address, and commands in the container.

mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::exec::{self, Ran};
use super::process::{Exit, ProcessId};
use super::spec::ExecSpec;

/// How much of a command's output is looked at.
const MAX_OUTPUT: usize = 10 << 10;

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

/// What is probed: one instance of a container.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub container: Container,
    /// The pod's.
    pub ip: IpAddr,
    /// What enters containers.
    pub executable: PathBuf,
    /// The container's first process.
    pub process: ProcessId,
    /// What its commands are like, but for the command.
    pub exec: ExecSpec,
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
pub(super) fn start(target: &Target, results: &mpsc::Sender<ProbeResult>) -> Option<Running> {
    let mut tasks = JoinSet::new();
    let probes = [
        (Purpose::Readiness, &target.container.readiness_probe),
        (Purpose::Liveness, &target.container.liveness_probe),
    ];
    for (purpose, probe) in probes {
        if let Some(probe) = probe.clone() {
            tasks.spawn(run(target.clone(), purpose, probe, results.clone()));
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

async fn run(target: Target, purpose: Purpose, probe: Probe, results: mpsc::Sender<ProbeResult>) {
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
        let outcome = ask(&target, &probe).await;
        let says = verdict.take(outcome.is_ok());
        let wanted = match purpose {
            Purpose::Readiness => says.changed,
            Purpose::Liveness => says.failing,
        };
        if wanted
            && results
                .send(ProbeResult {
                    container: target.container.name.clone(),
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

async fn ask(target: &Target, probe: &Probe) -> Result<(), String> {
    let timeout = seconds(probe.timeout_seconds, 1);
    if let Some(exec) = &probe.exec {
        return ask_command(target, exec, timeout).await;
    }
    let (container, ip) = (&target.container, target.ip);
    let answer = async {
        match (&probe.tcp_socket, &probe.http_get) {
            (Some(tcp), _) => {
                let address = SocketAddr::new(host(tcp.host.as_deref(), ip)?, port(container, &tcp.port)?);
                let connected = TcpStream::connect(address).await;
                connected
                    .map(drop)
                    .map_err(|error| format!("dial tcp {address}: {error}"))
            }
            (None, Some(get)) => ask_http(container, get, ip).await,
            (None, None) => Err("only exec, httpGet and tcpSocket probes are supported on one machine".into()),
        }
    };
    let answer = tokio::time::timeout(timeout, answer).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {}s", timeout.as_secs())))
}

async fn ask_command(target: &Target, exec: &ExecAction, timeout: Duration) -> Result<(), String> {
    let command = exec.command.clone().unwrap_or_default();
    let said = command.join(" ");
    let spec = ExecSpec {
        command,
        ..target.exec.clone()
    };
    let ran = exec::run(target.executable.clone(), target.process, spec, timeout, MAX_OUTPUT).await;
    match ran {
        Ok((Ran::Ended(Exit::Code(0)), _)) => Ok(()),
        Ok((Ran::Ended(_), output)) => Err(String::from_utf8_lossy(&output).trim_end().to_owned()),
        Ok((Ran::TimedOut, _)) => Err(format!(
            "command timed out: \"{said}\" timed out after {}s",
            timeout.as_secs()
        )),
        Err(error) => Err(format!("cannot run \"{said}\" in the container: {error}")),
    }
}

async fn ask_http(container: &Container, get: &HTTPGetAction, ip: IpAddr) -> Result<(), String> {
    let secure = match get.scheme.as_deref().filter(|scheme| !scheme.is_empty()) {
        None | Some("HTTP") => false,
        Some("HTTPS") => true,
        Some(other) => return Err(format!("scheme {other} is neither HTTP nor HTTPS")),
    };
    let address = SocketAddr::new(host(get.host.as_deref(), ip)?, port(container, &get.port)?);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let url = format!("{}://{address}{path}", if secure { "https" } else { "http" });
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let request = http_request(get, address, path).map_err(|error| failed(&error))?;
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let status = if secure {
        let stream = tls::connect(stream, address.ip()).await;
        exchange(stream.map_err(|error| failed(&error))?, request).await
    } else {
        exchange(stream, request).await
    };
    let status = status.map_err(|error| failed(&error))?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

fn http_request(get: &HTTPGetAction, address: SocketAddr, path: &str) -> http::Result<hyper::Request<Empty<Bytes>>> {
    let mut request = hyper::Request::get(path)
        .header("User-Agent", "kube-probe/ferrovirt")
        .header("Connection", "close");
    let mut host_header = address.to_string();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host_header.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    request.header("Host", host_header).body(Empty::new())
}

/// The status code of the answer.
async fn exchange<S>(stream: S, request: hyper::Request<Empty<Bytes>>) -> hyper::Result<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async { tokio::join!(sender.send_request(request), connection).0 };
    Ok(exchange.await?.status().as_u16())
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
    use std::collections::BTreeMap;

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::spec::User;
    use super::*;

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

    fn target() -> Target {
        Target {
            container: Container::default(),
            ip: "127.0.0.1".parse().unwrap(),
            executable: "/nowhere".into(),
            process: ProcessId {
                pid: i32::MAX,
                start_time: 0,
            },
            exec: ExecSpec {
                user: User {
                    uid: 107,
                    gid: 107,
                    groups: Vec::new(),
                    capabilities: Vec::new(),
                },
                command: Vec::new(),
                env: BTreeMap::new(),
                tty: false,
            },
        }
    }

    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, code: &str) {
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        assert!(request[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
        let text = format!("HTTP/1.1 {code}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    }

    #[tokio::test]
    async fn http_answers_are_judged_by_their_code() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for code in ["204 No Content", "503 Busy"] {
                answer(listener.accept().await.unwrap().0, code).await;
            }
        });
        let probe = json!({"httpGet": {"path": "/healthz", "port": port}, "timeoutSeconds": 20});
        let probe: Probe = serde_json::from_value(probe).unwrap();
        ask(&target(), &probe).await.unwrap();
        assert!(ask(&target(), &probe).await.unwrap_err().contains("503"));
        server.await.unwrap();
        assert!(ask(&target(), &probe).await.is_err());
    }

    #[tokio::test]
    async fn over_https_any_certificate_will_do() {
        let key = rcgen::generate_simple_self_signed(["another.example".to_owned()]).unwrap();
        let secret = key.signing_key.serialize_der();
        let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret.try_into().unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for code in ["200 OK", "404 Not Found"] {
                let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                answer(stream, code).await;
            }
            // Speaks no TLS.
            drop(listener.accept().await.unwrap());
        });
        let probe = json!({"httpGet": {"path": "/healthz", "port": port, "scheme": "HTTPS"}, "timeoutSeconds": 20});
        let probe: Probe = serde_json::from_value(probe).unwrap();
        ask(&target(), &probe).await.unwrap();
        assert!(ask(&target(), &probe).await.unwrap_err().contains("404"));
        let error = ask(&target(), &probe).await.unwrap_err();
        assert!(
            error.starts_with(&format!("Get \"https://127.0.0.1:{port}/healthz\": ")),
            "{error}"
        );
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_command_that_cannot_be_run_says_so() {
        let probe: Probe = serde_json::from_value(json!({"exec": {"command": ["cat", "/x"]}})).unwrap();
        let error = ask(&target(), &probe).await.unwrap_err();
        assert!(error.starts_with("cannot run \"cat /x\" in the container: "), "{error}");
    }
}
