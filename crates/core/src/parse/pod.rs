//! What the VMI asks of its pod: names, DNS, probes, strategies.

use std::net::IpAddr;

use ferrovirt_api::v1::{Network, Probe};
use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Cx, is_dns_label, is_dns_subdomain, text};
use crate::cause::FieldPath;

/// What may be done with a guest whose node is drained.
pub(crate) const EVICTION_STRATEGIES: [&str; 4] = ["None", "LiveMigrate", "LiveMigrateIfPossible", "External"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 6;
const MAX_SEARCH_CHARS: usize = 256;

impl Cx<'_> {
    pub(super) fn hostname(&mut self, hostname: Option<&str>, subdomain: Option<&str>, path: &FieldPath) {
        if let Some(hostname) = hostname.filter(|h| !h.is_empty() && !is_dns_label(h)) {
            self.causes.invalid(
                &path.child("hostname"),
                format!("\"{hostname}\" is not a DNS label (a-z, 0-9 and -, at most 63)"),
            );
        }
        if let Some(subdomain) = subdomain.filter(|s| !s.is_empty() && !is_dns_subdomain(s)) {
            self.causes.invalid(
                &path.child("subdomain"),
                format!("\"{subdomain}\" is not a DNS subdomain"),
            );
        }
    }

    pub(super) fn dns(&mut self, policy: Option<&str>, config: Option<&PodDNSConfig>, path: &FieldPath) {
        let policy = policy.unwrap_or_default();
        if !policy.is_empty() {
            self.causes.one_of(&path.child("dnsPolicy"), policy, &DNS_POLICIES);
        }
        let default = PodDNSConfig::default();
        let PodDNSConfig {
            nameservers,
            options,
            searches,
        } = config.unwrap_or(&default);
        let path = path.child("dnsConfig");
        let nameservers = nameservers.as_deref().unwrap_or_default();
        if policy == "None" && nameservers.is_empty() {
            self.causes.required(
                &path.child("nameservers"),
                "dnsPolicy None needs at least one name server",
            );
        }
        let field = path.child("nameservers");
        if nameservers.len() > MAX_NAMESERVERS {
            self.causes
                .invalid(&field, format!("more than {MAX_NAMESERVERS} name servers"));
        }
        for (i, server) in nameservers.iter().enumerate() {
            if server.parse::<IpAddr>().is_err() {
                self.causes
                    .invalid(&field.index(i), format!("\"{server}\" is not an IP address"));
            }
        }
        let field = path.child("searches");
        let searches = searches.as_deref().unwrap_or_default();
        if searches.len() > MAX_SEARCHES {
            self.causes
                .invalid(&field, format!("more than {MAX_SEARCHES} search domains"));
        }
        if searches.join(" ").len() > MAX_SEARCH_CHARS {
            self.causes
                .invalid(&field, format!("more than {MAX_SEARCH_CHARS} characters"));
        }
        for (i, search) in searches.iter().enumerate() {
            if !is_dns_subdomain(search.strip_suffix('.').unwrap_or(search)) {
                self.causes
                    .invalid(&field.index(i), format!("\"{search}\" is not a DNS domain"));
            }
        }
        for (i, PodDNSConfigOption { name, value: _ }) in options.iter().flatten().enumerate() {
            if name.as_deref().is_none_or(str::is_empty) {
                let field = path.child("options").index(i).child("name");
                self.causes.required(&field, "a DNS option needs a name");
            }
        }
    }

    pub(super) fn eviction_strategy(&mut self, strategy: Option<&str>, path: &FieldPath) {
        if let Some(strategy) = strategy.filter(|s| !s.is_empty()) {
            self.causes
                .one_of(&path.child("evictionStrategy"), strategy, &EVICTION_STRATEGIES);
        }
    }

    /// Whether the guest starts paused.
    pub(super) fn start_strategy(
        &mut self,
        strategy: Option<&str>,
        has_liveness_probe: bool,
        path: &FieldPath,
    ) -> bool {
        let field = path.child("startStrategy");
        let Some(strategy) = strategy.filter(|s| !s.is_empty()) else {
            return false;
        };
        let paused = self.causes.one_of(&field, strategy, &["Paused"]);
        if paused && has_liveness_probe {
            self.causes
                .invalid(&field, "a paused start cannot have a livenessProbe");
        }
        paused
    }

    pub(super) fn probe(&mut self, probe: Option<&Probe>, networks: &[Network], path: &FieldPath) {
        let Some(probe) = probe else { return };
        let Probe {
            exec,
            failure_threshold,
            guest_agent_ping,
            http_get,
            initial_delay_seconds,
            period_seconds,
            success_threshold,
            tcp_socket,
            timeout_seconds,
        } = probe;
        let handlers = [
            exec.is_some(),
            guest_agent_ping.is_some(),
            http_get.is_some(),
            tcp_socket.is_some(),
        ];
        match handlers.iter().filter(|h| **h).count() {
            0 => self
                .causes
                .required(path, "a probe needs a handler, such as tcpSocket or guestAgentPing"),
            1 => {}
            _ => self.causes.invalid(path, "a probe has one handler"),
        }
        if (http_get.is_some() || tcp_socket.is_some()) && !networks.iter().any(|n| n.pod.is_some()) {
            self.causes.invalid(path, "httpGet and tcpSocket need the pod network");
        }
        if let Some(exec) = exec {
            let field = path.child("exec.command");
            match exec.command.as_deref().and_then(<[String]>::first) {
                Some(program) if !program.is_empty() => {}
                _ => self.causes.required(&field, "a command to run in the guest is needed"),
            }
        }
        if let Some(get) = http_get {
            self.probe_port(&get.port, &path.child("httpGet.port"));
            if let Some(scheme) = get.scheme.as_deref().filter(|s| !s.is_empty()) {
                self.causes
                    .one_of(&path.child("httpGet.scheme"), scheme, &["HTTP", "HTTPS"]);
            }
        }
        if let Some(socket) = tcp_socket {
            self.probe_port(&socket.port, &path.child("tcpSocket.port"));
        }
        for (name, value) in [
            ("failureThreshold", failure_threshold),
            ("initialDelaySeconds", initial_delay_seconds),
            ("periodSeconds", period_seconds),
            ("successThreshold", success_threshold),
            ("timeoutSeconds", timeout_seconds),
        ] {
            if let Some(value) = value.filter(|v| *v < 0) {
                self.causes.invalid(&path.child(name), format!("{value} is negative"));
            }
        }
    }

    /// A guest that lives needs to say so once: no pod with another number is accepted.
    pub(super) fn liveness(&mut self, probe: Option<&Probe>, path: &FieldPath) {
        let wanted = probe.and_then(|probe| probe.success_threshold).filter(|n| *n > 1);
        if let Some(wanted) = wanted {
            self.causes.invalid(
                &path.child("successThreshold"),
                format!("{wanted} is not 1, which a livenessProbe needs"),
            );
        }
    }

    fn probe_port(&mut self, port: &IntOrString, field: &FieldPath) {
        let valid = match port {
            IntOrString::Int(number) => (1..=65535).contains(number),
            IntOrString::String(name) => text::is_port_name(name) || name.parse::<u16>().is_ok_and(|p| p > 0),
        };
        if !valid {
            self.causes
                .invalid(field, "a port is a number from 1 to 65535 or the name of one");
        }
    }
}
