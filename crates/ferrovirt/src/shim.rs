//! `sidecar-shim`: a hook sidecar that is made of programs.
//!
//! Its container has an executable `onDefineDomain`, `preCloudInitIso` or both in `$PATH`, from its image or from a
//! ConfigMap. The shim tells the launcher which of them there are, and runs them when the launcher asks:
//!
//! ```text
//! onDefineDomain  --vmi JSON --domain XML        prints the domain as it shall be
//! preCloudInitIso --vmi JSON --cloud-init JSON   prints the cloud-init data as it shall be
//! ```
//!
//! What they write to standard error is in the container's log. A program that fails makes the launcher's question fail,
//! and with it the start of the guest. A sidecar without programs changes nothing: it may be there for its claim.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::Parser;
use ferrovirt_protocol::hooks::info::info_server::{Info, InfoServer};
use ferrovirt_protocol::hooks::info::{HookPoint, InfoParams, InfoResult};
use ferrovirt_protocol::hooks::v1alpha3::{
    OnDefineDomainParams, OnDefineDomainResult, PreCloudInitIsoParams, PreCloudInitIsoResult, ShutdownParams,
    ShutdownResult,
};
use ferrovirt_protocol::hooks::{v1alpha2, v1alpha3};
use ferrovirt_protocol::paths;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const DEFINE: &str = "onDefineDomain";
const CLOUD_INIT: &str = "preCloudInitIso";
const SOCKET: &str = "shim.sock";
/// Longest output of a program: what the launcher listens to.
const MAX_OUTPUT: u64 = 4 << 20;
/// Longest argument of a program, execve(2): 32 pages, with the zero at its end.
const MAX_ARGUMENT: usize = (128 << 10) - 1;

/// Serve the hook points of a hook sidecar with the programs onDefineDomain and preCloudInitIso.
#[derive(Debug, Parser)]
#[command(name = "sidecar-shim", after_help = "Example: sidecar-shim --version v1alpha2")]
struct Args {
    /// Version of the callbacks; v1alpha1 has no preCloudInitIso
    #[arg(long, default_value = "v1alpha3", value_parser = ["v1alpha1", "v1alpha2", "v1alpha3"])]
    version: String,
}

/// Serves until SIGTERM.
pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime
        .map_err(|error| format!("cannot begin: {error}"))
        .and_then(|runtime| runtime.block_on(serve(&args.version, &path, Path::new(paths::HOOKS_DIR))));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("sidecar-shim: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(version: &str, path: &OsStr, directory: &Path) -> Result<(), String> {
    let shim = Shim::find(version, path);
    let mut end = signal(SignalKind::terminate()).map_err(|error| format!("cannot watch signals: {error}"))?;
    let socket = directory.join(SOCKET);
    // Of this container before it was started anew.
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    eprintln!("sidecar-shim: {} with {}", socket.display(), shim.said(path));
    let served = Server::builder()
        .add_service(InfoServer::new(shim.clone()))
        .add_service(v1alpha2::callbacks_server::CallbacksServer::new(shim.clone()))
        .add_service(v1alpha3::callbacks_server::CallbacksServer::new(shim))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            end.recv().await;
        });
    served.await.map_err(|error| format!("cannot serve: {error}"))
}

/// The programs, and what the launcher is told of them.
#[derive(Clone, Debug)]
struct Shim {
    version: &'static str,
    define: Option<PathBuf>,
    cloud_init: Option<PathBuf>,
}

impl Shim {
    fn find(version: &str, path: &OsStr) -> Self {
        let find = |name: &str| {
            let mut candidates = std::env::split_paths(path).map(|directory| directory.join(name));
            candidates.find(|candidate| is_program(candidate))
        };
        Self {
            // What v1alpha1 has, v1alpha2 has, too.
            version: if version == "v1alpha3" { "v1alpha3" } else { "v1alpha2" },
            define: find(DEFINE),
            cloud_init: find(CLOUD_INIT).filter(|_| version != "v1alpha1"),
        }
    }

    fn said(&self, path: &OsStr) -> String {
        let programs = self.define.iter().chain(&self.cloud_init);
        let programs: Vec<String> = programs.map(|program| program.display().to_string()).collect();
        if programs.is_empty() {
            let path = path.display();
            return format!("nothing: no {DEFINE} or {CLOUD_INIT} in {path} can be run, so the guest is not changed");
        }
        programs.join(" and ")
    }

