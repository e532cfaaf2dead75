//! Certificates: which there are, when they are renewed (pure), and how they are made.
//!
//! ```text
//!  authority A ────────────────────────────────────────────┤ ends
//!       authority B, made `renew before` A ends ───────────────────────────────────────┤
//!       │◄ settling ►│
//!  bundle: A         │ A + B                              │ B …
//!  leaves: signed by A  renewed by B, as each comes due    │
//! ```
//!
//! A certificate is trusted as long as its authority is in the bundle, and an authority is there until it ends. A leaf
//! never outlives its authority. So nothing that is in use ever becomes untrusted, and nobody is restarted. While a new
//! authority is settling (processes learn of it by a mounted ConfigMap), leaves are renewed by nobody; they have time.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{CertConfig, KubeVirtSpec};
use ferrovirt_core::duration;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use x509_parser::pem::Pem;

/// Secret of the authority.
pub const CA_SECRET: &str = "kubevirt-ca";

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Longer than the kubelet takes to update a mounted ConfigMap.
const SETTLING: SignedDuration = SignedDuration::from_mins(5);
/// Clocks of nodes differ.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// A certificate that the authority signs.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Secret that holds it.
    pub secret: &'static str,
    /// Its subject.
    pub common_name: &'static str,
    /// Services it is shown by.
    services: &'static [&'static str],
    /// For clients, not for servers.
    client: bool,
}

const METRICS: &str = "kubevirt-prometheus-metrics";

impl Leaf {
    /// virt-api's.
    pub const API: Self = Self {
        secret: "kubevirt-virt-api-certs",
        common_name: "virt-api.kubevirt.io",
        services: &["virt-api", METRICS],
        client: false,
    };
    /// virt-api's towards virt-handler.
    pub const API_CLIENT: Self = Self {
        secret: "kubevirt-virt-api-client-certs",
        common_name: "kubevirt.io:system:client:virt-api",
        services: &[],
        client: true,
    };
    /// virt-controller's.
    pub const CONTROLLER: Self = Self {
        secret: "kubevirt-controller-certs",
        common_name: "virt-controller.kubevirt.io",
        services: &["virt-controller", METRICS],
        client: false,
    };
    /// virt-handler's.
    pub const HANDLER_SERVER: Self = Self {
        secret: "kubevirt-virt-handler-server-certs",
        common_name: "kubevirt.io:system:node:virt-handler",
        services: &["virt-handler", METRICS],
        client: false,
    };
    /// virt-handler's towards other virt-handlers.
    pub const HANDLER_CLIENT: Self = Self {
        secret: "kubevirt-virt-handler-certs",
        common_name: "kubevirt.io:system:client:virt-handler",
        services: &[],
        client: true,
    };
    /// virt-operator's.
    pub const OPERATOR: Self = Self {
        secret: "kubevirt-operator-certs",
        common_name: "virt-operator.kubevirt.io",
        services: &["kubevirt-operator-webhook", "virt-operator", METRICS],
        client: false,
    };
    /// All of them.
    pub const ALL: [&'static Self; 6] = [
        &Self::API,
        &Self::API_CLIENT,
        &Self::CONTROLLER,
        &Self::HANDLER_SERVER,
        &Self::HANDLER_CLIENT,
        &Self::OPERATOR,
    ];
}

/// Lifetimes of a sort of certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// From beginning to end.
    pub duration: SignedDuration,
    /// How long before its end it is renewed.
    pub renew_before: SignedDuration,
}

/// A duration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("spec.certificateRotateStrategy.selfSigned.{field}: {why}")]
pub struct InvalidDuration {
    field: String,
    why: String,
}

impl Lifetime {
    fn new(field: &str, config: Option<&CertConfig>, default: SignedDuration) -> Result<Self, InvalidDuration> {
        let bad = |field: String, why: &str| InvalidDuration {
            field,
            why: why.to_owned(),
        };
        let parse = |name: &str, text: Option<&String>| {
            let field = format!("{field}.{name}");
            let Some(text) = text else { return Ok(None) };
            let parsed = duration::parse(text).filter(SignedDuration::is_positive);
            let why = format!("{text:?} is no positive duration such as 24h or 10m");
            parsed.map(Some).ok_or_else(|| bad(field, &why))
        };
        let duration = parse("duration", config.and_then(|c| c.duration.as_ref()))?.unwrap_or(default);
        let renew_before = parse("renewBefore", config.and_then(|c| c.renew_before.as_ref()))?.unwrap_or(duration / 5);
        if duration < SignedDuration::from_mins(10) {
            return Err(bad(format!("{field}.duration"), "must be at least 10m"));
        }
        if renew_before >= duration {
            return Err(bad(format!("{field}.renewBefore"), "must be less than the duration"));
        }
        Ok(Self { duration, renew_before })
    }
}

