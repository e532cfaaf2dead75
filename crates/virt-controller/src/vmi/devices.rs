//! Devices that a VMI has by resource claims (dynamic resource allocation): which ones its claims were given, and where
//! they are.
//!
//! The scheduler gives each request of a ResourceClaim a device and writes its name into the claim; the driver's
//! ResourceSlices say where that device is. Nothing is watched for it: both are asked for when the pod of a VMI that has
//! such devices is up, and what they say becomes `status.deviceStatus`, which the launcher reads. Until then the VMI is
//! not handed over to its node.

use std::collections::BTreeMap;
use std::time::Duration;

use ferrovirt_api::v1::{
    DeviceAttribute, DeviceResourceClaimStatus, DeviceStatus, DeviceStatusInfo, VirtualMachineInstance,
    VirtualMachineInstanceSpec,
};
use ferrovirt_core::machine::PciAddress;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    Device, DeviceAttribute as Attribute, DeviceRequestAllocationResult, ResourceClaim, ResourceSlice,
};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use uuid::Uuid;

/// How long until devices that are not known yet are asked for again.
pub const RETRY: Duration = Duration::from_secs(5);

/// The attribute with the address of a device on the PCI bus.
const PCI_ADDRESS: &str = "resource.kubernetes.io/pciBusID";
/// The one with the UUID of a mediated device. It is not a standard yet: drivers differ in its case and in the domain
/// before it.
const MEDIATED: &str = "mDevUUID";

/// What a plan knows of the devices that a VMI has by resource claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Devices {
    /// It has none, or it is not the time to ask.
    #[default]
    Settled,
    /// These.
    Given(DeviceStatus),
    /// Not known yet, and why.
    Awaited(String),
}

/// Why devices are not known.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The pod is younger than its claims.
    #[error("the pod does not say yet which ResourceClaim was made for the resource claim \"{0}\"")]
    Unnamed(String),
    /// Perhaps the API server is too old.
    #[error("there is no ResourceClaim \"{0}\", or the cluster does not serve it in resource.k8s.io/v1")]
    NoClaim(String),
    /// The scheduler has not decided, or the claim has no such request.
    #[error("ResourceClaim \"{claim}\": nothing was allocated to a request \"{request}\"")]
    NotAllocated {
        /// Name of the object.
        claim: String,
        /// Name of its request.
        request: String,
    },
    /// The request asks for more than one.
    #[error(
        "ResourceClaim \"{claim}\": {count} devices were allocated to request \"{request}\"; \
         let it ask for one, and a further request for each further device"
    )]
    Several {
        /// Name of the object.
        claim: String,
        /// Name of its request.
        request: String,
        /// How many.
        count: usize,
    },
    /// The driver has withdrawn it, or has not published it for the node.
    #[error("no ResourceSlice of the node has device \"{device}\" of pool \"{pool}\" of driver {driver}")]
    NoSlice {
        /// Name of the driver.
        driver: String,
        /// Name of the pool.
        pool: String,
        /// Name of the device.
        device: String,
    },
    /// The driver does not publish what a guest needs.
    #[error(
        "device \"{device}\" of driver {driver} has neither an attribute {PCI_ADDRESS} with a PCI address nor one \
         {MEDIATED} with a UUID in its ResourceSlice; only such devices can be a guest's"
    )]
    Unaddressed {
        /// Name of the driver.
        driver: String,
        /// Name of the device.
        device: String,
    },
    /// The API server did not tell.
    #[error("{doing} failed: {source}")]
    Call {
        /// What was asked for.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Unknown {
    fn call(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Call {
            doing,
            source: Box::new(source),
        }
    }
}

/// A device of a spec that is of a resource claim.
struct Claimed<'a> {
    name: &'a str,
    claim: &'a str,
    request: &'a str,
}

fn claimed<'a>(name: &'a str, claim: Option<&'a str>, request: Option<&'a str>) -> Option<Claimed<'a>> {
    Some(Claimed {
        name,
        claim: claim.filter(|name| !name.is_empty())?,
        request: request?,
    })
}

