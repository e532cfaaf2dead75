//! Virtual functions of the node's network cards that CNI plugins or resource claims gave to this pod.
//!
//! Of a resource claim, the VMI's status tells the address of the device; for the others:
//!
//! Multus writes an annotation of the pod, `k8s.v1.cni.cncf.io/network-status`: a list with one entry for each of the
//! pod's interfaces (Kubernetes Network Custom Resource Definition De-facto Standard, version 1.3), and with it the PCI
//! address of the device behind it (Device Information Specification, version 1.1). The annotation is a file of the pod.
//! The kubelet mounts it before the plugins run, so it is empty at first.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrovirt_api::v1::DeviceStatus;
use ferrovirt_core::machine::{Binding, Interface, Machine, NicNetwork, PciAddress};
use serde::Deserialize;

use crate::appeared::found;

/// The kubelet looks after its pods once a minute, and right after a change.
const PATIENCE: Duration = Duration::from_secs(120);
/// Largest annotation: all of an object's annotations together have this much room.
const MAX_BYTES: u64 = 256 << 10;

/// Why the devices are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody told in time.
    #[error(
        "the pod's annotation k8s.v1.cni.cncf.io/network-status tells no PCI address for interface \"{0}\" ({1}); \
         does its NetworkAttachmentDefinition name a device plugin's resource?"
    )]
    Untold(String, String),
    /// The file cannot be watched.
    #[error("cannot watch {0}")]
    Watch(PathBuf, #[source] io::Error),
}

/// One interface of the pod.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    interface: String,
    #[serde(default)]
    default: bool,
    #[serde(default, rename = "device-info")]
    device: Option<Device>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    pci: Option<Pci>,
}

#[derive(Deserialize)]
struct Pci {
    #[serde(default, rename = "pci-address")]
    address: String,
}

/// Those of resource claims, by the interface's name, as the VMI's status says. One that it does not tell of, or not
/// in a way that can be read, is left out.
pub fn by_claims(interfaces: &[Interface], status: &DeviceStatus) -> BTreeMap<String, PciAddress> {
    let address = |nic: &Interface| {
        let info = status.host_device_statuses.iter().find(|info| info.name == nic.name)?;
        let given = info.device_resource_claim_status.as_ref()?.attributes.as_ref()?;
        PciAddress::parse(given.pci_address.as_deref()?)
    };
    let claimed = interfaces
        .iter()
        .filter(|nic| matches!(nic.network, NicNetwork::Claim { .. }));
    claimed
        .filter_map(|nic| Some((nic.name.clone(), address(nic)?)))
        .collect()
}

/// The virtual function of each interface on a Multus network that is one, by the interface's name. Waits for the
/// annotation.
///
/// # Errors
/// The annotation does not come, or has no address for one of them.
pub async fn given(machine: &Machine, file: &Path) -> Result<BTreeMap<String, PciAddress>, Error> {
    let told = |nic: &&Interface| nic.binding == Binding::Sriov && matches!(nic.network, NicNetwork::Multus { .. });
    let wanted: Vec<&Interface> = machine.interfaces.iter().filter(told).collect();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    wait(&wanted, file, PATIENCE).await
}

async fn wait(wanted: &[&Interface], file: &Path, patience: Duration) -> Result<BTreeMap<String, PciAddress>, Error> {
    let directory = file.parent().unwrap_or(file);
    let mut missing = None;
    let look = || addresses(wanted, &read(file)).map_err(|nic| missing = Some(nic)).ok();
    let looked = found(directory, patience, look).await;
    looked.map_err(|error| match missing {
        Some(nic) if error.kind() == io::ErrorKind::NotFound => Error::Untold(nic.name.clone(), device_of(nic)),
        _ => Error::Watch(file.to_owned(), error),
    })
}

fn read(file: &Path) -> Vec<u8> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // What cannot be read is not there yet.
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

/// The pod's name of an interface, for people.
fn device_of(nic: &Interface) -> String {
    nic.pod_interface().unwrap_or_else(|| "the default network".to_owned())
}

/// The addresses of all, or the first that has none.
fn addresses<'a>(wanted: &[&'a Interface], status: &[u8]) -> Result<BTreeMap<String, PciAddress>, &'a Interface> {
    let statuses: Vec<Status> = serde_json::from_slice(status).unwrap_or_default();
    let address = |nic: &'a Interface| {
        let of = |status: &&Status| match nic.network {
            NicNetwork::Multus { default: true, .. } => status.default,
            _ => Some(&status.interface) == nic.pod_interface().as_ref(),
        };
        let device = statuses.iter().find(of).and_then(|status| status.device.as_ref());
        let pci = device.and_then(|device| device.pci.as_ref());
        let address = pci.and_then(|pci| PciAddress::parse(&pci.address)).ok_or(nic)?;
        Ok((nic.name.clone(), address))
    };
    wanted.iter().copied().map(address).collect()
}

