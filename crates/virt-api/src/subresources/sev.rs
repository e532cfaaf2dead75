//! `sev/*`: a guest in AMD SEV's encrypted memory, whose owner looks at it before it lets it run.

use axum::body::Body;
use ferrovirt_api::v1::{SEVSecretOptions, SEVSessionOptions, VirtualMachineInstance};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::config::GATE_SEV;
use ferrovirt_core::refusal::Refusal as Rule;
use ferrovirt_core::vmi::actions::VmiAction;
use ferrovirt_core::vmi::attestation;
use ferrovirt_runtime::kubevirt;
use http::{Request, Response, StatusCode};
use kube::Api;
use kube::api::{Patch, PatchParams};

use super::stream::node_error;
use super::vm::{ATTEMPTS, json_patch, outdated};
use super::{Subresources, Target, body};
use crate::status::{self, Refusal};

impl Subresources {
    pub(super) async fn sev_platform(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        self.sev_gate().await?;
        let vmi = self.admitted(target, VmiAction::SevCertificates).await?;
        let agent = self.agent(&vmi);
        let platform = agent.sev_platform(&target.namespace, &target.name).await;
        let platform = platform.map_err(|error| node_error(target, &error))?;
        Ok(status::json(StatusCode::OK, &platform))
    }

    pub(super) async fn sev_measurement(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        self.sev_gate().await?;
        let vmi = self.admitted(target, VmiAction::SevMeasurement).await?;
        let agent = self.agent(&vmi);
        let measurement = agent.sev_measurement(&target.namespace, &target.name).await;
        let measurement = measurement.map_err(|error| node_error(target, &error))?;
        Ok(status::json(StatusCode::OK, &measurement))
    }

    pub(super) async fn sev_session(&self, target: &Target, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        self.sev_gate().await?;
        let options: SEVSessionOptions = body::read(request).await?;
        let (dh_cert, session) = attestation::session(&options).map_err(|rule| target.refuse(rule))?;
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &target.namespace);
        for _ in 0..ATTEMPTS {
            let vmi = self.vmi(target).await?;
            let patch = attestation::set_up(&vmi, dh_cert, session).map_err(|rule| target.refuse(rule))?;
            let patch: Patch<()> = json_patch(patch)?;
            match api.patch(&target.name, &PatchParams::default(), &patch).await {
                Ok(_) => {
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::ACCEPTED;
                    return Ok(response);
                }
                Err(kube::Error::Api(refused)) if outdated(&refused) => {}
                Err(error) => return Err(status::from_client(error)),
            }
        }
        let why = "the VMI keeps changing: try again";
        Err(target.refuse(Rule::conflict(target.kind.singular(), &target.name, why)))
    }

    pub(super) async fn sev_secret(&self, target: &Target, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        self.sev_gate().await?;
        let options: SEVSecretOptions = body::read(request).await?;
        attestation::secret(&options).map_err(|rule| target.refuse(rule))?;
        let vmi = self.admitted(target, VmiAction::SevSecret).await?;
        let agent = self.agent(&vmi);
        let taken = agent.sev_secret(&target.namespace, &target.name, options).await;
        taken.map_err(|error| node_error(target, &error))?;
        Ok(Response::new(Body::empty()))
    }

    async fn sev_gate(&self) -> Result<(), Refusal> {
        let config = kubevirt::read(&self.client, &ClusterConfig::default())
            .await
            .map_err(status::from_client)?;
        if config.gate(GATE_SEV) {
            return Ok(());
        }
        Err(status::bad_request(format!(
            "{GATE_SEV} feature gate not enabled in kubevirt-config"
        )))
    }
}
