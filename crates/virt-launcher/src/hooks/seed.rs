//! Cloud-init data, as sidecars see it.

use ferrovirt_core::machine::CloudInitFlavor;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What an image of cloud-init data is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Seed {
    /// Which format.
    pub flavor: CloudInitFlavor,
    /// Name of the volume.
    pub volume: String,
    /// About the guest.
    pub meta: Value,
    /// User data.
    pub user: Option<Vec<u8>>,
    /// Network data.
    pub network: Option<Vec<u8>>,
}

/// KubeVirt's form of it.
#[derive(Deserialize)]
struct Wire {
    #[serde(default, rename = "DataSource")]
    data_source: String,
    #[serde(default, rename = "NoCloudMetaData")]
    no_cloud: Option<Map<String, Value>>,
    #[serde(default, rename = "ConfigDriveMetaData")]
    config_drive: Option<Map<String, Value>>,
    #[serde(default, rename = "UserData")]
    user: String,
    #[serde(default, rename = "NetworkData")]
    network: String,
}

/// The form of sidecars that know the volume source only.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldWire {
    user_data: Option<String>,
    network_data: Option<String>,
}

fn text(data: Option<&Vec<u8>>) -> String {
    data.map(|data| String::from_utf8_lossy(data).into_owned())
        .unwrap_or_default()
}

/// What was sent as it is stays as it was, even if it is no text.
fn after(before: Option<Vec<u8>>, answer: String) -> Option<Vec<u8>> {
    if answer == text(before.as_ref()) {
        before
    } else {
        Some(answer.into_bytes()).filter(|answer| !answer.is_empty())
    }
}

impl Seed {
    fn source(&self) -> &'static str {
        match self.flavor {
            CloudInitFlavor::NoCloud => "noCloud",
            CloudInitFlavor::ConfigDrive => "configDrive",
        }
    }

    pub(super) fn wire(&self) -> Vec<u8> {
        let (no_cloud, config_drive) = match self.flavor {
            CloudInitFlavor::NoCloud => (self.meta.clone(), Value::Null),
            CloudInitFlavor::ConfigDrive => (Value::Null, self.meta.clone()),
        };
        let wire = json!({
            "DataSource": self.source(),
            "NoCloudMetaData": no_cloud,
            "ConfigDriveMetaData": config_drive,
            "UserData": text(self.user.as_ref()),
            "NetworkData": text(self.network.as_ref()),
            "DevicesData": self.meta.get("devices"),
            "VolumeName": self.volume,
        });
        wire.to_string().into_bytes()
    }

    pub(super) fn old_wire(&self) -> Vec<u8> {
        let wire = json!({"userData": text(self.user.as_ref()), "networkData": text(self.network.as_ref())});
        wire.to_string().into_bytes()
    }

    /// The data after an answer: its new form counts, else its old one; without either nothing changes.
    pub(super) fn changed(self, data: &[u8], source: &[u8]) -> Result<Self, String> {
        if !data.is_empty() {
            let wire = serde_json::from_slice(data);
            let wire: Wire = wire.map_err(|error| format!("its cloudInitData cannot be read: {error}"))?;
            if wire.data_source != self.source() {
                return Err(format!(
                    "DataSource must be {}, not \"{}\"",
                    self.source(),
                    wire.data_source
                ));
            }
            let meta = match self.flavor {
                CloudInitFlavor::NoCloud => wire.no_cloud,
                CloudInitFlavor::ConfigDrive => wire.config_drive,
            };
            return Ok(Self {
                meta: meta.map_or(self.meta, Value::Object),
                user: after(self.user, wire.user),
                network: after(self.network, wire.network),
                ..self
            });
        }
        if !source.is_empty() {
            let wire = serde_json::from_slice(source);
            let wire: OldWire = wire.map_err(|error| format!("its cloudInitNoCloudSource cannot be read: {error}"))?;
            return Ok(Self {
                user: match wire.user_data {
                    Some(user) => after(self.user, user),
                    None => self.user,
                },
                network: match wire.network_data {
                    Some(network) => after(self.network, network),
                    None => self.network,
                },
                ..self
            });
        }
        Ok(self)
    }
}