    async fn define(&self, asked: OnDefineDomainParams) -> Result<Response<OnDefineDomainResult>, Status> {
        let arguments = [("--vmi", asked.vmi), ("--domain", asked.domain_xml)];
        let domain_xml = answer(self.define.as_deref(), DEFINE, arguments).await?;
        Ok(Response::new(OnDefineDomainResult { domain_xml }))
    }

    async fn cloud_init(&self, asked: PreCloudInitIsoParams) -> Result<Response<PreCloudInitIsoResult>, Status> {
        let arguments = [("--vmi", asked.vmi), ("--cloud-init", asked.cloud_init_data)];
        let cloud_init_data = answer(self.cloud_init.as_deref(), CLOUD_INIT, arguments).await?;
        Ok(Response::new(PreCloudInitIsoResult {
            cloud_init_data,
            cloud_init_no_cloud_source: Vec::new(),
        }))
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Why a program does not start, and what to do about it.
fn not_started(error: &io::Error) -> String {
    match error.kind() {
        // It was there a moment ago.
        io::ErrorKind::NotFound => {
            format!(
                "cannot be run: what its first line names is not in this image, or the line ends in CR LF ({error})"
            )
        }
        _ => format!("cannot be run: {error}"),
    }
}

/// What a program prints. It ends with the question: whoever does not wait any more wants no answer.
async fn answer(program: Option<&Path>, name: &str, arguments: [(&str, Vec<u8>); 2]) -> Result<Vec<u8>, Status> {
    let program = program.ok_or_else(|| Status::unimplemented(format!("there is no {name}")))?;
    let failed = |why: String| {
        eprintln!("sidecar-shim: {}: {why}", program.display());
        Status::internal(format!("{}: {why}", program.display()))
    };
    if let Some((flag, value)) = arguments.iter().find(|(_, value)| value.len() > MAX_ARGUMENT) {
        return Err(failed(format!(
            "{flag} would be {} bytes, and Linux gives a program no argument of more than {MAX_ARGUMENT}: use a hook \
             sidecar that serves the hooks itself",
            value.len()
        )));
    }
    let words = arguments
        .into_iter()
        .flat_map(|(flag, value)| [OsString::from(flag), OsStr::from_bytes(&value).to_owned()]);
    let child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| failed(not_started(&error)))?;
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        let read = output.take(MAX_OUTPUT + 1).read_to_end(&mut said).await;
        read.map_err(|error| failed(format!("its output cannot be read: {error}")))?;
    }
    if said.len() as u64 > MAX_OUTPUT {
        return Err(failed(format!("it printed more than {MAX_OUTPUT} bytes")));
    }
    let status = child.wait().await;
    let status = status.map_err(|error| failed(format!("it cannot be waited for: {error}")))?;
    if status.success() {
        Ok(said)
    } else {
        Err(failed(format!(
            "it ended with {status}; the container's log has what it said"
        )))
    }
}

#[tonic::async_trait]
impl Info for Shim {
    async fn info(&self, _: Request<InfoParams>) -> Result<Response<InfoResult>, Status> {
        let point = |name: &str| HookPoint {
            name: name.to_owned(),
            priority: 0,
        };
        let points = [
            self.define.as_ref().map(|_| point("OnDefineDomain")),
            self.cloud_init.as_ref().map(|_| point("PreCloudInitIso")),
        ];
        Ok(Response::new(InfoResult {
            name: "shim".to_owned(),
            hook_points: points.into_iter().flatten().collect(),
            versions: vec![self.version.to_owned()],
        }))
    }
}

#[tonic::async_trait]
impl v1alpha2::callbacks_server::Callbacks for Shim {
    async fn on_define_domain(
        &self,
        asked: Request<OnDefineDomainParams>,
    ) -> Result<Response<OnDefineDomainResult>, Status> {
        self.define(asked.into_inner()).await
    }

    async fn pre_cloud_init_iso(
        &self,
        asked: Request<PreCloudInitIsoParams>,
    ) -> Result<Response<PreCloudInitIsoResult>, Status> {
        self.cloud_init(asked.into_inner()).await
    }
}

#[tonic::async_trait]
impl v1alpha3::callbacks_server::Callbacks for Shim {
    async fn on_define_domain(
        &self,
        asked: Request<OnDefineDomainParams>,
    ) -> Result<Response<OnDefineDomainResult>, Status> {
        self.define(asked.into_inner()).await
    }

    async fn pre_cloud_init_iso(
        &self,
        asked: Request<PreCloudInitIsoParams>,
    ) -> Result<Response<PreCloudInitIsoResult>, Status> {
        self.cloud_init(asked.into_inner()).await
    }

