//! `spec.domain.cpu.dedicatedCpuPlacement` and what needs it.

use std::collections::BTreeMap;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{CPU, NUMA, ResourceRequirements};

use super::{Cx, on};
use crate::cause::FieldPath;
use crate::machine::{Machine, Pinning};

/// More threads are on no core that we know of.
const MAX_THREADS: u32 = 2;

impl Cx<'_> {
    /// What a guest has to itself, and what that changes. `machine` has its processor's topology and its memory.
    pub(super) fn own(
        &mut self,
        cpu: Option<&CPU>,
        resources: Option<&ResourceRequirements>,
        machine: &mut Machine,
        path: &FieldPath,
    ) {
        machine.cpu.pinning = self.pinning(cpu, resources, machine, path);
        let pinned = machine.cpu.pinning.is_some();
        machine.guaranteed = pinned || resources.is_some_and(no_more_than_requested);
        // What it would give back nobody else may have, and taking it again would make it wait.
        machine.free_page_reporting &= !pinned && machine.memory.huge_page.is_none();
    }

    fn pinning(
        &mut self,
        cpu: Option<&CPU>,
        resources: Option<&ResourceRequirements>,
        machine: &Machine,
        path: &FieldPath,
    ) -> Option<Pinning> {
        let cpu = cpu.filter(|cpu| on(cpu.dedicated_cpu_placement))?;
        let field = path.child("cpu");
        if !self.config.dedicated_cpus {
            self.causes.not_supported(
                &field.child("dedicatedCpuPlacement"),
                "guests on one machine share its CPUs; a cluster's kubelets can give them away",
            );
        }
        if machine.cpu.threads > MAX_THREADS {
            let message = format!("dedicated CPUs have at most {MAX_THREADS} threads per core");
            self.causes.invalid(&field.child("threads"), message);
        }
        if let Some(resources) = resources {
            self.dedicated_resources(resources, machine.cpu.vcpus(), &path.child("resources"));
        }
        let numa = cpu.numa.as_ref();
        let host_numa = numa.is_some_and(
            |NUMA {
                 guest_mapping_passthrough,
             }| guest_mapping_passthrough.is_some(),
        );
        let numa = field.child("numa.guestMappingPassthrough");
        if host_numa && machine.memory.huge_page.is_none() {
            self.causes
                .invalid(&numa, "guestMappingPassthrough needs memory.hugepages");
        }
        if host_numa && machine.memory.max_guest.is_some() {
            self.causes
                .invalid(&numa, "guestMappingPassthrough and memory.maxGuest exclude each other");
        }
        Some(Pinning {
            isolate_emulator: on(cpu.isolate_emulator_thread),
            // Only an annotation says so.
            even: false,
            host_numa,
        })
    }

    /// The kubelet only gives CPUs away to pods that ask for whole ones and say how much of everything they need.
    fn dedicated_resources(&mut self, resources: &ResourceRequirements, vcpus: u32, path: &FieldPath) {
        let amount = |side: &BTreeMap<String, Quantity>, name| side.get(name).and_then(|q| q.millis().ok());
        for (name, side) in [("requests", &resources.requests), ("limits", &resources.limits)] {
            if let Some(millis) = amount(side, "cpu").filter(|m| *m != i128::from(vcpus) * 1000) {
                self.causes.invalid(
                    &path.child(name).child("cpu"),
                    format!("dedicated CPUs are as many as the guest's {vcpus}, not {millis}m"),
                );
            }
        }
        let (request, limit) = (
            amount(&resources.requests, "memory"),
            amount(&resources.limits, "memory"),
        );
        if let (Some(request), Some(limit)) = (request, limit)
            && request != limit
        {
            self.causes.invalid(
                &path.child("limits.memory"),
                "with dedicated CPUs, requests and limits of memory are the same",
            );
        }
    }
}

/// Whether a pod of the class Guaranteed is asked for: what is limited and not requested is requested, too.
fn no_more_than_requested(resources: &ResourceRequirements) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let amount = |side: &BTreeMap<String, Quantity>| side.get(*name).and_then(|quantity| quantity.millis().ok());
        let (request, limit) = (amount(&resources.requests), amount(&resources.limits));
        limit.is_some_and(|limit| limit > 0 && request.is_none_or(|request| request == limit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_limited_to_its_request_is_guaranteed() {
        for (resources, guaranteed) in [
            (
                "{requests: {cpu: '1', memory: 1Gi}, limits: {cpu: 1000m, memory: 1024Mi}}",
                true,
            ),
            ("{limits: {cpu: '1', memory: 1Gi}}", true),
            ("{requests: {memory: 1Gi}, limits: {cpu: '1', memory: 1Gi}}", true),
            (
                "{requests: {cpu: '1', memory: 1Gi}, limits: {cpu: '2', memory: 1Gi}}",
                false,
            ),
            (
                "{requests: {cpu: '1', memory: 1Gi}, limits: {cpu: '1', memory: 2Gi}}",
                false,
            ),
            ("{requests: {cpu: '1', memory: 1Gi}, limits: {memory: 1Gi}}", false),
            ("{requests: {cpu: '1', memory: 1Gi}}", false),
            ("{limits: {cpu: '0', memory: 1Gi}}", false),
            ("{}", false),
        ] {
            let read: ResourceRequirements = serde_yaml_ng::from_str(resources).unwrap();
            assert_eq!(no_more_than_requested(&read), guaranteed, "{resources}");
        }
    }
}