/// How certificates are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Of the authority.
    pub ca: Lifetime,
    /// Of the others.
    pub leaf: Lifetime,
}

impl Default for Rotation {
    /// A week for the authority and a day for the others, renewed when a fifth is left.
    fn default() -> Self {
        let lifetime = |duration| Lifetime {
            duration,
            renew_before: duration / 5,
        };
        Self {
            ca: lifetime(DAY * 7),
            leaf: lifetime(DAY),
        }
    }
}

impl Rotation {
    /// What a KubeVirt object says, else the default.
    ///
    /// # Errors
    /// A duration cannot be read or is of no use.
    pub fn new(spec: &KubeVirtSpec) -> Result<Self, InvalidDuration> {
        let strategy = spec.certificate_rotate_strategy.clone().unwrap_or_default();
        let strategy = strategy.self_signed.unwrap_or_default();
        let or = |config: Option<CertConfig>, old: Option<String>| {
            config.or_else(|| {
                old.map(|duration| CertConfig {
                    duration: Some(duration),
                    renew_before: None,
                })
            })
        };
        let ca = or(strategy.ca, strategy.ca_rotate_interval);
        let leaf = or(strategy.server, strategy.cert_rotate_interval);
        let ca = Lifetime::new("ca", ca.as_ref(), DAY * 7)?;
        let leaf = Lifetime::new("server", leaf.as_ref(), DAY.min(ca.duration))?;
        if leaf.duration > ca.duration {
            return Err(InvalidDuration {
                field: "server.duration".to_owned(),
                why: "must not be longer than that of the authority".to_owned(),
            });
        }
        Ok(Self { ca, leaf })
    }

    fn settling(&self) -> SignedDuration {
        SETTLING.min(self.leaf.renew_before / 4)
    }
}

/// What matters of a certificate that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name; an authority's is unique.
    pub subject: String,
    /// Name of who signed it.
    pub issuer: String,
    /// Not valid before.
    pub begin: Timestamp,
    /// Not valid after.
    pub end: Timestamp,
}

impl Known {
    /// Reads the first certificate of a PEM text.
    #[must_use]
    pub fn parse(pem: &[u8]) -> Option<Self> {
        Pem::iter_from_buffer(pem).flatten().find_map(|pem| Self::of(&pem))
    }

    fn of(pem: &Pem) -> Option<Self> {
        let certificate = pem.parse_x509().ok()?;
        let name = |name: &x509_parser::x509::X509Name<'_>| {
            let first = name.iter_common_name().next();
            first.and_then(|cn| cn.as_str().ok()).unwrap_or_default().to_owned()
        };
        let validity = certificate.validity();
        Some(Self {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            begin: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            end: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
        })
    }

    /// When it is renewed. If durations have become shorter, that is sooner than when it was made.
    fn due(&self, lifetime: &Lifetime) -> Timestamp {
        let begin = self.begin + BACKDATED;
        let end = self.end.min(begin + lifetime.duration);
        // One that was cut short by its authority's end has less time.
        end - lifetime.renew_before.min(end.duration_since(begin) / 2)
    }
}

/// The certificates of a bundle, each with its text.
#[must_use]
pub fn bundle(pem: &str) -> Vec<(Known, String)> {
    let blocks = pem.split_inclusive("-----END CERTIFICATE-----");
    let blocks = blocks.map(|block| format!("{}\n", block.trim()));
    blocks
        .filter_map(|block| Some((Known::parse(block.as_bytes())?, block)))
        .collect()
}

/// What exists.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The authority that signs, if its Secret is whole.
    pub ca: Option<Known>,
    /// Authorities of the bundle.
    pub trusted: Vec<Known>,
    /// Certificates by their Secrets' names.
    pub leaves: BTreeMap<&'static str, Known>,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A new authority is to be made, and added to the bundle.
    NewAuthority,
    /// These are to be signed.
    Sign(Vec<&'static Leaf>),
    /// Nothing before this time.
    Rest(Timestamp),
}