    /// The container ends by SIGTERM.
    async fn shutdown(&self, _: Request<ShutdownParams>) -> Result<Response<ShutdownResult>, Status> {
        Ok(Response::new(ShutdownResult {}))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn programs(all: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, script) in all {
            let (source, path) = (directory.path().join("source"), directory.path().join(name));
            std::fs::write(&source, format!("{script}\n")).unwrap();
            // Another process writes what is run: a file that this one had open would be busy while any test starts one.
            let installed = std::process::Command::new("install").arg(&source).arg(&path).status();
            assert!(installed.unwrap().success());
        }
        directory
    }

    fn shim(version: &str, directory: &tempfile::TempDir) -> Shim {
        Shim::find(version, directory.path().as_os_str())
    }

    #[tokio::test]
    async fn what_there_is_is_told() {
        let both = programs(&[(DEFINE, ""), (CLOUD_INIT, "")]);
        let define = programs(&[(DEFINE, ""), (CLOUD_INIT, "")]);
        std::fs::set_permissions(define.path().join(CLOUD_INIT), std::fs::Permissions::from_mode(0o644)).unwrap();
        let none = programs(&[]);
        for (version, directory, versions, expected) in [
            (
                "v1alpha3",
                &both,
                "v1alpha3",
                &["OnDefineDomain", "PreCloudInitIso"][..],
            ),
            ("v1alpha2", &both, "v1alpha2", &["OnDefineDomain", "PreCloudInitIso"]),
            ("v1alpha1", &both, "v1alpha2", &["OnDefineDomain"]),
            ("v1alpha3", &define, "v1alpha3", &["OnDefineDomain"]),
            ("v1alpha3", &none, "v1alpha3", &[]),
        ] {
            let shim = shim(version, directory);
            let told = shim.info(Request::new(InfoParams {})).await.unwrap().into_inner();
            let points: Vec<String> = told.hook_points.into_iter().map(|point| point.name).collect();
            assert_eq!(told.versions, [versions], "{version}");
            assert_eq!(points, expected, "{version}");
            let said = shim.said(directory.path().as_os_str());
            assert_eq!(said.contains("is not changed"), expected.is_empty(), "{said}");
        }
    }

    #[tokio::test]
    async fn programs_get_what_kubevirts_get() {
        let script = "#!/bin/sh\necho \"$# $1 $2 $3 $4\"";
        let directory = programs(&[(DEFINE, script), (CLOUD_INIT, script)]);
        let shim = shim("v1alpha3", &directory);
        let asked = OnDefineDomainParams {
            domain_xml: b"<domain/>".to_vec(),
            vmi: b"{}".to_vec(),
        };
        let said = shim.define(asked).await.unwrap().into_inner().domain_xml;
        assert_eq!(String::from_utf8_lossy(&said), "4 --vmi {} --domain <domain/>\n");
        let asked = PreCloudInitIsoParams {
            vmi: b"{}".to_vec(),
            cloud_init_data: b"{\"a\": 1}".to_vec(),
            ..PreCloudInitIsoParams::default()
        };
        let said = shim.cloud_init(asked).await.unwrap().into_inner().cloud_init_data;
        assert_eq!(String::from_utf8_lossy(&said), "4 --vmi {} --cloud-init {\"a\": 1}\n");
    }

    #[tokio::test]
    async fn failures_are_told() {
        let asked = |bytes: usize| OnDefineDomainParams {
            domain_xml: vec![b'x'; bytes],
            vmi: Vec::new(),
        };
        for (script, bytes, expected) in [
            ("#!/bin/sh\necho half; exit 3", 0, "ended with exit status: 3"),
            ("#!/bin/sh\nhead -c 4194305 /dev/zero", 0, "more than 4194304 bytes"),
            ("#!/no/such/program", 0, "what its first line names"),
            ("#!/bin/sh\ntrue", 131_072, "--domain would be 131072 bytes"),
        ] {
            let directory = programs(&[(DEFINE, script)]);
            let status = shim("v1alpha3", &directory).define(asked(bytes)).await.unwrap_err();
            assert!(status.message().contains(expected), "{status:?}");
        }
        let directory = programs(&[(DEFINE, "#!/bin/sh\ntrue")]);
        let shim = shim("v1alpha3", &directory);
        assert!(shim.define(asked(131_071)).await.is_ok(), "the longest argument");
        let status = shim.cloud_init(PreCloudInitIsoParams::default()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
    }
}
