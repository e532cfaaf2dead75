//! Devices of the node that a machine has to itself.

use std::fmt;

/// A device of the node, whole or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Name in the spec.
    pub name: String,
    /// The list it is in.
    pub list: HostDeviceList,
    /// How the pod asks for it.
    pub source: HostDeviceSource,
    /// What the guest is told about it on a config drive.
    pub tag: Option<String>,
    /// Of a GPU, what its options say about a screen.
    pub display: Option<Display>,
}

/// How a pod asks for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostDeviceSource {
    /// As one of a resource of nodes, e.g. `nvidia.com/TU104GL_Tesla_T4`.
    Resource(String),
    /// By a request of a resource claim.
    Claim {
        /// Name of the claim in the machine's [`ResourceClaim`]s.
        claim: String,
        /// Name of the request in the claim.
        request: String,
    },
}

impl fmt::Display for HostDeviceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(name) => f.write_str(name),
            Self::Claim { claim, request } => write!(f, "device of request {request} of resource claim {claim}"),
        }
    }
}

/// A claim of the pod to devices that a driver gives to it (dynamic resource allocation).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceClaim {
    /// Name by which devices refer to it.
    pub name: String,
    /// The object that it is.
    pub source: ClaimSource,
}

/// The object behind a [`ResourceClaim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimSource {
    /// A ResourceClaim that exists.
    Claim(String),
    /// One that is made for the pod from a ResourceClaimTemplate.
    Template(String),
}

/// Lists of the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostDeviceList {
    /// `gpus`.
    Gpu,
    /// `hostDevices`.
    HostDevice,
}

/// A part of a GPU as the machine's screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Display {
    /// It is one.
    pub enabled: bool,
    /// It is one already before the guest's driver runs.
    pub ram_fb: bool,
}

impl HostDevice {
    /// Name in the domain, without the prefix of all our aliases.
    #[must_use]
    pub fn alias(&self) -> String {
        let list = match self.list {
            HostDeviceList::Gpu => "gpu",
            HostDeviceList::HostDevice => "hostdevice",
        };
        format!("{list}-{}", self.name)
    }

    /// The resource of nodes that it is one of.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        match &self.source {
            HostDeviceSource::Resource(name) => Some(name),
            HostDeviceSource::Claim { .. } => None,
        }
    }
}
