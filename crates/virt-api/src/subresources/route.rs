//! What a request below `/apis/subresources.kubevirt.io/…` asks for. Pure.

use http::{Method, StatusCode};

use super::{GROUP, VERSIONS};
use crate::status::{self, Refusal};

/// Kind of the object that a subresource belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    VirtualMachine,
    VirtualMachineInstance,
}

impl Kind {
    /// Name in paths.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::VirtualMachine => "virtualmachines",
            Kind::VirtualMachineInstance => "virtualmachineinstances",
        }
    }

    /// Name in error messages.
    pub(crate) fn singular(self) -> &'static str {
        match self {
            Kind::VirtualMachine => "virtualmachine",
            Kind::VirtualMachineInstance => "virtualmachineinstance",
        }
    }
}

/// Transport of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// What is asked of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop,
    Restart,
    Pause,
    Unpause,
    SoftReboot,
    Reset,
    Console,
    Vnc,
    PortForward(u16, Transport),
    GuestOsInfo,
    UserList,
    FilesystemList,
    Screenshot,
    Freeze,
    Unfreeze,
    EvacuateCancel,
    ExpandSpec,
    UsbRedir,
    Vsock,
    SevCertificates,
    SevSession,
    SevMeasurement,
    SevSecret,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The APIResourceList.
    Discovery {
        version: &'static str,
    },
    Version,
    /// Where the image of `virtctl guestfs` is.
    Guestfs,
    Healthz,
    /// A VM in the body, without what it takes from instancetypes.
    ExpandVmSpec {
        namespace: String,
    },
    Object {
        kind: Kind,
        namespace: String,
        name: String,
        verb: Verb,
    },
}

/// The attributes that a SubjectAccessReview asks about: the group is `subresources.kubevirt.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// `get` for GET, `update` for PUT.
    pub verb: &'static str,
    /// `virtualmachines`, `virtualmachineinstances` or `expand-vm-spec`.
    pub resource: &'static str,
    /// For example `console`; of a longer one its first segment, for example `vnc`. Empty for `expand-vm-spec`.
    pub subresource: &'static str,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object; empty for `expand-vm-spec`.
    pub name: String,
}

/// One subresource: its name, its method, and on which kinds it is.
struct Subresource {
    name: &'static str,
    method: &'static Method,
    on: &'static [Kind],
    /// None: KubeVirt has it, this version does not.
    verb: Option<Verb>,
    /// Discovery tells of it.
    listed: bool,
}

/// The one resource that is no subresource.
pub(crate) const EXPAND_VM_SPEC: &str = "expand-vm-spec";

const VM: &[Kind] = &[Kind::VirtualMachine];
const VMI: &[Kind] = &[Kind::VirtualMachineInstance];
const BOTH: &[Kind] = &[Kind::VirtualMachine, Kind::VirtualMachineInstance];

const fn built(name: &'static str, method: &'static Method, on: &'static [Kind], verb: Verb) -> Subresource {
    Subresource {
        name,
        method,
        on,
        verb: Some(verb),
        listed: true,
    }
}

const fn later(name: &'static str, method: &'static Method, on: &'static [Kind]) -> Subresource {
    Subresource {
        name,
        method,
        on,
        verb: None,
        listed: false,
    }
}