/// Those of `gpus`, and those of `hostDevices` with those of networks, which `status.deviceStatus` has no list of its
/// own for.
fn of(spec: &VirtualMachineInstanceSpec) -> [Vec<Claimed<'_>>; 2] {
    let devices = &spec.domain.devices;
    let gpus = devices.gpus.iter();
    let host_devices = devices.host_devices.iter();
    let networks = spec.networks.iter();
    [
        gpus.filter_map(|d| claimed(&d.name, d.claim_name.as_deref(), d.request_name.as_deref()))
            .collect(),
        host_devices
            .filter_map(|d| claimed(&d.name, d.claim_name.as_deref(), d.request_name.as_deref()))
            .chain(networks.filter_map(|network| {
                let request = network.resource_claim.as_ref()?;
                claimed(
                    &network.name,
                    request.claim_name.as_deref(),
                    request.request_name.as_deref(),
                )
            }))
            .collect(),
    ]
}

/// Whether a machine has devices by resource claims.
pub fn any(spec: &VirtualMachineInstanceSpec) -> bool {
    of(spec).iter().any(|list| !list.is_empty())
}

/// Asks for the devices that the claims of `pod` were given.
///
/// # Errors
/// They are not known (yet).
pub async fn look(client: &Client, vmi: &VirtualMachineInstance, pod: &Pod) -> Result<DeviceStatus, Unknown> {
    let namespace = vmi.namespace().unwrap_or_default();
    let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &namespace);
    let mut claims = BTreeMap::new();
    for device in of(&vmi.spec).iter().flatten() {
        if claims.contains_key(device.claim) {
            continue;
        }
        let name = object(&vmi.spec, pod, device.claim).ok_or_else(|| Unknown::Unnamed(device.claim.to_owned()))?;
        let claim = api.get_opt(name).await;
        let claim = claim.map_err(Unknown::call("getting a ResourceClaim"))?;
        let claim = claim.ok_or_else(|| Unknown::NoClaim(name.to_owned()))?;
        claims.insert(device.claim.to_owned(), claim);
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let of_node = ListParams::default().fields(&format!("spec.nodeName={}", node.unwrap_or_default()));
    let slices = Api::<ResourceSlice>::all(client.clone()).list(&of_node).await;
    let slices = slices.map_err(Unknown::call("listing the ResourceSlices of a node"))?;
    status(&vmi.spec, &claims, &slices.items)
}

/// Name of the ResourceClaim that the entry `claim` of a spec is for a pod.
fn object<'a>(spec: &'a VirtualMachineInstanceSpec, pod: &'a Pod, claim: &str) -> Option<&'a str> {
    let entry = spec.resource_claims.iter().find(|entry| entry.name == claim)?;
    if let Some(name) = entry.resource_claim_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let statuses = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    let made = statuses.iter().find(|made| made.name == claim)?;
    made.resource_claim_name.as_deref()
}

/// What `status.deviceStatus` tells of a machine. `claims` are by the names of the entries of `spec.resourceClaims`;
/// `slices` are those of the pod's node.
///
/// # Errors
/// A device is not known.
pub fn status(
    spec: &VirtualMachineInstanceSpec,
    claims: &BTreeMap<String, ResourceClaim>,
    slices: &[ResourceSlice],
) -> Result<DeviceStatus, Unknown> {
    let info = |device: &Claimed<'_>| {
        let claim = claims.get(device.claim);
        let claim = claim.ok_or_else(|| Unknown::Unnamed(device.claim.to_owned()))?;
        let given = allocated(claim, device.request)?;
        Ok(DeviceStatusInfo {
            name: device.name.to_owned(),
            device_resource_claim_status: Some(DeviceResourceClaimStatus {
                attributes: Some(attributes(given, slices)?),
                name: Some(given.device.clone()),
                resource_claim_name: Some(claim.name_any()),
            }),
        })
    };
    let [gpus, host_devices] = of(spec);
    Ok(DeviceStatus {
        gpu_statuses: gpus.iter().map(info).collect::<Result<_, _>>()?,
        host_device_statuses: host_devices.iter().map(info).collect::<Result<_, _>>()?,
    })
}

