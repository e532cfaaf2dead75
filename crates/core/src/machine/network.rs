//! The networks that NICs are on, and the plugins that bind them.

/// Where a NIC's packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicNetwork {
    /// Where all pods are.
    Pod,
    /// Where its definition says.
    Multus {
        /// `[namespace/]name` of the NetworkAttachmentDefinition.
        definition: String,
        /// It takes the pod network's place.
        default: bool,
    },
    /// Where the device is that a request of a resource claim was given.
    Claim {
        /// Name of the claim in the machine's [`ResourceClaim`](super::ResourceClaim)s.
        claim: String,
        /// Name of the request in the claim.
        request: String,
    },
}

/// A plugin of the cluster's administrator that binds NICs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Name in the `KubeVirt` object.
    pub name: String,
    /// What it leaves to us.
    pub attachment: Attachment,
    /// `[namespace/]name` of the NetworkAttachmentDefinition by which its CNI plugin gets to work in the pod.
    pub definition: Option<String>,
}

/// What a binding plugin leaves to us of attaching a guest to its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    /// Nothing: its sidecar puts the NIC into the domain.
    #[default]
    Sidecar,
    /// The NIC on the tap device that its CNI plugin made.
    Tap,
    /// The NIC, and a tap and a bridge behind it.
    ManagedTap,
}

impl Attachment {
    /// By the name in `domainAttachmentType`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "" => Self::Sidecar,
            "tap" => Self::Tap,
            "managedTap" => Self::ManagedTap,
            _ => return None,
        })
    }

    /// Its name in `domainAttachmentType`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "",
            Self::Tap => "tap",
            Self::ManagedTap => "managedTap",
        }
    }
}
