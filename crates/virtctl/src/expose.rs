//! `virtctl expose`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::{DynamicObject, ObjectMeta, PostParams};

use crate::cli;
use crate::connection::Connection;
use crate::say;
use crate::target::Kind;

/// Creates a Service that selects the pod of a machine by the machine's labels.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Expose) -> anyhow::Result<()> {
    let kind = Kind::parse(&arguments.kind).map_err(anyhow::Error::msg)?;
    let object = &arguments.object;
    let found = connection.objects(kind).get(object).await;
    let found = found.with_context(|| format!("cannot get {} {object}", kind.short()))?;
    let service = service(arguments, selector(kind, &found)?);
    let api: Api<Service> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let created = api.create(&PostParams::default(), &service).await;
    created.with_context(|| format!("cannot create Service {}", arguments.name))?;
    let (name, kind) = (&arguments.name, kind.plural().trim_end_matches('s'));
    say(format_args!("Service {name} successfully created for {kind} {object}"))
}

/// The labels that the machine's pod carries: those of the instance, or of the VM's template.
fn selector(kind: Kind, found: &DynamicObject) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels: BTreeMap<String, String> = match kind {
        Kind::Vmi => found.metadata.labels.clone().unwrap_or_default(),
        Kind::Vm => found
            .data
            .pointer("/spec/template/metadata/labels")
            .and_then(|labels| serde_json::from_value(labels.clone()).ok())
            .unwrap_or_default(),
    };
    // It moves with the machine.
    labels.remove("kubevirt.io/nodeName");
    if labels.is_empty() {
        let what = match kind {
            Kind::Vm => "spec.template.metadata.labels",
            Kind::Vmi => "metadata.labels",
        };
        bail!("a Service selects by labels, and {what} is empty: set a label there");
    }
    Ok(labels)
}

fn service(arguments: &cli::Expose, selector: BTreeMap<String, String>) -> Service {
    let target_port = arguments.target_port.as_ref().map(|port| match port.parse() {
        Ok(number) => IntOrString::Int(number),
        Err(_) => IntOrString::String(port.clone()),
    });
    Service {
        metadata: ObjectMeta {
            name: Some(arguments.name.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(selector),
            type_: Some(arguments.r#type.clone()),
            cluster_ip: arguments.cluster_ip.clone(),
            external_ips: arguments.external_ip.clone().map(|ip| vec![ip]),
            ports: Some(vec![ServicePort {
                name: arguments.port_name.clone(),
                port: i32::from(arguments.port),
                protocol: Some(arguments.protocol.to_uppercase()),
                target_port,
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
