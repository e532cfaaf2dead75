//! Real sidecars, each a small gRPC server.

use ferrovirt_core::machine::CloudInitFlavor;
use ferrovirt_protocol::hooks::info::HookPoint;
use ferrovirt_protocol::hooks::info::info_server::{Info, InfoServer};
use ferrovirt_protocol::hooks::v1alpha3::{ShutdownParams, ShutdownResult};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response};

use super::*;

const DOMAIN: &str = "<domain><name>ns_vm</name><title>a</title></domain>";

/// How a sidecar behaves.
#[derive(Clone)]
enum Answer {
    /// Appends this to the title, and to the user data.
    Append(&'static str),
    /// As before, after a while.
    AppendLate(&'static str, Duration),
    /// Says this, to whatever.
    Say(Vec<u8>),
    /// In the form of old sidecars.
    SayOld(&'static str),
    Fail,
    Never,
}

#[derive(Clone)]
struct Fake {
    versions: Vec<&'static str>,
    points: Vec<(&'static str, i32)>,
    answer: Answer,
}

#[tonic::async_trait]
impl Info for Fake {
    async fn info(&self, _: Request<InfoParams>) -> Result<Response<InfoResult>, Status> {
        let points = self.points.iter();
        Ok(Response::new(InfoResult {
            name: "fake".into(),
            hook_points: points
                .map(|(name, priority)| HookPoint {
                    name: (*name).into(),
                    priority: *priority,
                })
                .collect(),
            versions: self.versions.iter().map(|v| (*v).to_owned()).collect(),
        }))
    }
}

impl Fake {
    async fn define(&self, params: OnDefineDomainParams) -> Result<Response<OnDefineDomainResult>, Status> {
        let vmi: Value = serde_json::from_slice(&params.vmi).unwrap();
        assert_eq!(vmi["metadata"]["name"], "vm");
        let domain_xml = match &self.answer {
            Answer::Append(text) | Answer::AppendLate(text, _) => {
                if let Answer::AppendLate(_, after) = self.answer {
                    sleep(after).await;
                }
                let xml = String::from_utf8(params.domain_xml).unwrap();
                xml.replace("</title>", &format!("{text}</title>")).into_bytes()
            }
            Answer::Say(bytes) => bytes.clone(),
            Answer::SayOld(text) => text.as_bytes().to_vec(),
            Answer::Fail => return Err(Status::internal("out of ideas")),
            Answer::Never => std::future::pending().await,
        };
        Ok(Response::new(OnDefineDomainResult { domain_xml }))
    }

    async fn cloud_init(&self, params: PreCloudInitIsoParams) -> Result<Response<PreCloudInitIsoResult>, Status> {
        let mut result = PreCloudInitIsoResult::default();
        match &self.answer {
            Answer::Append(text) | Answer::AppendLate(text, _) => {
                let mut data: Value = serde_json::from_slice(&params.cloud_init_data).unwrap();
                data["UserData"] = format!("{}{text}", data["UserData"].as_str().unwrap()).into();
                data["NoCloudMetaData"]["local-hostname"] = "other".into();
                result.cloud_init_data = data.to_string().into_bytes();
            }
            Answer::Say(bytes) => result.cloud_init_data = bytes.clone(),
            Answer::SayOld(text) => result.cloud_init_no_cloud_source = text.as_bytes().to_vec(),
            Answer::Fail => return Err(Status::internal("out of ideas")),
            Answer::Never => std::future::pending().await,
        }
        Ok(Response::new(result))
    }
}

#[tonic::async_trait]
impl v1alpha2::callbacks_server::Callbacks for Fake {
    async fn on_define_domain(
        &self,
        request: Request<OnDefineDomainParams>,
    ) -> Result<Response<OnDefineDomainResult>, Status> {
        self.define(request.into_inner()).await
    }

    async fn pre_cloud_init_iso(
        &self,
        request: Request<PreCloudInitIsoParams>,
    ) -> Result<Response<PreCloudInitIsoResult>, Status> {
        self.cloud_init(request.into_inner()).await
    }
}

#[tonic::async_trait]
impl v1alpha3::callbacks_server::Callbacks for Fake {
    async fn on_define_domain(
        &self,
        request: Request<OnDefineDomainParams>,
    ) -> Result<Response<OnDefineDomainResult>, Status> {
        self.define(request.into_inner()).await
    }

    async fn pre_cloud_init_iso(
        &self,
        request: Request<PreCloudInitIsoParams>,
    ) -> Result<Response<PreCloudInitIsoResult>, Status> {
        self.cloud_init(request.into_inner()).await
    }

    async fn shutdown(&self, _: Request<ShutdownParams>) -> Result<Response<ShutdownResult>, Status> {
        Ok(Response::new(ShutdownResult {}))
    }
}

fn serve(root: &Path, index: usize, fake: Fake) -> AbortOnDropHandle<()> {
    let directory = root.join(format!("hook-sidecar-{index}"));
    std::fs::create_dir(&directory).unwrap();
    // What nobody listens on is no sidecar yet.
    drop(UnixListener::bind(directory.join("a-stale.sock")).unwrap());
    let listener = UnixListener::bind(directory.join("hook.sock")).unwrap();
    // Only the callbacks it speaks of.
    let old = fake.versions.contains(&"v1alpha2");
    let new = fake.versions.contains(&"v1alpha3");
    let server = tonic::transport::Server::builder()
        .add_service(InfoServer::new(fake.clone()))
        .add_optional_service(old.then(|| v1alpha2::callbacks_server::CallbacksServer::new(fake.clone())))
        .add_optional_service(new.then(|| v1alpha3::callbacks_server::CallbacksServer::new(fake)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    AbortOnDropHandle::new(tokio::spawn(async { server.await.unwrap() }))
}

fn fake(version: &'static str, answer: Answer) -> Fake {
    Fake {
        versions: vec![version],
        points: vec![(DEFINE, 0), (CLOUD_INIT, 0)],
        answer,
    }
}

const PATIENCE: Patience = Patience {
    meet: Duration::from_secs(10),
    answer: Duration::from_secs(10),
};

async fn meet_all(root: &Path, count: usize, patience: Patience) -> Result<Hooks, Error> {
    let vmi = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
        "spec": {"domain": {"devices": {}}},
    });
    let vmi = serde_json::from_value(vmi).unwrap();
    Hooks::meet(root, count, &vmi, patience, CancellationToken::new()).await
}

fn seed() -> Seed {
    Seed {
        flavor: CloudInitFlavor::NoCloud,
        volume: "seed".into(),
        meta: json!({"instance-id": "i", "local-hostname": "vm"}),
        user: Some(b"U".to_vec()),
        network: Some(vec![0xff]),
    }
}

#[tokio::test]
async fn sidecars_change_domain_and_cloud_init_data_by_priority() {
    let root = tempfile::tempdir().unwrap();
    let with = |version, text, priority| Fake {
        points: vec![(DEFINE, priority), (CLOUD_INIT, -priority)],
        ..fake(version, Answer::Append(text))
    };
    let _servers = [
        serve(root.path(), 0, with("v1alpha2", "-low", 1)),
        serve(root.path(), 1, with("v1alpha3", "-high", 2)),
        serve(
            root.path(),
            2,
            Fake {
                points: vec![],
                ..fake("v1alpha3", Answer::Fail)
            },
        ),
    ];
    let hooks = meet_all(root.path(), 3, PATIENCE).await.unwrap();
    let xml = hooks.define(DOMAIN.to_owned(), "ns_vm").await.unwrap();
    assert_eq!(xml, DOMAIN.replace(">a<", ">a-high-low<"));
    let changed = hooks.cloud_init(seed()).await.unwrap();
    assert_eq!(changed.user.as_deref(), Some(b"U-low-high".as_slice()));
    assert_eq!(changed.meta, json!({"instance-id": "i", "local-hostname": "other"}));
    // It is no text, and nobody changed it.
    assert_eq!(changed.network, seed().network);
}

#[tokio::test]
async fn old_sidecars_change_the_volume_source() {
    let root = tempfile::tempdir().unwrap();
    let answer = Answer::SayOld(r#"{"userData": "V"}"#);
    let _server = serve(root.path(), 0, fake("v1alpha2", answer));
    let hooks = meet_all(root.path(), 1, PATIENCE).await.unwrap();
    let expected = Seed {
        user: Some(b"V".to_vec()),
        ..seed()
    };
    assert_eq!(hooks.cloud_init(seed()).await.unwrap(), expected);
}

#[tokio::test]
async fn without_sidecars_nothing_changes() {
    let hooks = meet_all(Path::new("/nonexistent"), 0, PATIENCE).await.unwrap();
    assert_eq!(hooks.define("no XML".to_owned(), "ns_vm").await.unwrap(), "no XML");
    assert_eq!(hooks.cloud_init(seed()).await.unwrap(), seed());
}

#[tokio::test]
async fn answers_that_are_no_such_domain_are_told() {
    for (answer, part) in [
        (Answer::Say(Vec::new()), "no domain"),
        (Answer::Say(b"hello".to_vec()), "no domain"),
        (Answer::Say(b"<domain><name>ns_vm</name>".to_vec()), "ends too early"),
        (Answer::Say(b"<domain><name>ns_vm</domain>".to_vec()), "no XML"),
        (
            Answer::Say(b"<domain><name>other</name></domain>".to_vec()),
            "must be ns_vm, not other",
        ),
        (
            Answer::Say(b"<domain><name>ns_vm<![CDATA[2]]></name></domain>".to_vec()),
            "plain text",
        ),
        (
            Answer::Say(b"<domain><name>ns_&#118;m</name></domain>".to_vec()),
            "plain text",
        ),
        (
            Answer::Say(b"<domain><name>ns_vm</name><name>other</name></domain>".to_vec()),
            "more than one name",
        ),
        (
            Answer::Say(b"<domain><name>ns_vm</name><name/></domain>".to_vec()),
            "more than one name",
        ),
        (
            Answer::Say(b"<network><name>ns_vm</name></network>".to_vec()),
            "no domain",
        ),
        (
            Answer::Say(b"<domain><name>ns_vm</name></domain><domain/>".to_vec()),
            "no domain",
        ),
        (
            Answer::Say(b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>ns_vm</name></domain>".to_vec()),
            "document type",
        ),
        (Answer::Say(vec![0xff, 0xfe]), "UTF-8"),
        (Answer::Say(vec![b' '; MAX_ANSWER + 1]), "limit"),
        (Answer::Fail, "out of ideas"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let _server = serve(root.path(), 0, fake("v1alpha3", answer));
        let hooks = meet_all(root.path(), 1, PATIENCE).await.unwrap();
        let error = hooks.define(DOMAIN.to_owned(), "ns_vm").await.unwrap_err().to_string();
        assert!(error.starts_with("hook-sidecar-0 "), "{error}");
        assert!(error.contains(DEFINE) && error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn answers_that_are_no_cloud_init_data_are_told() {
    for (answer, part) in [
        (Answer::Say(b"hello".to_vec()), "cannot be read"),
        (Answer::Say(b"{}".to_vec()), "DataSource must be noCloud"),
        (
            Answer::Say(br#"{"DataSource": "configDrive"}"#.to_vec()),
            "not \"configDrive\"",
        ),
        (Answer::SayOld("[1]"), "cannot be read"),
        (Answer::Fail, "out of ideas"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let _server = serve(root.path(), 0, fake("v1alpha3", answer));
        let hooks = meet_all(root.path(), 1, PATIENCE).await.unwrap();
        let error = hooks.cloud_init(seed()).await.unwrap_err().to_string();
        assert!(error.contains(CLOUD_INIT) && error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn nobody_is_waited_for_without_end() {
    let root = tempfile::tempdir().unwrap();
    let short = Patience {
        meet: Duration::from_millis(300),
        answer: Duration::from_millis(300),
    };
    let error = meet_all(root.path(), 1, short).await.unwrap_err().to_string();
    assert!(
        error.starts_with("hook-sidecar-0 did not come up within 300ms"),
        "{error}"
    );

    let patience = Patience {
        answer: short.answer,
        ..PATIENCE
    };
    let _server = serve(root.path(), 0, fake("v1alpha3", Answer::Never));
    let hooks = meet_all(root.path(), 1, patience).await.unwrap();
    let error = hooks.define(DOMAIN.to_owned(), "ns_vm").await.unwrap_err().to_string();
    assert_eq!(error, "hook-sidecar-0 did not answer OnDefineDomain within 300ms");
    let error = hooks.cloud_init(seed()).await.unwrap_err().to_string();
    assert_eq!(error, "hook-sidecar-0 did not answer PreCloudInitIso within 300ms");
}

#[tokio::test]
async fn other_versions_are_told() {
    let root = tempfile::tempdir().unwrap();
    let _server = serve(root.path(), 0, fake("v1alpha1", Answer::Never));
    let error = meet_all(root.path(), 1, PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("[\"v1alpha1\"]"), "{error}");
}

#[tokio::test]
async fn who_says_too_much_about_himself_is_not_met() {
    let root = tempfile::tempdir().unwrap();
    let points = vec![("a point of no interest", 1); MAX_INFO / 16];
    let loud = Fake {
        points,
        ..fake("v1alpha3", Answer::Never)
    };
    let _server = serve(root.path(), 0, loud);
    let patience = Patience {
        meet: Duration::from_millis(300),
        ..PATIENCE
    };
    let error = meet_all(root.path(), 1, patience).await.unwrap_err();
    assert!(matches!(error, Error::Absent { .. }), "{error}");
}

#[tokio::test]
async fn all_together_have_the_time_of_one() {
    let root = tempfile::tempdir().unwrap();
    let slow = || fake("v1alpha3", Answer::AppendLate("b", Duration::from_millis(400)));
    let _servers = [0, 1, 2].map(|index| serve(root.path(), index, slow()));
    let patience = Patience {
        answer: Duration::from_millis(1000),
        ..PATIENCE
    };
    let hooks = meet_all(root.path(), 3, patience).await.unwrap();
    let error = hooks.define(DOMAIN.to_owned(), "ns_vm").await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");
}

#[tokio::test]
async fn an_aborted_start_waits_for_nobody() {
    let root = tempfile::tempdir().unwrap();
    let vmi: VirtualMachineInstance =
        serde_json::from_value(json!({"metadata": {"name": "vm"}, "spec": {"domain": {"devices": {}}}})).unwrap();
    let long = Patience {
        meet: Duration::from_secs(3600),
        answer: Duration::from_secs(3600),
    };
    let abort = CancellationToken::new();
    let (met, ()) = tokio::join!(Hooks::meet(root.path(), 1, &vmi, long, abort.clone()), async {
        abort.cancel();
    });
    assert!(matches!(met, Err(Error::Aborted { .. })), "{met:?}");

    let _server = serve(root.path(), 0, fake("v1alpha3", Answer::Never));
    let abort = CancellationToken::new();
    let hooks = Hooks::meet(root.path(), 1, &vmi, long, abort.clone()).await.unwrap();
    let (defined, ()) = tokio::join!(hooks.define(DOMAIN.to_owned(), "ns_vm"), async { abort.cancel() });
    let error = defined.unwrap_err();
    assert!(matches!(error, Error::Aborted { .. }), "{error}");
    let error = hooks.cloud_init(seed()).await.unwrap_err();
    assert!(matches!(error, Error::Aborted { .. }), "{error}");
}
