//! Carries out the certificates' plan: what is signed, and in which Secrets it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::Trouble;
use super::certificates::{self, CA_SECRET, Inventory, Known, Leaf, Pair, Plan, Rotation};
use super::mirror::{Mirror, revision};
use super::resources::{CA_BUNDLE_KEY, CA_CONFIG_MAP, Id, Kind, MANAGED_BY, OPERATOR};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// A plan is carried out in two steps; more would be a mistake of ours, which must not become a loop.
const MOST_STEPS: usize = 4;
const PAUSE: SignedDuration = SignedDuration::from_mins(1);

/// The authority and what it has signed.
pub struct Authority {
    client: Client,
    mirror: Arc<Mirror>,
    namespace: String,
    known: Option<Store>,
}

/// What is in the Secrets.
#[derive(Default)]
struct Store {
    pair: Option<Pair>,
    inventory: Inventory,
    /// The authorities' certificates, with their texts.
    bundle: Vec<(Known, String)>,
    /// Each Secret as it was when it was read or written.
    revisions: BTreeMap<&'static str, String>,
}

impl Store {
    fn bundle(&self) -> String {
        self.bundle.iter().map(|(_, text)| text.as_str()).collect()
    }

    fn trust(&mut self, pem: &str, now: Timestamp) {
        for (known, text) in certificates::bundle(pem) {
            if now < known.end && self.bundle.iter().all(|(_, other)| *other != text) {
                self.bundle.push((known, text));
            }
        }
        self.bundle.retain(|(known, _)| now < known.end);
        self.inventory.trusted = self.bundle.iter().map(|(known, _)| known.clone()).collect();
    }
}

/// Names of all Secrets of certificates.
pub fn secrets() -> impl Iterator<Item = &'static str> {
    Leaf::ALL.iter().map(|leaf| leaf.secret).chain([CA_SECRET])
}

impl Authority {
    pub fn new(client: Client, mirror: Arc<Mirror>, namespace: &str) -> Self {
        Self {
            client,
            mirror,
            namespace: namespace.to_owned(),
            known: None,
        }
    }

    /// Makes, signs and stores what is due. Answers with the bundle of authorities, and when to ask again.
    ///
    /// # Errors
    /// The API server refused, or the cryptography fails.
    pub async fn ensure(&mut self, rotation: &Rotation, now: Timestamp) -> Result<(String, Timestamp), Trouble> {
        let mut store = match self.known.take().filter(|store| self.is_current(store)) {
            Some(store) => store,
            None => self.load(now).await?,
        };
        for _ in 0..MOST_STEPS {
            match certificates::plan(&store.inventory, rotation, now) {
                Plan::Rest(until) => {
                    let bundle = store.bundle();
                    self.known = Some(store);
                    return Ok((bundle, until));
                }
                Plan::NewAuthority => {
                    let pair = certificates::make_authority(rotation, now).map_err(Trouble::Certificate)?;
                    // The old one stays in the bundle, and the bundle is where it is read from after a restart.
                    store.trust(&pair.certificate, now);
                    self.write(CA_SECRET, &pair, &mut store).await?;
                    store.inventory.ca = Known::parse(pair.certificate.as_bytes());
                    store.pair = Some(pair);
                    tracing::info!("made a new certificate authority");
                }
                Plan::Sign(leaves) => {
                    let Some(authority) = store.pair.clone() else { break };
                    for leaf in leaves {
                        let pair = certificates::sign(&authority, leaf, &self.namespace, rotation, now)
                            .map_err(Trouble::Certificate)?;
                        self.write(leaf.secret, &pair, &mut store).await?;
                        if let Some(known) = Known::parse(pair.certificate.as_bytes()) {
                            store.inventory.leaves.insert(leaf.secret, known);
                        }
                        tracing::info!(secret = leaf.secret, "signed a certificate");
                    }
                }
            }
        }
        let bundle = store.bundle();
        self.known = Some(store);
        Ok((bundle, now + PAUSE))
    }

    fn id(&self, secret: &str) -> Id {
        Id {
            kind: Kind::named("Secret"),
            namespace: self.namespace.clone(),
            name: secret.to_owned(),
        }
    }

    /// Whether nobody else has changed or removed a Secret.
    fn is_current(&self, store: &Store) -> bool {
        secrets().all(|secret| {
            let present = self.mirror.get(&self.id(secret)).map(|present| present.revision);
            present.as_ref() == store.revisions.get(secret)
        })
    }

    async fn load(&self, now: Timestamp) -> Result<Store, Trouble> {
        let ours = ListParams::default().labels(&format!("{MANAGED_BY}={OPERATOR}"));
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api
            .list(&ours)
            .await
            .map_err(|e| Trouble::call("reading certificates", e))?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = maps.get_opt(CA_CONFIG_MAP).await;
        let map = map.map_err(|e| Trouble::call("reading the authorities", e))?;
        let mut store = Store::default();
        let texts = map.and_then(|map| map.data).unwrap_or_default();
        store.trust(texts.get(CA_BUNDLE_KEY).map_or("", String::as_str), now);
        for secret in found.items {
            let Some(name) = secrets().find(|name| *name == secret.name_any()) else {
                continue;
            };
            store
                .revisions
                .insert(name, revision(Kind::named("Secret"), &secret.metadata));
            let data = secret.data.unwrap_or_default();
            let text = |key: &str| {
                let bytes = data.get(key).map(|bytes| bytes.0.clone()).unwrap_or_default();
                String::from_utf8(bytes).unwrap_or_default()
            };
            let pair = Pair {
                certificate: text(CERTIFICATE),
                key: text(KEY),
            };
            let Some(known) = Known::parse(pair.certificate.as_bytes()) else {
                continue;
            };
            if name == CA_SECRET {
                store.trust(&pair.certificate, now);
                store.inventory.ca = pair.is_whole().then_some(known);
                store.pair = Some(pair);
            } else if pair.is_whole()
                && let Some(leaf) = Leaf::ALL.iter().find(|leaf| leaf.secret == name)
            {
                store.inventory.leaves.insert(leaf.secret, known);
            }
        }
        Ok(store)
    }

    async fn write(&self, secret: &'static str, pair: &Pair, store: &mut Store) -> Result<(), Trouble> {
        let id = self.id(secret);
        let body = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {
                "name": secret, "namespace": self.namespace,
                "labels": {MANAGED_BY: OPERATOR, "app.kubernetes.io/component": "kubevirt", "kubevirt.io": ""},
            },
            "data": {CERTIFICATE: STANDARD.encode(&pair.certificate), KEY: STANDARD.encode(&pair.key)},
        });
        let api = self.mirror.api(id.kind, &self.namespace);
        let parameters = PatchParams::apply(OPERATOR).force();
        let answer = api.patch_metadata(secret, &parameters, &Patch::Apply(&body)).await;
        let answer = answer.map_err(|e| Trouble::call(&format!("writing {id}"), e))?;
        store.revisions.insert(secret, revision(id.kind, &answer.metadata));
        self.mirror.observe(&id, answer.metadata);
        Ok(())
    }
}
