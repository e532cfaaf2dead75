//! Streams that are open, as metrics of KubeVirt's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Target;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    vmi: String,
}

type Open = Family<Labels, Gauge>;

/// Gauges of open streams.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    pub(super) consoles: Counted,
    pub(super) displays: Counted,
    pub(super) devices: Counted,
    pub(super) ports: Counted,
    pub(super) sockets: Counted,
}

/// The streams of one kind.
#[derive(Clone, Default)]
pub(super) struct Counted(Open);

/// A stream that is open until this is dropped.
pub(super) struct Session {
    open: Open,
    labels: Labels,
}

impl Sessions {
    pub(crate) fn register(&self, registry: &mut Registry) {
        for (name, help, open) in [
            (
                "kubevirt_console_active_connections",
                "Open serial consoles",
                &self.consoles,
            ),
            ("kubevirt_vnc_active_connections", "Open displays", &self.displays),
            (
                "kubevirt_usbredir_active_connections",
                "Redirected USB devices",
                &self.devices,
            ),
            (
                "kubevirt_portforward_active_tunnels",
                "Open forwarded ports",
                &self.ports,
            ),
            (
                "ferrovirt_vsock_active_connections",
                "Open virtual sockets",
                &self.sockets,
            ),
        ] {
            registry.register(name, help, open.0.clone());
        }
    }
}

impl Counted {
    pub(super) fn begin(&self, target: &Target) -> Session {
        let labels = Labels {
            namespace: target.namespace.clone(),
            vmi: target.name.clone(),
        };
        self.0.get_or_create(&labels).inc();
        Session {
            open: self.0.clone(),
            labels,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What is gone takes no memory and no line of the metrics.
        let left = self.open.get_or_create(&self.labels).dec() - 1;
        if left <= 0 {
            self.open.remove(&self.labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subresources::route::Kind;

    #[test]
    fn sessions_are_counted_while_they_last() {
        let sessions = Sessions::default();
        let mut registry = Registry::default();
        sessions.register(&mut registry);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let target = Target {
            kind: Kind::VirtualMachineInstance,
            namespace: "ns".into(),
            name: "x".into(),
        };
        let first = sessions.consoles.begin(&target);
        let second = sessions.consoles.begin(&target);
        let line = "kubevirt_console_active_connections{namespace=\"ns\",vmi=\"x\"}";
        assert!(text().contains(&format!("{line} 2")), "{}", text());
        drop(first);
        assert!(text().contains(&format!("{line} 1")), "{}", text());
        drop(second);
        assert!(!text().contains(line), "{}", text());
    }
}