#[cfg(test)]
mod tests {
    use ferrovirt_api::v1::VirtualMachineInstance;
    use serde_json::json;

    use super::*;
    use crate::machine;

    fn interfaces() -> Vec<Interface> {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "namespace": "n"},
            "spec": {
                "networks": [
                    {"name": "red", "multus": {"networkName": "net"}},
                    {"name": "blue", "multus": {"networkName": "other", "default": true}},
                ],
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"interfaces": [
                    {"name": "red", "sriov": {}}, {"name": "blue", "sriov": {}},
                ]}},
            },
        }))
        .unwrap();
        machine::parse(&vmi, &machine::config(None, true)).unwrap().interfaces
    }

    fn status(red: &str, blue: &str) -> String {
        let device = |address: &str| json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": address}});
        json!([
            {"name": "cni0", "interface": "eth0", "default": true, "dns": {}, "device-info": device(blue)},
            {"name": "n/tap", "interface": "pod0"},
            {"name": "n/net", "interface": "podb1f51a511f1", "mac": "02:00:00:00:00:01", "device-info": device(red)},
        ])
        .to_string()
    }

    /// Shows `spec.domain.devices.interfaces[].sriov`.
    #[test]
    fn each_interface_has_the_device_of_its_network() {
        let nics = interfaces();
        let wanted: Vec<&Interface> = nics.iter().collect();
        let address = |bus, slot| PciAddress {
            domain: 0,
            bus,
            slot,
            function: 2,
        };
        let both = BTreeMap::from([
            ("red".to_owned(), address(0x3b, 2)),
            ("blue".to_owned(), address(0x5e, 1)),
        ]);
        let told = status("0000:3b:02.2", "0000:5e:01.2");
        assert_eq!(addresses(&wanted, told.as_bytes()), Ok(both));
        for (status, missing) in [
            (String::new(), "red"),
            ("{".to_owned(), "red"),
            ("{}".to_owned(), "red"),
            (status("", "0000:5e:01.2"), "red"),
            (status("0000:3b:02.2", "../../etc"), "blue"),
        ] {
            assert_eq!(
                addresses(&wanted, status.as_bytes()).unwrap_err().name,
                missing,
                "{status}"
            );
        }
    }

    /// Shows `spec.networks[].resourceClaim.claimName`.
    #[tokio::test]
    async fn the_status_tells_the_device_of_a_claim() {
        let names = ["red", "odd", "part", "new"];
        let networks =
            names.map(|name| json!({"name": name, "resourceClaim": {"claimName": "c", "requestName": name}}));
        let interfaces = names.map(|name| json!({"name": name, "sriov": {}}));
        let info =
            |name: &str, attributes| json!({"name": name, "deviceResourceClaimStatus": {"attributes": attributes}});
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "namespace": "n"},
            "spec": {
                "resourceClaims": [{"name": "c", "resourceClaimName": "big"}],
                "networks": networks,
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"interfaces": interfaces}},
            },
            "status": {"deviceStatus": {"hostDeviceStatuses": [
                info("red", json!({"pciAddress": "0000:3b:02.2"})), info("odd", json!({"pciAddress": "../3b"})),
                info("part", json!({"mDevUUID": "fa11c0de-0000-0000-0000-000000000001"})),
            ]}},
        }))
        .unwrap();
        let parsed = machine::parse(&vmi, &machine::config(None, true)).unwrap();
        let red = PciAddress {
            domain: 0,
            bus: 0x3b,
            slot: 2,
            function: 2,
        };
        let expected = BTreeMap::from([("red".to_owned(), red)]);
        assert_eq!(machine::Given::new(&vmi, &parsed).virtual_functions, expected);
        // No annotation tells of them, so none is waited for.
        let nowhere = Path::new("/nonexistent/network-status");
        assert_eq!(given(&parsed, nowhere).await.unwrap(), BTreeMap::new());
    }

    #[tokio::test]
    async fn the_annotation_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (staging, file) = (directory.path().join("new"), directory.path().join("network-status"));
        std::fs::write(&file, "").unwrap();
        let nics = interfaces();
        let wanted: Vec<&Interface> = nics.iter().collect();
        let untold = wait(&wanted, &file, Duration::from_millis(20)).await;
        let untold = untold.unwrap_err().to_string();
        assert!(untold.contains("\"red\" (podb1f51a511f1)"), "{untold}");
        std::fs::write(&staging, status("0000:3b:02.2", "0000:5e:01.2")).unwrap();
        let rename = async { std::fs::rename(&staging, &file).unwrap() };
        let (given, ()) = tokio::join!(wait(&wanted, &file, Duration::from_secs(20)), rename);
        assert_eq!(given.unwrap().len(), 2);
    }
}
