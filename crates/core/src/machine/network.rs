//! The networks that NICs are on.

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
}
