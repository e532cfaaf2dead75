//! Devices of the node that one guest has to itself, offered as the cluster's configuration says. The container that is
//! given some of them is told which by a variable of its environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferrovirt_core::config::{DeviceKind, DeviceSelector};

use super::api::{AllocateRequest, AllocateResponse, ContainerAllocateResponse, DeviceSpec};

/// All devices of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    /// The resource that containers request.
    pub(crate) resource: String,
    /// Prefix of the variable.
    variable: &'static str,
    members: Vec<Member>,
}

/// What one share of a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// Address, or addresses, as the launcher reads them.
    address: String,
    /// Device nodes.
    nodes: Vec<PathBuf>,
}

impl Pool {
    /// Whether each member's nodes are there.
    pub(crate) fn present(&self) -> Vec<bool> {
        let there = |member: &Member| member.nodes.iter().all(|node| exists(node));
        self.members.iter().map(there).collect()
    }

    /// Directories in which a change may be one of ours.
    pub(crate) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.members
            .iter()
            .flat_map(|m| &m.nodes)
            .filter_map(|node| node.parent())
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.members.iter().map(|member| member.address.clone()).collect()
    }

    pub(crate) fn allocate(&self, request: &AllocateRequest) -> AllocateResponse {
        let responses = request.container_requests.iter().map(|container| {
            let given = container
                .devices_ids
                .iter()
                .filter_map(|id| self.members.iter().find(|member| member.address == *id));
            let given: Vec<&Member> = given.collect();
            let addresses: Vec<&str> = given.iter().map(|member| member.address.as_str()).collect();
            let mut nodes: Vec<&PathBuf> = given.iter().flat_map(|member| &member.nodes).collect();
            nodes.sort();
            nodes.dedup();
            ContainerAllocateResponse {
                envs: [(self.variable(), addresses.join(","))].into(),
                devices: nodes.into_iter().map(|node| spec(node)).collect(),
                ..ContainerAllocateResponse::default()
            }
        });
        AllocateResponse {
            container_responses: responses.collect(),
        }
    }

    fn variable(&self) -> String {
        let name = self.resource.to_ascii_uppercase().replace(['/', '.'], "_");
        format!("{}_{name}", self.variable)
    }
}

/// A container's `/dev` is the node's as it was when the container was made; the first process sees the node's.
fn exists(node: &Path) -> bool {
    let nodes = Path::new("/proc/1/root").join(node.strip_prefix("/").unwrap_or(node));
    node.exists() || nodes.exists()
}

fn spec(node: &Path) -> DeviceSpec {
    let path = node.display().to_string();
    DeviceSpec {
        container_path: path.clone(),
        host_path: path,
        permissions: "mrw".to_owned(),
    }
}

/// What the node has of what is selected: `sys` and `dev` are its `/sys` and `/dev`. Pools without a device are left out.
pub(crate) fn find(selectors: &[DeviceSelector], sys: &Path, dev: &Path) -> Vec<Pool> {
    let mut pools: BTreeMap<&str, Pool> = BTreeMap::new();
    for selector in selectors {
        let (variable, members) = match &selector.kind {
            DeviceKind::Pci(vendor, product) => ("PCI_RESOURCE", pci(sys, dev, *vendor, *product)),
            DeviceKind::Mediated(name) => ("MDEV_PCI_RESOURCE", mediated(sys, dev, name)),
            DeviceKind::Usb(wanted) => ("USB_RESOURCE", usb(sys, dev, wanted)),
        };
        let pool = pools.entry(&selector.resource).or_insert_with(|| Pool {
            resource: selector.resource.clone(),
            variable,
            members: Vec::new(),
        });
        // One variable tells of addresses of one kind.
        if pool.variable == variable {
            pool.members.extend(members);
        }
    }
    pools.into_values().filter(|pool| !pool.members.is_empty()).collect()
}

/// Directories in a directory, by name.
fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    all.sort();
    all
}

fn text(file: &Path) -> Option<String> {
    Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
}

fn hex(file: &Path) -> Option<u16> {
    u16::from_str_radix(text(file)?.trim_start_matches("0x"), 16).ok()
}