/// Every subresource. The verb of `portforward` is completed by its port.
const SUBRESOURCES: &[Subresource] = &[
    built("start", &Method::PUT, VM, Verb::Start),
    built("stop", &Method::PUT, VM, Verb::Stop),
    built("restart", &Method::PUT, VM, Verb::Restart),
    built("portforward", &Method::GET, BOTH, Verb::PortForward(0, Transport::Tcp)),
    built("pause", &Method::PUT, VMI, Verb::Pause),
    built("unpause", &Method::PUT, VMI, Verb::Unpause),
    built("softreboot", &Method::PUT, VMI, Verb::SoftReboot),
    built("reset", &Method::PUT, VMI, Verb::Reset),
    built("console", &Method::GET, VMI, Verb::Console),
    built("vnc", &Method::GET, VMI, Verb::Vnc),
    built("guestosinfo", &Method::GET, VMI, Verb::GuestOsInfo),
    built("userlist", &Method::GET, VMI, Verb::UserList),
    built("filesystemlist", &Method::GET, VMI, Verb::FilesystemList),
    later("migrate", &Method::PUT, VM),
    built("expand-spec", &Method::GET, VM, Verb::ExpandSpec),
    later("memorydump", &Method::PUT, VM),
    later("removememorydump", &Method::PUT, VM),
    later("addvolume", &Method::PUT, BOTH),
    later("removevolume", &Method::PUT, BOTH),
    built("evacuate/cancel", &Method::PUT, BOTH, Verb::EvacuateCancel),
    later("objectgraph", &Method::GET, BOTH),
    built("vnc/screenshot", &Method::GET, VMI, Verb::Screenshot),
    built("freeze", &Method::PUT, VMI, Verb::Freeze),
    built("unfreeze", &Method::PUT, VMI, Verb::Unfreeze),
    built("usbredir", &Method::GET, VMI, Verb::UsbRedir),
    built("vsock", &Method::GET, VMI, Verb::Vsock),
    later("backup", &Method::PUT, VMI),
    later("redefine-checkpoint", &Method::PUT, VMI),
    built("sev/fetchcertchain", &Method::GET, VMI, Verb::SevCertificates),
    built("sev/querylaunchmeasurement", &Method::GET, VMI, Verb::SevMeasurement),
    built("sev/setupsession", &Method::PUT, VMI, Verb::SevSession),
    built("sev/injectlaunchsecret", &Method::PUT, VMI, Verb::SevSecret),
];

/// The subresources that work, as `(kind, subresource, HTTP method)`.
pub(crate) fn working() -> impl Iterator<Item = (Kind, &'static str, &'static Method)> {
    SUBRESOURCES
        .iter()
        .filter(|entry| entry.listed)
        .flat_map(|entry| entry.on.iter().map(move |kind| (*kind, entry.name, entry.method)))
}

/// Reads a request line.
///
/// # Errors
/// 404 for what does not exist, 405 for the wrong method, 400 for a bad port, 501 for what is not built yet.
pub(crate) fn parse(method: &Method, path: &str) -> Result<Route, Refusal> {
    let unknown = || {
        status::failure(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    };
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (version, rest) = match segments.as_slice() {
        ["apis", group, version, rest @ ..] if *group == GROUP => (*version, rest),
        _ => return Err(unknown()),
    };
    let version = VERSIONS.iter().find(|known| **known == version).ok_or_else(unknown)?;
    match rest {
        [] => only(method, &Method::GET, Route::Discovery { version }),
        ["version"] => only(method, &Method::GET, Route::Version),
        ["healthz"] => only(method, &Method::GET, Route::Healthz),
        ["guestfs"] => only(method, &Method::GET, Route::Guestfs),
        ["start-cluster-profiler" | "stop-cluster-profiler" | "dump-cluster-profiler"] => {
            Err(status::not_supported_yet("cluster-profiler"))
        }
        ["namespaces", namespace, EXPAND_VM_SPEC] => {
            let namespace = decode(namespace).ok_or_else(unknown)?;
            only(method, &Method::PUT, Route::ExpandVmSpec { namespace })
        }
        ["namespaces", namespace, resource, name, sub @ ..] => {
            let kind = match *resource {
                "virtualmachines" => Kind::VirtualMachine,
                "virtualmachineinstances" => Kind::VirtualMachineInstance,
                _ => return Err(unknown()),
            };
            Ok(Route::Object {
                kind,
                namespace: decode(namespace).ok_or_else(unknown)?,
                name: decode(name).ok_or_else(unknown)?,
                verb: verb(method, kind, sub)?.ok_or_else(unknown)?,
            })
        }
        _ => Err(unknown()),
    }
}

fn verb(method: &Method, kind: Kind, sub: &[&str]) -> Result<Option<Verb>, Refusal> {
    if let ["portforward", port, protocol @ ..] = sub {
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => {
                return Err(status::bad_request(format!(
                    "port {port} is not a number from 1 to 65535"
                )));
            }
        };
        let transport = match protocol {
            [] | ["tcp"] => Transport::Tcp,
            ["udp"] => Transport::Udp,
            [other] => return Err(status::bad_request(format!("protocol {other} is neither tcp nor udp"))),
            _ => return Ok(None),
        };
        return only(method, &Method::GET, Some(Verb::PortForward(port, transport)));
    }
    let name = sub.join("/");
    let Some(entry) = SUBRESOURCES
        .iter()
        .find(|entry| entry.name == name && entry.on.contains(&kind))
    else {
        return Ok(None);
    };
    match entry.verb {
        None => Err(status::not_supported_yet(&format!("{}/{name}", kind.plural()))),
        Some(Verb::PortForward(..)) => Err(status::bad_request(
            "portforward needs a port: …/portforward/PORT[/tcp|udp]",
        )),
        Some(verb) => only(method, entry.method, Some(verb)),
    }
}

