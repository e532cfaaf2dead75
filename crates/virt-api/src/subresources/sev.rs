//! Devices and protections that no machine has here yet: `vsock`, `sev/*`. What KubeVirt refuses is
//! refused with its code; what is left is not supported yet.

use axum::body::Body;
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::config::GATE_SEV;
use ferrovirt_core::vmi::actions::VmiAction;
use ferrovirt_runtime::kubevirt;
use http::Response;

use super::stream::{flag, value};
use super::{Subresources, Target};
use crate::status::{self, Refusal};

impl Subresources {
    pub(super) async fn vsock(&self, target: &Target, query: &str) -> Result<Response<Body>, Refusal> {
        self.admitted(target, VmiAction::Vsock).await?;
        let port = value(query, "port").unwrap_or_default();
        if port.parse::<u32>().is_err() {
            return Err(status::bad_request(format!("port: {port:?} is no port of a VSOCK")));
        }
        flag(query, "tls")?;
        Err(status::not_supported_yet("virtualmachineinstances/vsock"))
    }

    pub(super) async fn sev(&self, target: &Target, action: VmiAction) -> Result<Response<Body>, Refusal> {
        let config = kubevirt::read(&self.client, &ClusterConfig::default())
            .await
            .map_err(status::from_client)?;
        if !config.gate(GATE_SEV) {
            return Err(status::bad_request(format!(
                "{GATE_SEV} feature gate not enabled in kubevirt-config"
            )));
        }
        self.admitted(target, action).await?;
        Err(status::not_supported_yet("virtualmachineinstances/sev"))
    }
}
