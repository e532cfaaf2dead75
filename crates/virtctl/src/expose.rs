//! `virtctl expose`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use ferrovirt_core::names;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::cli;
use crate::connection::Connection;
use crate::say;
use crate::target::Kind;

/// Types of Services.
pub const TYPES: [&str; 3] = ["ClusterIP", "NodePort", "LoadBalancer"];
/// Policies about the families of Services.
pub const POLICIES: [&str; 3] = ["SingleStack", "PreferDualStack", "RequireDualStack"];

/// Creates a Service that selects the pod of a machine.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Expose) -> anyhow::Result<()> {
    let kind = Kind::parse(&arguments.kind).map_err(anyhow::Error::msg)?;
    let object = &arguments.object;
    let found = connection.objects(kind).get(object).await;
    let found = found.with_context(|| format!("cannot get {} {object}", kind.short()))?;
    let spec = match kind {
        Kind::Vm => "/spec/template/spec",
        Kind::Vmi => "/spec",
    };
    let service = service(arguments, found.data.pointer(spec).unwrap_or(&Value::Null))?;
    let api: Api<Service> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let created = api.create(&PostParams::default(), &service).await;
    created.with_context(|| format!("cannot create Service {}", arguments.name))?;
    let (name, kind) = (&arguments.name, arguments.kind.to_lowercase());
    say(format_args!("Service {name} successfully created for {kind} {object}"))
}

/// The families of `--ip-family`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Families(Vec<String>);

/// Reads `--ip-family`.
///
/// # Errors
/// Says what is possible.
pub fn families(text: &str) -> Result<Families, String> {
    let one = |word: &str| match word.trim().to_lowercase().as_str() {
        "ipv4" => Ok("IPv4".to_owned()),
        "ipv6" => Ok("IPv6".to_owned()),
        _ => Err(format!("{word:?} is neither IPv4 nor IPv6")),
    };
    let found: Vec<String> = text.split(',').map(one).collect::<Result<_, _>>()?;
    match found.as_slice() {
        [_] => Ok(Families(found)),
        [first, second] if first != second => Ok(Families(found)),
        _ => Err("it is IPv4, IPv6, or both with a comma".to_owned()),
    }
}

/// The label that virt-controller gives to the pods of a machine, and to no other.
fn selector(machine: &str) -> BTreeMap<String, String> {
    let id = if machine.len() <= 63 {
        machine.to_owned()
    } else {
        // Labels are shorter than names.
        let hash: String = Sha1::digest(machine.as_bytes())
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}-{hash}", machine.get(..54).unwrap_or(machine))
    };
    BTreeMap::from([(names::VMI_ID_LABEL.to_owned(), id)])
}

/// The spelling that the API knows; the command line takes any case.
fn canonical(text: &str, known: &[&str]) -> String {
    let found = known.iter().find(|known| known.eq_ignore_ascii_case(text));
    (*found.unwrap_or(&text)).to_owned()
}

