//! `spec.domain.cpu`.

use std::collections::BTreeSet;

use ferrovirt_api::v1::{CPU, CPUFeature, NUMA, Realtime};

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
                format!("{sockets} sockets, {cores} cores and {threads} threads are more than {MAX_VCPUS} vCPUs: more need an IOMMU, which machines do not have yet"),
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
            realtime: self.realtime(
                realtime.as_ref(),
                numa.as_ref(),
                sockets.saturating_mul(per_socket),
                path,
            ),
        }
    }

    fn dedicated_only(&mut self, dedicated: bool, set: bool, path: &FieldPath, name: &str) {
        if set && !dedicated {
            self.causes
                .invalid(&path.child(name), format!("{name} needs dedicatedCpuPlacement"));
        }
    }

    /// The vCPUs that are real-time: all, or those of the mask.
    fn realtime(&mut self, realtime: Option<&Realtime>, numa: Option<&NUMA>, vcpus: u32, path: &FieldPath) -> Vec<u32> {
        let Some(Realtime { mask }) = realtime else {
            return Vec::new();
        };
        let path = path.child("realtime");
        if numa.is_none_or(|numa| numa.guest_mapping_passthrough.is_none()) {
            self.causes
                .invalid(&path, "realtime needs numa.guestMappingPassthrough");
        }
        let Some(mask) = mask.as_deref().filter(|m| !m.trim().is_empty()) else {
            return (0..vcpus.min(MAX_VCPUS)).collect();
        };
        match cpu_mask(mask) {
            Some(list) if !list.is_empty() && list.iter().all(|cpu| *cpu < vcpus) => list.into_iter().collect(),
            Some(list) => {
                let message = if list.is_empty() {
                    format!("\"{mask}\" leaves no vCPU")
                } else {
                    format!("\"{mask}\" has more vCPUs than the guest's {vcpus}")
                };
                self.causes.invalid(&path.child("mask"), message);
                Vec::new()
            }
            None => {
                self.causes.invalid(
                    &path.child("mask"),
                    format!("\"{mask}\" is not a list of vCPUs such as 0-3,^1"),
                );
                Vec::new()
            }
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

/// `0-3,6,^1`: numbers and ranges, less those after `^`, wherever they stand.
fn cpu_mask(mask: &str) -> Option<BTreeSet<u32>> {
    let number = |text: &str| text.parse().ok().filter(|n| *n < MAX_VCPUS && !text.starts_with('+'));
    let (mut with, mut without) = (BTreeSet::new(), BTreeSet::new());
    for part in mask.split(',') {
        let part = part.trim();
        let (into, range) = match part.strip_prefix('^') {
            Some(range) => (&mut without, range),
            None => (&mut with, part),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        into.extend(first..=last);
    }
    Some(&with - &without)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        for (mask, cpus) in [
            ("0", Some(vec![0])),
            ("0-3,^1", Some(vec![0, 2, 3])),
            ("^1,0-3", Some(vec![0, 2, 3])),
            ("5, 1-2", Some(vec![1, 2, 5])),
            ("0-5,^2-4", Some(vec![0, 1, 5])),
            ("^0", Some(vec![])),
            ("", None),
            ("3-1", None),
            ("a", None),
            ("1,", None),
            ("+1", None),
            ("0-4294967295", None),
        ] {
            assert_eq!(cpu_mask(mask).map(|set| set.into_iter().collect()), cpus, "{mask}");
        }
    }
}
