//! What a launcher is told of the cluster's configuration.

use ferrovirt_core::ClusterConfig;
use ferrovirt_protocol::launcher::{ClusterSettings, Smbios};

/// The part that guests see.
pub(crate) fn of(config: &ClusterConfig) -> ClusterSettings {
    let smbios = config.smbios.clone();
    ClusterSettings {
        smbios: Some(Smbios {
            manufacturer: smbios.manufacturer,
            product: smbios.product,
            family: smbios.family,
            sku: smbios.sku,
            version: smbios.version,
        }),
        balloon_statistics_seconds: config.mem_balloon_stats_period,
        free_page_reporting: config.free_page_reporting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_hear_what_guests_see() {
        let configuration = serde_json::json!({
            "memBalloonStatsPeriod": 7,
            "virtualMachineOptions": {"disableFreePageReporting": {}},
            "smbios": {"manufacturer": "Acme", "product": "Rocket", "family": "Road", "sku": "r1"},
        });
        let told = of(&ClusterConfig::from_kubevirt(
            &serde_json::from_value(configuration).unwrap(),
        ));
        let smbios = told.smbios.unwrap();
        assert_eq!((told.balloon_statistics_seconds, told.free_page_reporting), (7, false));
        assert_eq!(
            (
                smbios.manufacturer,
                smbios.product,
                smbios.family,
                smbios.sku,
                smbios.version
            ),
            ("Acme".into(), "Rocket".into(), "Road".into(), Some("r1".into()), None)
        );
    }
}