fn target(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Nodes by which a guest has a device's whole IOMMU group.
fn vfio(device: &Path, dev: &Path) -> Option<Vec<PathBuf>> {
    let group = target(&device.join("iommu_group"))?;
    let vfio = dev.join("vfio");
    Some(vec![vfio.join("vfio"), vfio.join(group)])
}

/// Devices that an administrator has bound to vfio-pci; no others are anybody's to give away.
fn pci(sys: &Path, dev: &Path, vendor: u16, product: u16) -> Vec<Member> {
    let all = entries(&sys.join("bus/pci/devices")).into_iter();
    all.filter(|(_, device)| {
        (hex(&device.join("vendor")), hex(&device.join("device"))) == (Some(vendor), Some(product))
            && target(&device.join("driver")).as_deref() == Some("vfio-pci")
    })
    .filter_map(|(address, device)| {
        let nodes = vfio(&device, dev)?;
        Some(Member { address, nodes })
    })
    .collect()
}

fn mediated(sys: &Path, dev: &Path, name: &str) -> Vec<Member> {
    let all = entries(&sys.join("bus/mdev/devices")).into_iter();
    all.filter(|(_, device)| {
        let kind = text(&device.join("mdev_type/name")).or_else(|| target(&device.join("mdev_type")));
        kind.is_some_and(|kind| kind.replace(' ', "_") == name)
    })
    .filter_map(|(address, device)| {
        let nodes = vfio(&device, dev)?;
        Some(Member { address, nodes })
    })
    .collect()
}

/// As many members as there are devices of each kind.
fn usb(sys: &Path, dev: &Path, wanted: &[(u16, u16)]) -> Vec<Member> {
    let number = |file: PathBuf| text(&file)?.parse::<u16>().ok();
    let mut there: Vec<((u16, u16), u16, u16)> = entries(&sys.join("bus/usb/devices"))
        .into_iter()
        .filter_map(|(_, device)| {
            let kind = (hex(&device.join("idVendor"))?, hex(&device.join("idProduct"))?);
            Some((kind, number(device.join("busnum"))?, number(device.join("devnum"))?))
        })
        .collect();
    let mut members = Vec::new();
    loop {
        let (mut addresses, mut nodes) = (Vec::new(), Vec::new());
        for kind in wanted {
            let Some(found) = there.iter().position(|(there, _, _)| there == kind) else {
                return members;
            };
            let (_, bus, device) = there.remove(found);
            addresses.push(format!("{bus}:{device}"));
            nodes.push(dev.join(format!("bus/usb/{bus:03}/{device:03}")));
        }
        members.push(Member {
            address: addresses.join(","),
            nodes,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::api::ContainerAllocateRequest;
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => symlink(target, path).unwrap(),
                None => std::fs::write(path, content).unwrap(),
            }
        }
    }

    fn node() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let (sys, dev) = (root.path().join("sys"), root.path().join("dev"));
        for (address, product, driver, group) in [
            ("0000:81:00.0", "0x1eb8", "vfio-pci", "12"),
            ("0000:82:00.0", "0x1eb8", "nvidia", "13"),
            ("0000:83:00.0", "0x1eb8", "vfio-pci", "14"),
            ("0000:84:00.0", "0x9999", "vfio-pci", "15"),
        ] {
            let at = format!("bus/pci/devices/{address}");
            write(
                &sys,
                &[
                    (&format!("{at}/vendor"), "0x10de\n"),
                    (&format!("{at}/device"), product),
                    (&format!("{at}/driver"), &format!("-> ../drivers/{driver}")),
                    (&format!("{at}/iommu_group"), &format!("-> ../iommu_groups/{group}")),
                ],
            );
        }
        let mdev = "bus/mdev/devices/fa11c0de-0000-0000-0000-000000000001";
        write(
            &sys,
            &[
                (&format!("{mdev}/mdev_type/name"), "GRID T4-1Q\n"),
                (&format!("{mdev}/iommu_group"), "-> ../iommu_groups/20"),
            ],
        );
        for (name, product, number) in [("3-1", "0001", "11"), ("3-2", "0001", "12"), ("3-3", "0002", "13")] {
            let at = format!("bus/usb/devices/{name}");
            write(
                &sys,
                &[
                    (&format!("{at}/idVendor"), "46f4\n"),
                    (&format!("{at}/idProduct"), product),
                    (&format!("{at}/busnum"), "3\n"),
                    (&format!("{at}/devnum"), number),
                ],
            );
        }
        write(&dev, &[("vfio/vfio", ""), ("vfio/12", "")]);
        (root, sys, dev)
    }

    fn select(resource: &str, kind: DeviceKind) -> DeviceSelector {
        DeviceSelector {
            resource: resource.to_owned(),
            kind,
        }
    }

    #[test]
    fn a_nodes_devices_are_found() {
        let (_root, sys, dev) = node();
        let selectors = [
            select("ex.com/t4", DeviceKind::Pci(0x10de, 0x1eb8)),
            select("ex.com/vgpu", DeviceKind::Mediated("GRID_T4-1Q".to_owned())),
            select("ex.com/stick", DeviceKind::Usb(vec![(0x46f4, 1)])),
            select("ex.com/both", DeviceKind::Usb(vec![(0x46f4, 1), (0x46f4, 2)])),
            select("ex.com/none", DeviceKind::Pci(1, 2)),
        ];
        let pools = find(&selectors, &sys, &dev);
        let ids: Vec<(&str, Vec<String>)> = pools.iter().map(|pool| (pool.resource.as_str(), pool.ids())).collect();
        let strings = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            ids,
            [
                ("ex.com/both", strings(&["3:11,3:13"])),
                ("ex.com/stick", strings(&["3:11", "3:12"])),
                ("ex.com/t4", strings(&["0000:81:00.0", "0000:83:00.0"])),
                ("ex.com/vgpu", strings(&["fa11c0de-0000-0000-0000-000000000001"])),
            ]
        );
        assert_eq!(pools[2].present(), [true, false]);
        assert_eq!(find(&selectors, Path::new("/nowhere"), &dev), []);
    }

    #[test]
    fn a_container_is_told_what_it_was_given() {
        let (_root, sys, dev) = node();
        let pools = find(&[select("ex.com/t4-1", DeviceKind::Pci(0x10de, 0x1eb8))], &sys, &dev);
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: vec!["0000:83:00.0".into(), "0000:81:00.0".into(), "0000:99:00.0".into()],
            }],
        };
        let response = pools[0].allocate(&request).container_responses.remove(0);
        let variable = (
            "PCI_RESOURCE_EX_COM_T4-1".to_owned(),
            "0000:83:00.0,0000:81:00.0".to_owned(),
        );
        assert_eq!(response.envs, [variable].into());
        let nodes: Vec<&str> = response.devices.iter().map(|spec| spec.host_path.as_str()).collect();
        let vfio = |name: &str| dev.join("vfio").join(name).display().to_string();
        assert_eq!(nodes, [vfio("12"), vfio("14"), vfio("vfio")]);
    }
}
