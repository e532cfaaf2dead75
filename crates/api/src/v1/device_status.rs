//! Where the devices are that a machine has by resource claims.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Devices that a machine was given by resource claims.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Of `spec.domain.devices.gpus`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub gpu_statuses: Vec<DeviceStatusInfo>,
    /// Of `spec.domain.devices.hostDevices`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub host_device_statuses: Vec<DeviceStatusInfo>,
}

/// One device of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatusInfo {
    /// What its resource claim was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_resource_claim_status: Option<DeviceResourceClaimStatus>,
    /// Name in the spec.
    pub name: String,
}

/// What a request of a resource claim was given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceResourceClaimStatus {
    /// Where the device is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<DeviceAttribute>,
    /// The driver's name of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of the ResourceClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_claim_name: Option<String>,
}

/// Where a device is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceAttribute {
    /// UUID of a mediated device.
    #[serde(default, rename = "mDevUUID", skip_serializing_if = "Option::is_none")]
    pub m_dev_uuid: Option<String>,
    /// Address on the PCI bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
}