fn service(arguments: &cli::Expose, spec: &Value) -> anyhow::Result<Service> {
    let families = arguments.ip_family.clone().map(|families| families.0);
    let policy = match (&arguments.ip_family_policy, &families) {
        (None, Some(both)) if both.len() > 1 => Some("PreferDualStack".to_owned()),
        (given, _) => given.as_ref().map(|given| canonical(given, &POLICIES)),
    };
    Ok(Service {
        metadata: ObjectMeta {
            name: Some(arguments.name.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(selector(&arguments.object)),
            type_: Some(canonical(&arguments.r#type, &TYPES)),
            cluster_ip: arguments.cluster_ip.clone(),
            external_ips: arguments.external_ip.clone().map(|ip| vec![ip]),
            ip_families: families,
            ip_family_policy: policy,
            ports: Some(ports(arguments, spec)?),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
}

fn ports(arguments: &cli::Expose, spec: &Value) -> anyhow::Result<Vec<ServicePort>> {
    let target_port = arguments.target_port.as_ref().map(|port| match port.parse() {
        Ok(number) => IntOrString::Int(number),
        Err(_) => IntOrString::String(port.clone()),
    });
    if let Some(port) = arguments.port {
        return Ok(vec![ServicePort {
            name: arguments.port_name.clone(),
            port: i32::from(port),
            protocol: Some(arguments.protocol.to_uppercase()),
            target_port,
            ..ServicePort::default()
        }]);
    }
    let listed = listed_ports(spec);
    if listed.is_empty() {
        bail!(
            "there is no --port, and {} lists no ports of its interface of the pod network: add --port",
            arguments.object
        );
    }
    let port = |(index, (port, protocol)): (usize, (i32, Option<&str>))| ServicePort {
        name: Some(format!("port-{}", index + 1)),
        port,
        protocol: Some(protocol.unwrap_or(&arguments.protocol).to_uppercase()),
        target_port: target_port.clone(),
        ..ServicePort::default()
    };
    Ok(listed.into_iter().enumerate().map(port).collect())
}

/// The ports of the interfaces that are on the pod network.
fn listed_ports(spec: &Value) -> Vec<(i32, Option<&str>)> {
    let list = |pointer: &str| spec.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let pod_network =
        |name: &Value| list("/networks").any(|network| network["name"] == *name && network["pod"].is_object());
    list("/domain/devices/interfaces")
        .filter(|interface| pod_network(&interface["name"]))
        .filter_map(|interface| interface["ports"].as_array())
        .flatten()
        .filter_map(|port| Some((i32::try_from(port["port"].as_i64()?).ok()?, port["protocol"].as_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;
    use serde_json::json;

    use super::*;
    use crate::cli::{Cli, Command, command};

    fn made(line: &str, spec: &Value) -> anyhow::Result<Value> {
        let words = ["virtctl", "expose"].into_iter().chain(line.split_whitespace());
        let cli = Cli::from_arg_matches(&command("virtctl").try_get_matches_from(words)?)?;
        let Command::Expose(arguments) = cli.command else {
            panic!("{line} is no expose");
        };
        Ok(serde_json::to_value(service(&arguments, spec)?)?)
    }

    #[test]
    fn services() {
        let listing = json!({
            "networks": [{"name": "other", "multus": {"networkName": "x"}}, {"name": "default", "pod": {}}],
            "domain": {"devices": {"interfaces": [
                {"name": "other", "ports": [{"port": 1}]},
                {"name": "default", "ports": [{"name": "ssh", "port": 22}, {"port": 53, "protocol": "UDP"}]},
            ]}},
        });
        for (line, pointer, expected) in [
            (
                "vm a --name n --port 80",
                "/spec/selector",
                json!({"vmi.kubevirt.io/id": "a"}),
            ),
            (
                "vm a --name n --port 80",
                "/spec/ports",
                json!([{"port": 80, "protocol": "TCP"}]),
            ),
            (
                "vm a --name n --port 80 --target-port http --protocol udp --port-name web",
                "/spec/ports",
                json!([{"name": "web", "port": 80, "targetPort": "http", "protocol": "UDP"}]),
            ),
            (
                "vm a --name n",
                "/spec/ports",
                json!([
                    {"name": "port-1", "port": 22, "protocol": "TCP"},
                    {"name": "port-2", "port": 53, "protocol": "UDP"},
                ]),
            ),
            ("vm a --name n --type nodeport", "/spec/type", json!("NodePort")),
            ("vm a --name n --ip-family ipv6", "/spec/ipFamilies", json!(["IPv6"])),
            (
                "vm a --name n --ip-family IPV4,ipv6",
                "/spec/ipFamilies",
                json!(["IPv4", "IPv6"]),
            ),
            (
                "vm a --name n --ip-family ipv4,ipv6",
                "/spec/ipFamilyPolicy",
                json!("PreferDualStack"),
            ),
            (
                "vm a --name n --ip-family ipv4,ipv6 --ip-family-policy requiredualstack",
                "/spec/ipFamilyPolicy",
                json!("RequireDualStack"),
            ),
            (
                "vm a --name n --ip-family-policy SINGLESTACK",
                "/spec/ipFamilyPolicy",
                json!("SingleStack"),
            ),
        ] {
            let found = made(line, &listing).unwrap();
            assert_eq!(found.pointer(pointer), Some(&expected), "{line}: {found}");
        }
        let plain = made("vm a --name n --port 80 --ip-family ipv4", &Value::Null).unwrap();
        assert!(plain["spec"].get("ipFamilyPolicy").is_none(), "{plain}");
        for (line, why) in [
            ("vm a --name n", "add --port"),
            ("vm a --name n --port 1 --ip-family ipv5", "neither IPv4 nor IPv6"),
            ("vm a --name n --port 1 --ip-family ipv4,ipv4", "both with a comma"),
            ("vm a --name n --port 1 --type x", "invalid value"),
            ("vm a --name n --port 1 --ip-family-policy x", "invalid value"),
        ] {
            let error = made(line, &Value::Null).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn long_names_have_short_labels() {
        let found = selector(&"a".repeat(70));
        let id = &found[names::VMI_ID_LABEL];
        assert!(id.len() == 63 && id.starts_with(&"a".repeat(54)), "{id}");
    }
}
