//! `spec.domain.cpu`.

use ferrovirt_api::v1::{CPU, CPUFeature};

use super::{Cx, on, text};
use crate::cause::FieldPath;
use crate::machine::{Architecture, Cpu, CpuModel};

/// More need an IOMMU with extended interrupt mode.
const MAX_VCPUS: u32 = 255;
const POLICIES: [&str; 5] = ["force", "require", "optional", "disable", "forbid"];

impl Cx<'_> {
    pub(super) fn cpu(&mut self, cpu: Option<&CPU>, path: &FieldPath) -> Cpu {
        let path = &path.child("cpu");
        let default = CPU::default();
        let CPU {
            cores,
            dedicated_cpu_placement,
            features,
            isolate_emulator_thread,
            max_sockets,
            model,
            numa,
            realtime,
            sockets,
            threads,
        } = cpu.unwrap_or(&default);
        let dedicated = on(*dedicated_cpu_placement);
        self.causes.none_of(path, &[("realtime", realtime.is_some())]);
        self.dedicated_only(dedicated, on(*isolate_emulator_thread), path, "isolateEmulatorThread");
        self.dedicated_only(dedicated, numa.is_some(), path, "numa");
        self.dedicated_only(dedicated, realtime.is_some(), path, "realtime");
        let cores = self.count(*cores, &path.child("cores"));
        let sockets = self.count(*sockets, &path.child("sockets"));
        let threads = self.count(*threads, &path.child("threads"));
        let max_sockets = match max_sockets.filter(|n| *n != 0) {
            None => sockets,
            Some(max) => self.count(Some(max), &path.child("maxSockets")),
        };
        if sockets > max_sockets {
            self.causes.invalid(
                &path.child("sockets"),
                format!("{sockets} sockets are more than maxSockets {max_sockets}"),
            );
        }
        let per_socket = cores.saturating_mul(threads);
        if sockets.saturating_mul(per_socket) > MAX_VCPUS {
            self.causes.not_supported(
                path,
                format!("{sockets} sockets, {cores} cores and {threads} threads are more than {MAX_VCPUS} vCPUs"),
            );
        }
        if self.architecture == Architecture::Arm64 && threads > 1 {
            self.causes
                .invalid(&path.child("threads"), "arm64 has one thread per core");
        }
        Cpu {
            sockets,
            cores,
            threads,
            max_sockets: max_sockets.min(MAX_VCPUS / per_socket.max(1)).max(sockets),
            model: self.cpu_model(model.as_deref(), &path.child("model")),
            features: self.cpu_features(features, &path.child("features")),
            pinning: None,
        }
    }

    fn dedicated_only(&mut self, dedicated: bool, set: bool, path: &FieldPath, name: &str) {
        if set && !dedicated {
            self.causes
                .invalid(&path.child(name), format!("{name} needs dedicatedCpuPlacement"));
        }
    }

    /// A number of sockets, cores or threads; 0 and nothing mean 1.
    fn count(&mut self, value: Option<i64>, field: &FieldPath) -> u32 {
        let value = value.filter(|n| *n != 0).unwrap_or(1);
        u32::try_from(value).unwrap_or_else(|_| {
            self.causes
                .invalid(field, format!("{value} is not between 0 and {}", u32::MAX));
            1
        })
    }

    fn cpu_model(&mut self, model: Option<&str>, field: &FieldPath) -> CpuModel {
        match model.unwrap_or("host-model") {
            "host-model" => CpuModel::HostModel,
            "host-passthrough" => CpuModel::HostPassthrough,
            name => {
                if !text::is_token(name) {
                    self.causes.invalid(field, format!("\"{name}\" is not a CPU model"));
                }
                CpuModel::Named(name.to_owned())
            }
        }
    }

    fn cpu_features(&mut self, features: &[CPUFeature], path: &FieldPath) -> Vec<(String, String)> {
        let mut parsed: Vec<(String, String)> = Vec::new();
        for (i, CPUFeature { name, policy }) in features.iter().enumerate() {
            let path = path.index(i);
            if !text::is_token(name) {
                self.causes
                    .invalid(&path.child("name"), format!("\"{name}\" is not a CPU feature"));
            } else if parsed.iter().any(|(other, _)| other == name) {
                self.causes
                    .duplicate(&path.child("name"), format!("feature {name} is listed twice"));
            }
            let policy = policy.as_deref().filter(|p| !p.is_empty()).unwrap_or("require");
            self.causes.one_of(&path.child("policy"), policy, &POLICIES);
            parsed.push((name.clone(), policy.to_owned()));
        }
        parsed
    }
}
