//! Hook sidecars: containers of the VMI's author that may change the domain and the cloud-init data before the guest
//! starts. What they answer is bounded in time and size, and is checked before anything is made of it.
//!
//! Each has a directory of its own, in which it makes a socket: a directory for a sidecar, so that it can play no other.

mod seed;
#[cfg(test)]
mod tests;

use std::fs::DirEntry;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_protocol::hooks::info::info_client::InfoClient;
use ferrovirt_protocol::hooks::info::{InfoParams, InfoResult};
use ferrovirt_protocol::hooks::v1alpha3::{
    OnDefineDomainParams, OnDefineDomainResult, PreCloudInitIsoParams, PreCloudInitIsoResult,
};
use ferrovirt_protocol::hooks::{v1alpha2, v1alpha3};
use ferrovirt_protocol::paths;
use quick_xml::Reader;
use quick_xml::events::Event;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub use seed::Seed;

/// Largest answer.
const MAX_ANSWER: usize = 4 << 20;
/// Largest answer about itself.
const MAX_INFO: usize = 64 << 10;
/// What is looked at in a sidecar's directory: it is the sidecar's own, and may be full of anything.
const MAX_ENTRIES: usize = 64;
/// For one socket to say what is behind it: the next may be the right one.
const MEET_ONE: Duration = Duration::from_secs(5);
/// Between two looks for a socket: a container of another image may take its time.
const PAUSE: Duration = Duration::from_millis(100);
const DEFINE: &str = "OnDefineDomain";
const CLOUD_INIT: &str = "PreCloudInitIso";

/// How long sidecars may take, all of a VMI together.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To listen, and to say what they are.
    pub meet: Duration,
    /// To answer at one point.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            meet: Duration::from_secs(60),
            answer: Duration::from_secs(30),
        }
    }
}