/// The next step; ask again when it has been done.
#[must_use]
pub fn plan(inventory: &Inventory, rotation: &Rotation, now: Timestamp) -> Plan {
    let Some(ca) = inventory.ca.as_ref().filter(|ca| now < ca.due(&rotation.ca)) else {
        return Plan::NewAuthority;
    };
    let settled = ca.begin + BACKDATED + rotation.settling();
    let is_trusted = |leaf: &Known| {
        let mut issuers = inventory.trusted.iter().chain([ca]);
        issuers.any(|ca| ca.subject == leaf.issuer && now < ca.end)
    };
    let mut sign = Vec::new();
    let mut next = ca.due(&rotation.ca);
    for leaf in Leaf::ALL {
        let known = inventory.leaves.get(leaf.secret);
        let Some(known) = known.filter(|known| now < known.end && is_trusted(known)) else {
            sign.push(leaf);
            continue;
        };
        let due = known.due(&rotation.leaf);
        // Not before everybody knows the authority, unless that would be too late.
        let due = if known.end > settled { due.max(settled) } else { due };
        if due <= now {
            sign.push(leaf);
        }
        next = next.min(due);
    }
    // What the bundle holds beyond its end is dropped when something else is done.
    if sign.is_empty() {
        Plan::Rest(next)
    } else {
        Plan::Sign(sign)
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl Pair {
    /// The key can be read and is that of the certificate.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Ok(key) = KeyPair::from_pem(&self.key) else {
            return false;
        };
        let pem = Pem::iter_from_buffer(self.certificate.as_bytes()).flatten().next();
        let public = pem.as_ref().and_then(|pem| pem.parse_x509().ok());
        public.is_some_and(|certificate| certificate.public_key().raw == key.subject_public_key_info())
    }
}

fn params(
    common_name: &str,
    names: Vec<String>,
    now: Timestamp,
    end: Timestamp,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at =
        |time: Timestamp| epoch + std::time::Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
    params.not_before = at(now - BACKDATED);
    params.not_after = at(end);
    Ok(params)
}

