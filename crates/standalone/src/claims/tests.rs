use std::future::Future;

use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use k8s_openapi::api::core::v1::Event as KubeEvent;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ListParams;

use super::*;

fn class(name: &str, provisioner: &str, default: bool) -> StorageClass {
    let default = default.to_string();
    serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
        "provisioner": provisioner,
    }))
    .unwrap()
}

fn claim(spec: &Value, phase: &str, protected: bool, deleted: bool) -> PersistentVolumeClaim {
    let finalizers: &[&str] = if protected { &[CLAIM_PROTECTION] } else { &[] };
    let deleted = deleted.then_some("2026-01-01T00:00:00Z");
    let mut whole = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let capacity = whole["resources"]["requests"].clone();
    serde_json::from_value(json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "u", "finalizers": finalizers, "deletionTimestamp": deleted},
        "spec": whole, "status": {"phase": phase, "capacity": capacity},
    }))
    .unwrap()
}

fn volume(name: &str, uid: &str) -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"claimRef": {"name": "c", "namespace": "n", "uid": uid}},
    }))
    .unwrap()
}

fn step(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    classes: &[StorageClass],
    in_use: bool,
) -> String {
    let classes: Vec<&StorageClass> = classes.iter().collect();
    let around = Around {
        volume,
        classes: &classes,
        in_use,
        node: "here",
        root: Path::new("/data/volumes"),
    };
    match claim_step(claim, &around) {
        ClaimStep::Refuse(reason, message) => format!("{reason}: {message}"),
        ClaimStep::Provision(volume) => format!("Provision {}", volume.name_any()),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_claim_that_has_grown_says_so() {
    let ours = volume("pvc-u", "u");
    for (wanted, told, expected) in [
        ("2Gi", Some("1Gi"), "Bound"),
        ("2Gi", Some("2Gi"), "Rest"),
        ("2Gi", None, "Bound"),
    ] {
        let spec = json!({"storageClassName": "local", "volumeName": "pvc-u",
            "resources": {"requests": {"storage": wanted}}});
        let mut claim = claim(&spec, "Bound", true, false);
        let capacity = told.map(|told| [("storage".to_owned(), Quantity(told.to_owned()))].into());
        claim.status.get_or_insert_default().capacity = capacity;
        assert_eq!(step(&claim, Some(&ours), &[], false), expected, "{wanted} {told:?}");
    }
}

#[test]
fn a_claim_goes_its_way() {
    let classes = [
        class("local", PROVISIONER, true),
        class("other", "example.org/x", false),
    ];
    let none: [StorageClass; 0] = [];
    let (ours, theirs) = (volume("pvc-u", "u"), volume("pvc-u", "x"));
    let named = json!({"storageClassName": "local", "volumeName": "pvc-u"});
    let of = |class: &str| json!({"storageClassName": class});
    let pending = |spec: &Value| claim(spec, "Pending", true, false);
    let bound = claim(&named, "Bound", true, false);
    for (claim, volume, expected) in [
        (claim(&json!({}), "Pending", false, false), None, "Protect"),
        (pending(&json!({})), None, "Assign(\"local\")"),
        (pending(&of("local")), None, "Provision pvc-u"),
        (pending(&of("local")), Some(&ours), "Bind(\"pvc-u\")"),
        (pending(&named), Some(&ours), "Bound"),
        (bound.clone(), Some(&ours), "Rest"),
        (bound, None, "Lost"),
        (claim(&named, "Lost", true, false), None, "Rest"),
        (
            pending(&of("local")),
            Some(&theirs),
            "ProvisioningFailed: volume \"pvc-u\" belongs to another claim",
        ),
        (
            pending(&named),
            Some(&theirs),
            "FailedBinding: volume \"pvc-u\" belongs to another claim",
        ),
        (pending(&named), None, "FailedBinding: volume \"pvc-u\" does not exist"),
        (
            pending(&of("")),
            None,
            "FailedBinding: no persistent volumes available for this claim and no storage class is set",
        ),
        (
            pending(&of("fast")),
            None,
            "ProvisioningFailed: storageclass.storage.k8s.io \"fast\" not found",
        ),
        (
            pending(&of("other")),
            None,
            "ProvisioningFailed: nobody on this machine makes volumes of the storage class \"other\" (provisioner example.org/x); use \"local\"",
        ),
        (
            pending(&json!({"storageClassName": "local", "volumeMode": "Block"})),
            None,
            "ProvisioningFailed: volumes of the storage class \"local\" are directories: volumeMode Block is not supported, use Filesystem",
        ),
        (
            pending(
                &json!({"storageClassName": "local", "dataSource": {"kind": "PersistentVolumeClaim", "name": "d"}}),
            ),
            None,
            "ProvisioningFailed: a new volume begins empty: dataSource and dataSourceRef are not supported",
        ),
        (
            pending(&json!({"storageClassName": "local", "selector": {"matchLabels": {"a": "b"}}})),
            None,
            "ProvisioningFailed: a volume is made for each claim: spec.selector is not supported",
        ),
    ] {
        assert_eq!(step(&claim, volume, &classes, false), expected);
    }
    let homeless = "FailedBinding: no persistent volumes available for this claim and no storage class is set";
    assert_eq!(step(&pending(&json!({})), None, &none, false), homeless);
    for (protected, in_use, expected) in [(true, true, "Rest"), (true, false, "Release"), (false, false, "Rest")] {
        let claim = claim(&named, "Bound", protected, true);
        assert_eq!(step(&claim, Some(&ours), &classes, in_use), expected);
    }
}

#[test]
fn a_volume_goes_with_its_claim() {
    let made = |policy: &str, phase: &str, deleted: bool, held: bool, by: &str| -> PersistentVolume {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let finalizers: &[&str] = if held { &[VOLUME_PROTECTION] } else { &[] };
        serde_json::from_value(json!({
            "metadata": {"name": "v", "deletionTimestamp": deleted, "finalizers": finalizers,
                "annotations": {"pv.kubernetes.io/provisioned-by": by}},
            "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase},
        }))
        .unwrap()
    };
    let (keep, erase) = (VolumeStep::Erase { data: false }, VolumeStep::Erase { data: true });
    for (volume, claimed, expected) in [
        (
            made("Delete", "Pending", false, true, PROVISIONER),
            true,
            VolumeStep::Phase("Bound"),
        ),
        (
            made("Delete", "Bound", false, true, PROVISIONER),
            true,
            VolumeStep::Rest,
        ),
        (
            made("Delete", "Bound", false, true, PROVISIONER),
            false,
            VolumeStep::Delete,
        ),
        (
            made("Retain", "Bound", false, true, PROVISIONER),
            false,
            VolumeStep::Phase("Released"),
        ),
        (
            made("Retain", "Released", false, true, PROVISIONER),
            false,
            VolumeStep::Rest,
        ),
        (made("Delete", "Bound", true, true, PROVISIONER), true, VolumeStep::Rest),
        (made("Delete", "Bound", true, true, PROVISIONER), false, erase),
        (made("Retain", "Released", true, true, PROVISIONER), false, keep),
        (
            made("Delete", "Bound", true, false, PROVISIONER),
            false,
            VolumeStep::Rest,
        ),
        (
            made("Delete", "Bound", false, true, "somebody"),
            false,
            VolumeStep::Rest,
        ),
    ] {
        assert_eq!(volume_step(&volume, claimed), expected, "{volume:?}");
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct World {
    client: Client,
    root: PathBuf,
    stop: CancellationToken,
    _server: ApiServer,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("system:serviceaccount:kubevirt:test"));
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volumes");
        ensure_class(&client).await.unwrap();
        let world = Self {
            stop: serve(&client, &root),
            client,
            root,
            _server: server,
            _directory: directory,
        };
        ensure_class(&world.client).await.unwrap();
        world
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, spec: Value) {
        let mut claim = json!({"metadata": {"name": name}, "spec": spec});
        claim["spec"]["accessModes"] = json!(["ReadWriteOnce"]);
        claim["spec"]["resources"] = json!({"requests": {"storage": "1Gi"}});
        let claim = serde_json::from_value(claim).unwrap();
        self.claims().create(&PostParams::default(), &claim).await.unwrap();
    }

    async fn bound(&self, name: &str) -> PersistentVolumeClaim {
        let phase = |claim: &PersistentVolumeClaim| claim.status.clone().and_then(|status| status.phase);
        until("binding", || async {
            let claim = self.claims().get(name).await.unwrap();
            (phase(&claim).as_deref() == Some("Bound")).then_some(claim)
        })
        .await
    }
}

fn serve(client: &Client, root: &Path) -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(run(client.clone(), "here".to_owned(), root.to_owned(), stop.clone()));
    stop
}

/// Needs root: directories get another group.
#[tokio::test]
async fn claims_are_bound_kept_while_in_use_and_removed_with_their_data() {
    let world = World::new().await;
    world.create("data", json!({})).await;
    let claim = world.bound("data").await;
    let spec = claim.spec.clone().unwrap();
    assert_eq!(spec.storage_class_name.as_deref(), Some("local"));
    assert_eq!(
        claim.status.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0,
        "1Gi"
    );
    let name = spec.volume_name.unwrap();
    let directory = world.root.join(&name);
    fs::write(directory.join("disk.img"), "data").unwrap();
    let volumes = Api::<PersistentVolume>::all(world.client.clone());
    let path = volumes.get(&name).await.unwrap().spec.unwrap().local.unwrap().path;
    assert_eq!(Path::new(&path), directory);

    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}});
    let pods = Api::<Pod>::namespaced(world.client.clone(), "default");
    let pod: Pod = serde_json::from_value(pod).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    // Another provisioner goes on where this one ends.
    world.stop.cancel();
    world.claims().delete("data", &DeleteParams::default()).await.unwrap();
    let stop = serve(&world.client, &world.root);
    // A claim that comes later is served, so the first one was looked at, and kept.
    world.create("later", json!({"storageClassName": "local"})).await;
    world.bound("later").await;
    assert_eq!(fs::read(directory.join("disk.img")).unwrap(), b"data");
    assert!(
        world
            .claims()
            .get("data")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );

    let now = DeleteParams::default().grace_period(0);
    pods.delete("p", &now).await.unwrap();
    until("removal", || async {
        let gone = world.claims().get_opt("data").await.unwrap().is_none();
        let volume_gone = volumes.get_opt(&name).await.unwrap().is_none();
        (gone && volume_gone && !directory.exists()).then_some(())
    })
    .await;
    assert_eq!(fs::read_dir(&world.root).unwrap().count(), 1);
    stop.cancel();
}

#[tokio::test]
async fn what_stays_pending_says_why_once() {
    let world = World::new().await;
    world.create("block", json!({"volumeMode": "Block"})).await;
    world.create("fine", json!({})).await;
    world.bound("fine").await;
    let events = Api::<KubeEvent>::namespaced(world.client.clone(), "default");
    let told = until("an event", || async {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let about: Vec<_> = all
            .into_iter()
            .filter(|event| event.involved_object.name.as_deref() == Some("block"))
            .collect();
        (!about.is_empty()).then_some(about)
    })
    .await;
    assert_eq!((told.len(), told[0].count), (1, Some(1)));
    assert_eq!(told[0].reason.as_deref(), Some("ProvisioningFailed"));
    let claim = world.claims().get("block").await.unwrap();
    assert_eq!(claim.status.unwrap().phase.as_deref(), Some("Pending"));
    world.stop.cancel();
}