/// The one device that a request was given.
fn allocated<'a>(claim: &'a ResourceClaim, request: &str) -> Result<&'a DeviceRequestAllocationResult, Unknown> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let results = allocation.and_then(|a| a.devices.as_ref()?.results.as_deref());
    // An alternative that a request offers has a name of its own after the request's.
    let of_request = |result: &&DeviceRequestAllocationResult| result.request.split('/').next() == Some(request);
    let given: Vec<_> = results.unwrap_or_default().iter().filter(of_request).collect();
    match given.as_slice() {
        [one] => Ok(one),
        [] => Err(Unknown::NotAllocated {
            claim: claim.name_any(),
            request: request.to_owned(),
        }),
        several => Err(Unknown::Several {
            claim: claim.name_any(),
            request: request.to_owned(),
            count: several.len(),
        }),
    }
}

/// Where a device is.
fn attributes(given: &DeviceRequestAllocationResult, slices: &[ResourceSlice]) -> Result<DeviceAttribute, Unknown> {
    let device = published(given, slices).ok_or_else(|| Unknown::NoSlice {
        driver: given.driver.clone(),
        pool: given.pool.clone(),
        device: given.device.clone(),
    })?;
    let all = || device.attributes.iter().flatten();
    let text = |(_, value): (&String, &Attribute)| value.string.clone();
    let found = DeviceAttribute {
        m_dev_uuid: all()
            .find(|(name, _)| {
                let name = name.rsplit('/').next().unwrap_or_default();
                name.eq_ignore_ascii_case(MEDIATED)
            })
            .and_then(text)
            .filter(|uuid| Uuid::try_parse(uuid).is_ok()),
        pci_address: all()
            .find(|(name, _)| *name == PCI_ADDRESS)
            .and_then(text)
            .filter(|address| PciAddress::parse(address).is_some()),
    };
    if found == DeviceAttribute::default() {
        return Err(Unknown::Unaddressed {
            driver: given.driver.clone(),
            device: given.device.clone(),
        });
    }
    Ok(found)
}

