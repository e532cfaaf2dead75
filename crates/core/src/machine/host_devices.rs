//! Devices of the node that a machine has to itself.

/// A device of the node, whole or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Name in the spec.
    pub name: String,
    /// The list it is in.
    pub list: HostDeviceList,
    /// Resource that the pod asks for, e.g. `nvidia.com/TU104GL_Tesla_T4`.
    pub resource: String,
    /// What the guest is told about it on a config drive.
    pub tag: Option<String>,
    /// Of a GPU, what its options say about a screen.
    pub display: Option<Display>,
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
}
