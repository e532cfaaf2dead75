//! Devices and protections that no machine has here yet: `vsock`, `sev/*`. What KubeVirt refuses is
//! refused with its code; what is left is not supported yet.

use axum::body::Body;
use ferrovirt_api::v1::KubeVirt;
use ferrovirt_core::vmi::actions::VmiAction;
use http::Response;
use kube::Api;
use kube::api::ListParams;

use super::stream::{flag, value};
use super::{Subresources, Target};
use crate::status::{self, Refusal};

/// Gate of guests in encrypted memory.
const GATE: &str = "WorkloadEncryptionSEV";

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
        let kubevirts: Api<KubeVirt> = Api::all(self.client.clone());
        let found = kubevirts
            .list(&ListParams::default())
            .await
            .map_err(status::from_client)?;
        let on = |kubevirt: &KubeVirt| {
            let configuration = kubevirt.spec.configuration.as_ref();
            let developer = configuration.and_then(|configuration| configuration.developer_configuration.as_ref());
            developer.is_some_and(|developer| developer.feature_gates.iter().any(|gate| gate == GATE))
        };
        if !found.items.iter().any(on) {
            return Err(status::bad_request(format!(
                "{GATE} feature gate not enabled in kubevirt-config"
            )));
        }
        self.admitted(target, action).await?;
        Err(status::not_supported_yet("virtualmachineinstances/sev"))
    }
}