fn only<T>(method: &Method, allowed: &Method, value: T) -> Result<T, Refusal> {
    if method == allowed {
        return Ok(value);
    }
    Err(status::failure(
        StatusCode::METHOD_NOT_ALLOWED,
        "MethodNotAllowed",
        format!("the server does not allow this method on the requested resource: use {allowed}, not {method}"),
    ))
}

/// A path segment: names of Kubernetes objects need no percent-encoding, so one with `%` names nothing.
fn decode(segment: &str) -> Option<String> {
    (!segment.is_empty() && !segment.contains('%')).then(|| segment.to_owned())
}

/// What a SubjectAccessReview has to allow before [`super::Subresources::handle`] is called; `None` for what
/// needs no permission (discovery, version, health) and for what is refused anyway.
pub fn attributes(method: &Method, path: &str) -> Option<Attributes> {
    let (kind, namespace, name, verb) = match parse(method, path).ok()? {
        Route::Discovery { .. } | Route::Version | Route::Guestfs | Route::Healthz => return None,
        Route::ExpandVmSpec { namespace } => {
            return Some(Attributes {
                verb: "update",
                resource: EXPAND_VM_SPEC,
                subresource: "",
                namespace,
                name: String::new(),
            });
        }
        Route::Object {
            kind,
            namespace,
            name,
            verb,
        } => (kind, namespace, name, verb),
    };
    let name_of = match verb {
        Verb::PortForward(..) => "portforward",
        other => SUBRESOURCES.iter().find(|entry| entry.verb == Some(other))?.name,
    };
    // As the API server has asked already: it reads no more than one segment of a path behind an object's name.
    let subresource = name_of.split_once('/').map_or(name_of, |(first, _)| first);
    Some(Attributes {
        verb: if method == Method::GET { "get" } else { "update" },
        resource: kind.plural(),
        subresource,
        namespace,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(method: Method, rest: &str) -> Result<Route, i32> {
        parse(&method, &format!("/apis/subresources.kubevirt.io/v1{rest}")).map_err(|status| status.code.unwrap())
    }

    fn object(kind: Kind, verb: Verb) -> Result<Route, i32> {
        Ok(Route::Object {
            kind,
            namespace: "ns".into(),
            name: "x".into(),
            verb,
        })
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn paths() {
        let vm = "/namespaces/ns/virtualmachines/x";
        let vmi = "/namespaces/ns/virtualmachineinstances/x";
        let instance = Kind::VirtualMachineInstance;
        let forward = |port, transport| Verb::PortForward(port, transport);
        let rows = [
            (Method::GET, String::new(), Ok(Route::Discovery { version: "v1" })),
            (Method::GET, "/version".into(), Ok(Route::Version)),
            (Method::PUT, "/version".into(), Err(405)),
            (Method::GET, "/healthz".into(), Ok(Route::Healthz)),
            (Method::GET, "/guestfs".into(), Ok(Route::Guestfs)),
            (Method::PUT, "/guestfs".into(), Err(405)),
            (
                Method::PUT,
                format!("{vm}/start"),
                object(Kind::VirtualMachine, Verb::Start),
            ),
            (Method::POST, format!("{vm}/start"), Err(405)),
            (Method::PUT, format!("{vmi}/start"), Err(404)),
            (Method::PUT, format!("{vm}/addvolume"), Err(501)),
            (
                Method::PUT,
                format!("{vm}/evacuate/cancel"),
                object(Kind::VirtualMachine, Verb::EvacuateCancel),
            ),
            (
                Method::PUT,
                "/namespaces/ns/expand-vm-spec".into(),
                Ok(Route::ExpandVmSpec { namespace: "ns".into() }),
            ),
            (Method::GET, "/namespaces/ns/expand-vm-spec".into(), Err(405)),
            (Method::PUT, format!("{vmi}/backup"), Err(501)),
            (
                Method::PUT,
                format!("{vmi}/sev/setupsession"),
                object(instance, Verb::SevSession),
            ),
            (Method::GET, format!("{vmi}/sev/setupsession"), Err(405)),
            (Method::PUT, format!("{vmi}/freeze"), object(instance, Verb::Freeze)),
            (Method::GET, format!("{vm}/nothing"), Err(404)),
            (Method::GET, vm.to_owned(), Err(404)),
            (Method::GET, format!("{vmi}/console"), object(instance, Verb::Console)),
            (Method::GET, format!("{vmi}/vnc"), object(instance, Verb::Vnc)),
            (
                Method::GET,
                format!("{vmi}/vnc/screenshot"),
                object(instance, Verb::Screenshot),
            ),
            (
                Method::GET,
                format!("{vmi}/portforward/22"),
                object(instance, forward(22, Transport::Tcp)),
            ),
            (
                Method::GET,
                format!("{vmi}/portforward/53/udp"),
                object(instance, forward(53, Transport::Udp)),
            ),
            (
                Method::GET,
                format!("{vm}/portforward/22/tcp"),
                object(Kind::VirtualMachine, forward(22, Transport::Tcp)),
            ),
            (Method::GET, format!("{vmi}/portforward"), Err(400)),
            (Method::GET, format!("{vmi}/portforward/0"), Err(400)),
            (Method::GET, format!("{vmi}/portforward/65536"), Err(400)),
            (Method::GET, format!("{vmi}/portforward/22/sctp"), Err(400)),
            (Method::GET, format!("{vmi}/portforward/22/tcp/x"), Err(404)),
            (Method::GET, "/namespaces/ns/pods/x/console".into(), Err(404)),
            (
                Method::GET,
                "/namespaces//virtualmachineinstances/x/console".into(),
                Err(404),
            ),
            (
                Method::GET,
                "/namespaces/a%2fb/virtualmachineinstances/x/console".into(),
                Err(404),
            ),
        ];
        for (method, rest, expected) in rows {
            assert_eq!(code(method.clone(), &rest), expected, "{method} {rest}");
        }
        assert!(parse(&Method::GET, "/apis/subresources.kubevirt.io/v2/version").is_err());
        assert!(parse(&Method::GET, "/apis/subresources.kubevirt.io/v1alpha3/version").is_ok());
    }

    #[test]
    fn review_attributes() {
        let path = "/apis/subresources.kubevirt.io/v1/namespaces/ns/virtualmachineinstances/x/portforward/22/tcp";
        let found = attributes(&Method::GET, path).unwrap();
        assert_eq!(
            (found.verb, found.resource, found.subresource),
            ("get", "virtualmachineinstances", "portforward")
        );
        let path = "/apis/subresources.kubevirt.io/v1/namespaces/ns/virtualmachines/x/stop";
        assert_eq!(attributes(&Method::PUT, path).unwrap().verb, "update");
        let path = "/apis/subresources.kubevirt.io/v1/namespaces/ns/virtualmachineinstances/x/vnc/screenshot";
        assert_eq!(attributes(&Method::GET, path).unwrap().subresource, "vnc");
        let path = "/apis/subresources.kubevirt.io/v1/namespaces/ns/expand-vm-spec";
        let found = attributes(&Method::PUT, path).unwrap();
        assert_eq!(
            (found.verb, found.resource, found.subresource, found.name.as_str()),
            ("update", "expand-vm-spec", "", "")
        );
        assert_eq!(
            attributes(&Method::GET, "/apis/subresources.kubevirt.io/v1/version"),
            None
        );
    }
}