/// A new authority.
///
/// # Errors
/// The cryptography fails.
pub fn make_authority(rotation: &Rotation, now: Timestamp) -> Result<Pair, rcgen::Error> {
    // Unique, so that a certificate's issuer says which authority it was.
    let name = format!("kubevirt.io@{}", now.as_millisecond());
    let mut params = params(&name, Vec::new(), now, now + rotation.ca.duration)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

/// Signs a certificate, with a new key. It ends no later than the authority.
///
/// # Errors
/// The authority's key or certificate is damaged.
pub fn sign(
    authority: &Pair,
    leaf: &Leaf,
    namespace: &str,
    rotation: &Rotation,
    now: Timestamp,
) -> Result<Pair, rcgen::Error> {
    let key = KeyPair::from_pem(&authority.key)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, key)?;
    let mut end = now + rotation.leaf.duration;
    if let Some(ca) = Known::parse(authority.certificate.as_bytes()) {
        end = end.min(ca.end);
    }
    let names = leaf.services.iter().flat_map(|service| {
        [
            (*service).to_owned(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
        ]
    });
    let mut params = params(leaf.common_name, names.collect(), now, end)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![if leaf.client {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    }];
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation() -> Rotation {
        Rotation::new(&KubeVirtSpec::default()).unwrap()
    }

    fn known(subject: &str, issuer: &str, begin: Timestamp, lifetime: SignedDuration) -> Known {
        Known {
            subject: subject.to_owned(),
            issuer: issuer.to_owned(),
            begin: begin - BACKDATED,
            end: begin + lifetime,
        }
    }

    fn hours(hours: i64) -> SignedDuration {
        SignedDuration::from_hours(hours)
    }

    #[test]
    fn durations() {
        let spec = |text: &str| -> KubeVirtSpec { serde_yaml_ng::from_str(text).unwrap() };
        let read = |text: &str| Rotation::new(&spec(text));
        let set = read(
            "{certificateRotateStrategy: {selfSigned: {ca: {duration: 48h, renewBefore: 12h}, server: {duration: 12h}}}}",
        );
        let set = set.unwrap();
        assert_eq!((set.ca.renew_before, set.leaf.duration), (hours(12), hours(12)));
        for bad in [
            "{certificateRotateStrategy: {selfSigned: {ca: {duration: 1x}}}}",
            "{certificateRotateStrategy: {selfSigned: {ca: {duration: 1s}}}}",
            "{certificateRotateStrategy: {selfSigned: {server: {duration: 1h, renewBefore: 1h}}}}",
            "{certificateRotateStrategy: {selfSigned: {ca: {duration: 1h}, server: {duration: 2h}}}}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn schedule() {
        let t0 = Timestamp::from_second(1_000_000).unwrap();
        let rotation = rotation();
        let all = |issuer: &str, begin: Timestamp| -> BTreeMap<&'static str, Known> {
            let leaves = Leaf::ALL.iter().map(|l| (l.secret, known("x", issuer, begin, DAY)));
            leaves.collect()
        };
        let everything = || Plan::Sign(Leaf::ALL.to_vec());
        let a = known("a", "a", t0, DAY * 7);
        let fresh = Inventory {
            ca: Some(a.clone()),
            trusted: vec![a.clone()],
            leaves: all("a", t0),
        };
        let a_due = t0 + DAY * 7 - (DAY * 7) / 5;
        let leaf_due = t0 + DAY - DAY / 5;

        assert_eq!(plan(&Inventory::default(), &rotation, t0), Plan::NewAuthority);
        let without_leaves = Inventory {
            leaves: BTreeMap::new(),
            ..fresh.clone()
        };
        assert_eq!(plan(&without_leaves, &rotation, t0), everything());
        assert_eq!(plan(&fresh, &rotation, t0), Plan::Rest(leaf_due));
        assert_eq!(plan(&fresh, &rotation, leaf_due), everything());

        // A deleted Secret is made again, the others stay.
        let mut one_missing = fresh.clone();
        one_missing.leaves.remove(Leaf::API.secret);
        assert_eq!(plan(&one_missing, &rotation, t0), Plan::Sign(vec![&Leaf::API]));

        // The authority is renewed; leaves of the old one stay as long as it is in the bundle.
        let late = Inventory {
            leaves: all("a", a_due - hours(1)),
            ..fresh.clone()
        };
        assert_eq!(plan(&late, &rotation, a_due), Plan::NewAuthority);
        let b = known("b", "b", a_due, DAY * 7);
        let renewed = Inventory {
            ca: Some(b.clone()),
            trusted: vec![a.clone(), b.clone()],
            ..late
        };
        assert_eq!(
            plan(&renewed, &rotation, a_due),
            Plan::Rest(a_due - hours(1) + DAY - DAY / 5)
        );
        let forgotten = Inventory {
            trusted: vec![b.clone()],
            ..renewed.clone()
        };
        assert_eq!(plan(&forgotten, &rotation, a_due), everything());

        // What comes due while the new authority is settling waits until it has settled.
        let due = Inventory {
            leaves: all("a", a_due - DAY + DAY / 5),
            ..renewed.clone()
        };
        assert_eq!(plan(&due, &rotation, a_due), Plan::Rest(a_due + SETTLING));
        assert_eq!(plan(&due, &rotation, a_due + SETTLING), everything());
        // What would end before is renewed at once.
        let ending = Inventory {
            leaves: all("a", a_due - DAY + SETTLING / 2),
            ..renewed
        };
        assert_eq!(plan(&ending, &rotation, a_due), everything());

        // Shorter durations take effect on what exists.
        let mut shorter = rotation;
        shorter.leaf = Lifetime {
            duration: hours(1),
            renew_before: hours(1) / 5,
        };
        assert_eq!(plan(&fresh, &shorter, t0), Plan::Rest(t0 + hours(1) - hours(1) / 5));
    }

    #[test]
    fn what_is_made_is_trusted_by_who_knows_the_authority() {
        let now = Timestamp::now();
        let rotation = rotation();
        let authority = make_authority(&rotation, now).unwrap();
        let ca = Known::parse(authority.certificate.as_bytes()).unwrap();
        assert_eq!(ca.subject, ca.issuer);
        let bundle = bundle(&format!("{0}{0}", authority.certificate));
        assert_eq!(bundle.len(), 2);
        assert_eq!((&bundle[0].0, bundle[0].1.trim()), (&ca, authority.certificate.trim()));
        for leaf in Leaf::ALL {
            let pair = sign(&authority, leaf, "kubevirt", &rotation, now).unwrap();
            let known = Known::parse(pair.certificate.as_bytes()).unwrap();
            assert_eq!((known.subject.as_str(), &known.issuer), (leaf.common_name, &ca.subject));
            assert_eq!(known.end.as_second(), (now + DAY).as_second());
            assert!(pair.is_whole());
            let mixed = Pair {
                key: authority.key.clone(),
                ..pair
            };
            assert!(!mixed.is_whole());
        }
        // Never longer than the authority.
        let later = now + DAY * 6 + hours(12);
        let pair = sign(&authority, &Leaf::API, "kubevirt", &rotation, later).unwrap();
        assert_eq!(Known::parse(pair.certificate.as_bytes()).unwrap().end, ca.end);
    }
}