/// What is wrong with a sidecar.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket, or nobody behind it.
    #[error("{sidecar} did not come up within {patience:?}: there must be a socket in {} that answers Info", directory.display())]
    Absent {
        /// Its container.
        sidecar: String,
        /// Where its socket is expected.
        directory: PathBuf,
        /// What it had.
        patience: Duration,
    },
    /// Callbacks that we do not know.
    #[error("{sidecar} has callbacks of the versions {theirs:?}; v1alpha2 and v1alpha3 are known")]
    Version {
        /// Its container.
        sidecar: String,
        /// What it has.
        theirs: Vec<String>,
    },
    /// No answer.
    #[error("{sidecar} did not answer {point} within {patience:?}")]
    Silent {
        /// Its container.
        sidecar: String,
        /// What it was asked.
        point: &'static str,
        /// What it had.
        patience: Duration,
    },
    /// Nobody wants to know any more.
    #[error("the start was ended while {sidecar} was waited for")]
    Aborted {
        /// Its container.
        sidecar: String,
    },
    /// The VMI cannot be told.
    #[error("the VirtualMachineInstance cannot be sent to hook sidecars: {0}")]
    Unsendable(#[source] serde_json::Error),
    /// An error for an answer.
    #[error("{sidecar} failed at {point}: {}", status.message())]
    Failed {
        /// Its container.
        sidecar: String,
        /// What it was asked.
        point: &'static str,
        /// What it said.
        status: Box<Status>,
    },
    /// An answer that cannot be used.
    #[error("{sidecar} answered {point} wrongly: {why}")]
    Wrong {
        /// Its container.
        sidecar: String,
        /// What it was asked.
        point: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// The callbacks of a sidecar.
#[derive(Clone, Debug)]
enum Callbacks {
    V1alpha2(v1alpha2::callbacks_client::CallbacksClient<Channel>),
    V1alpha3(v1alpha3::callbacks_client::CallbacksClient<Channel>),
}

impl Callbacks {
    async fn define(&self, params: OnDefineDomainParams) -> Result<OnDefineDomainResult, Status> {
        let answer = match self {
            Self::V1alpha2(client) => client.clone().on_define_domain(params).await,
            Self::V1alpha3(client) => client.clone().on_define_domain(params).await,
        };
        answer.map(tonic::Response::into_inner)
    }

    async fn cloud_init(&self, params: PreCloudInitIsoParams) -> Result<PreCloudInitIsoResult, Status> {
        let answer = match self {
            Self::V1alpha2(client) => client.clone().pre_cloud_init_iso(params).await,
            Self::V1alpha3(client) => client.clone().pre_cloud_init_iso(params).await,
        };
        answer.map(tonic::Response::into_inner)
    }
}

/// A sidecar that said what it is.
#[derive(Clone, Debug)]
struct Sidecar {
    /// Its container.
    container: String,
    /// Points at which it wants to be asked, and how early.
    points: Vec<(String, i32)>,
    callbacks: Callbacks,
}

/// The sidecars of a VMI.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    sidecars: Vec<Sidecar>,
    /// As JSON.
    vmi: Vec<u8>,
    patience: Patience,
    abort: CancellationToken,
}

impl Hooks {
    /// Waits for `count` sidecars, each in its directory below `directory`. Once `abort` is cancelled, neither this nor
    /// anything later waits any more.
    ///
    /// # Errors
    /// One does not come up in time, or speaks another version.
    pub async fn meet(
        directory: &Path,
        count: usize,
        vmi: &VirtualMachineInstance,
        patience: Patience,
        abort: CancellationToken,
    ) -> Result<Self, Error> {
        if count == 0 {
            return Ok(Self::default());
        }
        let vmi = serde_json::to_vec(vmi).map_err(Error::Unsendable)?;
        let each = (0..count).map(|i| {
            let container = format!("{}{i}", paths::HOOK_SIDECAR);
            meet(directory.join(&container), container, patience.meet, &abort)
        });
        let sidecars = futures::future::try_join_all(each).await?;
        Ok(Self {
            sidecars,
            vmi,
            patience,
            abort,
        })
    }

    /// Sidecars that want to be asked at `point`: the most urgent first, then by their containers.
    fn at(&self, point: &str) -> Vec<&Sidecar> {
        let mut found: Vec<(i32, &Sidecar)> = Vec::new();
        for sidecar in &self.sidecars {
            let priority = sidecar.points.iter().find(|(name, _)| name == point);
            found.extend(priority.map(|(_, priority)| (*priority, sidecar)));
        }
        found.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        found.into_iter().map(|(_, sidecar)| sidecar).collect()
    }

    /// The domain as the sidecars want it; it is still the domain `name`.
    ///
    /// # Errors
    /// A sidecar does not answer, or with something else than such a domain.
    pub async fn define(&self, mut xml: String, name: &str) -> Result<String, Error> {
        let deadline = Instant::now() + self.patience.answer;
        for sidecar in self.at(DEFINE) {
            let params = OnDefineDomainParams {
                domain_xml: xml.into_bytes(),
                vmi: self.vmi.clone(),
            };
            let asked = sidecar.callbacks.define(params);
            let answer = self.ask(sidecar, DEFINE, asked, deadline).await?;
            xml = checked(answer.domain_xml, name).map_err(|why| sidecar.wrong(DEFINE, why))?;
        }
        Ok(xml)
    }

    /// The cloud-init data as the sidecars want it.
    ///
    /// # Errors
    /// A sidecar does not answer, or with something else than such data.
    pub async fn cloud_init(&self, mut seed: Seed) -> Result<Seed, Error> {
        let deadline = Instant::now() + self.patience.answer;
        for sidecar in self.at(CLOUD_INIT) {
            let params = PreCloudInitIsoParams {
                cloud_init_no_cloud_source: seed.old_wire(),
                vmi: self.vmi.clone(),
                cloud_init_data: seed.wire(),
            };
            let asked = sidecar.callbacks.cloud_init(params);
            let answer = self.ask(sidecar, CLOUD_INIT, asked, deadline).await?;
            let changed = seed.changed(&answer.cloud_init_data, &answer.cloud_init_no_cloud_source);
            seed = changed.map_err(|why| sidecar.wrong(CLOUD_INIT, why))?;
        }
        Ok(seed)
    }

    async fn ask<T>(
        &self,
        sidecar: &Sidecar,
        point: &'static str,
        answer: impl Future<Output = Result<T, Status>>,
        deadline: Instant,
    ) -> Result<T, Error> {
        let container = || sidecar.container.clone();
        match timeout_at(deadline, self.abort.run_until_cancelled(answer)).await {
            Ok(Some(answer)) => answer.map_err(|status| Error::Failed {
                sidecar: container(),
                point,
                status: Box::new(status),
            }),
            Ok(None) => Err(Error::Aborted { sidecar: container() }),
            Err(_) => Err(Error::Silent {
                sidecar: container(),
                point,
                patience: self.patience.answer,
            }),
        }
    }
}

impl Sidecar {
    fn wrong(&self, point: &'static str, why: String) -> Error {
        Error::Wrong {
            sidecar: self.container.clone(),
            point,
            why,
        }
    }
}

async fn meet(
    directory: PathBuf,
    container: String,
    patience: Duration,
    abort: &CancellationToken,
) -> Result<Sidecar, Error> {
    let looking = async {
        loop {
            if let Some(met) = look(&directory).await {
                return met;
            }
            sleep(PAUSE).await;
        }
    };
    let (channel, info) = match timeout(patience, abort.run_until_cancelled(looking)).await {
        Ok(Some(met)) => met,
        Ok(None) => return Err(Error::Aborted { sidecar: container }),
        Err(_) => {
            return Err(Error::Absent {
                sidecar: container,
                directory,
                patience,
            });
        }
    };
    let has = |version: &str| info.versions.iter().any(|theirs| theirs == version);
    let callbacks = if has("v1alpha3") {
        let client = v1alpha3::callbacks_client::CallbacksClient::new(channel);
        Callbacks::V1alpha3(client.max_decoding_message_size(MAX_ANSWER))
    } else if has("v1alpha2") {
        let client = v1alpha2::callbacks_client::CallbacksClient::new(channel);
        Callbacks::V1alpha2(client.max_decoding_message_size(MAX_ANSWER))
    } else {
        return Err(Error::Version {
            sidecar: container,
            theirs: info.versions.into_iter().take(8).collect(),
        });
    };
    tracing::info!(container, name = info.name, "met a hook sidecar");
    Ok(Sidecar {
        container,
        points: info.hook_points.into_iter().map(|p| (p.name, p.priority)).collect(),
        callbacks,
    })
}

/// The first socket in a directory behind which a sidecar says what it is.
async fn look(directory: &Path) -> Option<(Channel, InfoResult)> {
    for socket in sockets(directory) {
        match timeout(MEET_ONE, introduced(&socket)).await {
            Ok(Ok(met)) => return Some(met),
            Ok(Err(why)) => tracing::debug!(why, "{} says nothing about itself", socket.display()),
            Err(_) => tracing::debug!("{} is silent", socket.display()),
        }
    }
    None
}

async fn introduced(socket: &Path) -> Result<(Channel, InfoResult), String> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let mut client = InfoClient::new(channel.clone()).max_decoding_message_size(MAX_INFO);
    let info = client.info(InfoParams {}).await.map_err(|error| error.to_string())?;
    Ok((channel, info.into_inner()))
}