/// A device as its driver publishes it. Slices of older generations of a pool are about to go.
fn published<'a>(given: &DeviceRequestAllocationResult, slices: &'a [ResourceSlice]) -> Option<&'a Device> {
    let pool = slices.iter().map(|slice| &slice.spec);
    let pool = pool.filter(|spec| spec.driver == given.driver && spec.pool.name == given.pool);
    let newest = pool.clone().map(|spec| spec.pool.generation).max()?;
    let mut devices = pool
        .filter(|spec| spec.pool.generation == newest)
        .flat_map(|spec| spec.devices.iter().flatten());
    devices.find(|device| device.name == given.device)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const UUID: &str = "aa618089-8b16-4d01-a136-25a0f3c73123";

    fn spec() -> VirtualMachineInstanceSpec {
        serde_json::from_value(json!({
            "resourceClaims": [
                {"name": "own", "resourceClaimName": "big"},
                {"name": "made", "resourceClaimTemplateName": "part"},
                {"name": "unused", "resourceClaimName": "other"},
            ],
            "domain": {"devices": {
                "gpus": [{"name": "g", "claimName": "own", "requestName": "gpu"}],
                "hostDevices": [
                    {"name": "plugin", "deviceName": "ex.com/a"},
                    {"name": "h", "claimName": "made", "requestName": "part"},
                ],
            }},
        }))
        .unwrap()
    }

    fn claim(name: &str, results: Value) -> ResourceClaim {
        let status = json!({"allocation": {"devices": {"results": results}}});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {}, "status": status})).unwrap()
    }

    fn result(request: &str, device: &str) -> Value {
        json!({"request": request, "driver": "gpu.ex.com", "pool": "node1", "device": device})
    }

    fn slice(driver: &str, generation: i64, devices: Value) -> ResourceSlice {
        let pool = json!({"name": "node1", "generation": generation, "resourceSliceCount": 1});
        serde_json::from_value(json!({
            "metadata": {"name": "s"},
            "spec": {"driver": driver, "nodeName": "node1", "pool": pool, "devices": devices},
        }))
        .unwrap()
    }

    fn device(name: &str, attributes: &[(&str, &str)]) -> Value {
        let attributes: BTreeMap<&str, Value> = attributes.iter().map(|(k, v)| (*k, json!({"string": v}))).collect();
        json!({"name": name, "attributes": attributes})
    }

    /// Where the device `gpu-0` of the only request is, or the error.
    fn place(results: Value, slices: &[ResourceSlice]) -> Result<(Option<String>, Option<String>), String> {
        let mut spec = spec();
        spec.domain.devices.host_devices.clear();
        let claims = BTreeMap::from([("own".to_owned(), claim("big", results))]);
        let status = status(&spec, &claims, slices).map_err(|unknown| unknown.to_string())?;
        let info = status.gpu_statuses.into_iter().next().unwrap();
        let given = info.device_resource_claim_status.unwrap().attributes.unwrap();
        Ok((given.pci_address, given.m_dev_uuid))
    }

    /// Shows `spec.networks[].resourceClaim.requestName`.
    #[test]
    fn networks_are_told_of_among_host_devices() {
        let spec: VirtualMachineInstanceSpec = serde_json::from_value(json!({
            "resourceClaims": [{"name": "own", "resourceClaimName": "big"}],
            "networks": [{"name": "default", "pod": {}}, {"name": "red", "resourceClaim": {"claimName": "own", "requestName": "nic"}}],
            "domain": {"devices": {}},
        }))
        .unwrap();
        assert!(any(&spec));
        let claims = BTreeMap::from([("own".to_owned(), claim("big", json!([result("nic", "vf-1")])))]);
        let slices = [slice(
            "gpu.ex.com",
            1,
            json!([device("vf-1", &[(PCI_ADDRESS, "0000:3b:02.1")])]),
        )];
        assert_eq!(
            serde_json::to_value(status(&spec, &claims, &slices).unwrap()).unwrap(),
            json!({"hostDeviceStatuses": [{"name": "red", "deviceResourceClaimStatus": {
                "name": "vf-1", "resourceClaimName": "big", "attributes": {"pciAddress": "0000:3b:02.1"}}}]})
        );
    }

    /// Shows `spec.domain.devices.gpus[].requestName`, `spec.domain.devices.hostDevices[].requestName`.
    #[test]
    fn claims_and_slices_tell_which_devices() {
        let claims = BTreeMap::from([
            (
                "own".to_owned(),
                claim("big", json!([result("other", "gpu-1"), result("gpu", "gpu-0")])),
            ),
            (
                "made".to_owned(),
                claim("vm-made-x7", json!([result("part/small", "part-3")])),
            ),
        ]);
        let slices = [
            slice(
                "gpu.ex.com",
                2,
                json!([device("gpu-0", &[(PCI_ADDRESS, "0000:65:00.0")]), device("gpu-1", &[])]),
            ),
            slice("gpu.ex.com", 2, json!([device("part-3", &[("mdevUUID", UUID)])])),
        ];
        assert_eq!(
            serde_json::to_value(status(&spec(), &claims, &slices).unwrap()).unwrap(),
            json!({
                "gpuStatuses": [{"name": "g", "deviceResourceClaimStatus": {
                    "name": "gpu-0", "resourceClaimName": "big", "attributes": {"pciAddress": "0000:65:00.0"}}}],
                "hostDeviceStatuses": [{"name": "h", "deviceResourceClaimStatus": {
                    "name": "part-3", "resourceClaimName": "vm-made-x7", "attributes": {"mDevUUID": UUID}}}],
            })
        );
        assert!(any(&spec()));
        let mut none = spec();
        none.domain.devices.gpus.clear();
        none.domain.devices.host_devices.truncate(1);
        assert!(!any(&none));
    }

    #[test]
    fn attributes_of_devices() {
        let (pci, uuid) = (Some("0000:65:00.0".to_owned()), Some(UUID.to_owned()));
        for (attributes, expected) in [
            (vec![(PCI_ADDRESS, "0000:65:00.0")], Some((pci.clone(), None))),
            (vec![("mDevUUID", UUID)], Some((None, uuid.clone()))),
            (vec![("gpu.ex.com/mdevUUID", UUID)], Some((None, uuid.clone()))),
            (
                vec![("resource.kubernetes.io/mDevUUID", UUID), (PCI_ADDRESS, "0000:65:00.0")],
                Some((pci, uuid)),
            ),
            (vec![(PCI_ADDRESS, "65:00.0")], None),
            (vec![("mDevUUID", "gpu-0")], None),
            (vec![("pciBusID", "0000:65:00.0"), ("model", "A1")], None),
            (vec![], None),
        ] {
            let slices = [slice("gpu.ex.com", 1, json!([device("gpu-0", &attributes)]))];
            let found = place(json!([result("gpu", "gpu-0")]), &slices);
            assert_eq!(found.clone().ok(), expected, "{attributes:?}");
            let why = found.err().unwrap_or_default();
            assert_eq!(
                expected.is_none(),
                why.contains("only such devices can be a guest's"),
                "{why}"
            );
        }
    }

    #[test]
    fn slices_of_other_drivers_and_old_generations_do_not_count() {
        let at = |address| json!([device("gpu-0", &[(PCI_ADDRESS, address)])]);
        let (old, new) = (
            slice("gpu.ex.com", 1, at("0000:01:00.0")),
            slice("gpu.ex.com", 2, at("0000:02:00.0")),
        );
        let other = slice("nic.ex.com", 9, at("0000:09:00.0"));
        let gone = slice("gpu.ex.com", 3, json!([]));
        for (slices, expected) in [
            (vec![old.clone(), new.clone(), other.clone()], Some("0000:02:00.0")),
            (vec![new.clone(), old], Some("0000:02:00.0")),
            (vec![other], None),
            (vec![new, gone], None),
            (vec![], None),
        ] {
            let found = place(json!([result("gpu", "gpu-0")]), &slices);
            assert_eq!(found.clone().ok().and_then(|(pci, _)| pci).as_deref(), expected);
            let why = found.err().unwrap_or_default();
            assert_eq!(
                expected.is_none(),
                why.contains("no ResourceSlice of the node has device \"gpu-0\""),
                "{why}"
            );
        }
    }

    #[test]
    fn a_request_is_one_device() {
        let slices = [slice(
            "gpu.ex.com",
            1,
            json!([device("gpu-0", &[(PCI_ADDRESS, "0000:01:00.0")])]),
        )];
        for (results, expected) in [
            (json!([result("gpu", "gpu-0")]), ""),
            (json!([]), "nothing was allocated to a request \"gpu\""),
            (json!([result("gpus", "gpu-0")]), "nothing was allocated"),
            (
                json!([result("gpu", "gpu-0"), result("gpu", "gpu-1")]),
                "2 devices were allocated",
            ),
        ] {
            let why = place(results.clone(), &slices).err().unwrap_or_default();
            assert!(
                why.contains(expected) && why.is_empty() == expected.is_empty(),
                "{results}: {why}"
            );
        }
        let none = status(&spec(), &BTreeMap::new(), &slices).unwrap_err();
        assert!(matches!(none, Unknown::Unnamed(claim) if claim == "own"));
    }

    #[test]
    fn which_object_a_claim_is() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "status": {"resourceClaimStatuses": [{"name": "made", "resourceClaimName": "p-made-x7"}, {"name": "bare"}]},
        }))
        .unwrap();
        let spec = spec();
        for (claim, expected) in [("own", Some("big")), ("made", Some("p-made-x7")), ("missing", None)] {
            assert_eq!(object(&spec, &pod, claim), expected, "{claim}");
        }
        assert_eq!(object(&spec, &Pod::default(), "made"), None);
    }
}
