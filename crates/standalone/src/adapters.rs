//! virt-api's rules and subresources in the shape that the API server takes. virt-api's own tests take this file, too.

use async_trait::async_trait;
use axum::body::Body;
use ferrovirt_apiserver::{Admission, AdmissionInput, Aggregated, AggregatedResource, Operation};
use http::{Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde_json::Value;
use virt_api::{admission, subresources};

/// virt-api's admission.
pub(crate) struct VirtAdmission(pub admission::Admission);

fn request<'a>(input: &'a AdmissionInput<'a>) -> admission::Request<'a> {
    admission::Request {
        operation: match input.operation {
            Operation::Create => admission::Operation::Create,
            Operation::Update => admission::Operation::Update,
            Operation::Delete => admission::Operation::Delete,
        },
        group: input.group,
        version: input.version,
        resource: input.resource,
        subresource: input.subresource,
        namespace: input.namespace,
        name: input.name,
        old: input.old,
        user: admission::User {
            username: &input.user.username,
            groups: &input.user.groups,
        },
        dry_run: input.dry_run,
    }
}

#[async_trait]
impl Admission for VirtAdmission {
    async fn mutate(&self, input: &AdmissionInput<'_>, object: &mut Value) -> Result<Vec<String>, Box<Status>> {
        let request = request(input);
        let refused = |refusal| admission::as_passed_on(&request, refusal);
        self.0.mutate(request, object).await.map_err(refused)
    }

    async fn validate(&self, input: &AdmissionInput<'_>, object: Option<&Value>) -> Result<Vec<String>, Box<Status>> {
        let request = request(input);
        let refused = |refusal| admission::as_passed_on(&request, refusal);
        self.0.validate(request, object).await.map_err(refused)
    }
}

/// virt-api's subresources.
pub(crate) struct VirtSubresources(pub subresources::Subresources);

#[async_trait]
impl Aggregated for VirtSubresources {
    fn group(&self) -> &str {
        subresources::GROUP
    }

    fn versions(&self) -> Vec<String> {
        subresources::VERSIONS.map(str::to_owned).to_vec()
    }

    fn resources(&self) -> Vec<AggregatedResource> {
        let entry = |resource: subresources::Resource| AggregatedResource {
            name: resource.name(),
            kind: if resource.resource == "virtualmachines" {
                "VirtualMachine"
            } else {
                "VirtualMachineInstance"
            }
            .into(),
            namespaced: true,
            verbs: vec![resource.verb.to_owned()],
        };
        subresources::resources().into_iter().map(entry).collect()
    }

    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        self.0.handle(request).await
    }
}