/// Those among the first entries of a directory, which need not be there yet.
fn sockets(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().take(MAX_ENTRIES);
    let is_socket = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    let found = entries.flatten().filter(is_socket);
    let mut found: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Well-formed XML whose root is the domain `name`: by that name we find it again. Whether it is a domain that can be,
/// libvirt says.
fn checked(xml: Vec<u8>, name: &str) -> Result<String, String> {
    let xml = String::from_utf8(xml).map_err(|_| "it is no UTF-8".to_owned())?;
    let mut reader = Reader::from_str(&xml);
    let (mut path, mut names, mut roots) = (Vec::new(), Vec::<String>::new(), 0);
    let in_name = |path: &[Vec<u8>]| path == [b"domain".as_slice(), b"name"];
    loop {
        let event = reader.read_event().map_err(|error| format!("it is no XML: {error}"))?;
        match event {
            Event::Start(tag) => {
                if path.is_empty() {
                    roots += 1;
                }
                path.push(tag.name().as_ref().to_vec());
                if in_name(&path) {
                    names.push(String::new());
                }
            }
            Event::Empty(_) if path.is_empty() => roots += 1,
            Event::Empty(tag) if path == [b"domain"] && tag.name().as_ref() == b"name" => names.push(String::new()),
            Event::End(_) => {
                path.pop();
            }
            Event::Text(text) if in_name(&path) => {
                let text = text.decode().map_err(|error| format!("it is no XML: {error}"))?;
                if let Some(name) = names.last_mut() {
                    name.push_str(&text);
                }
            }
            // libvirt would read more than we see.
            Event::CData(_) | Event::GeneralRef(_) if in_name(&path) => {
                return Err("the domain's name must be plain text".to_owned());
            }
            Event::DocType(_) => return Err("it has a document type".to_owned()),
            Event::Eof => break,
            _ => {}
        }
    }
    if !path.is_empty() {
        return Err("it is no XML: it ends too early".to_owned());
    }
    match names.as_slice() {
        [found] if found.trim() == name && roots == 1 => Ok(xml),
        [found] if roots == 1 => Err(format!("the domain's name must be {name}, not {}", found.trim())),
        [_, _, ..] => Err("it has more than one name".to_owned()),
        _ => Err("it is no domain with a name".to_owned()),
    }
}
