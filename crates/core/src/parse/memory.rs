//! `spec.domain.memory` and `spec.domain.resources`.

use std::collections::BTreeMap;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{Hugepages, Memory as WireMemory, ReservedOverhead, ResourceRequirements};

use super::Cx;
use crate::cause::FieldPath;
use crate::config::GATE_MEMLOCK;
use crate::machine::{Architecture, Memory};

const LEAST: i64 = 1_000_000;
const GI: i64 = 1 << 30;
const HOTPLUG_BLOCK: i64 = 2 << 20;

impl Cx<'_> {
    pub(super) fn memory(
        &mut self,
        memory: Option<&WireMemory>,
        resources: Option<&ResourceRequirements>,
        path: &FieldPath,
    ) -> Memory {
        let default = WireMemory::default();
        let WireMemory {
            guest,
            hugepages,
            max_guest,
            reserved_overhead,
        } = memory.unwrap_or(&default);
        let field = path.child("memory");
        let lockable = self.reserved_overhead(reserved_overhead.as_ref(), &field);
        let limit = self.resources(resources, path);

        let Some(guest) = guest else {
            if !self.template {
                self.causes.required(
                    &field.child("guest"),
                    "no memory requested: set memory.guest or resources.requests.memory",
                );
            }
            return Memory {
                guest: 0,
                max_guest: None,
                huge_page: None,
                lockable,
            };
        };
        let Some(guest) = self.bytes(guest, &field.child("guest")) else {
            return Memory {
                guest: 0,
                max_guest: None,
                huge_page: None,
                lockable,
            };
        };
        if guest < LEAST {
            self.causes.invalid(&field.child("guest"), "must be at least 1M");
        }
        if let Some(limit) = limit
            && guest > limit
            && !self.config.live_update
        {
            self.causes.invalid(
                &field.child("guest"),
                format!("guest memory {guest} is more than the memory limit {limit}"),
            );
        }
        let max_guest = self.max_guest(guest, max_guest.as_ref(), &field.child("maxGuest"));
        Memory {
            guest: u64::try_from(guest).unwrap_or_default(),
            max_guest,
            huge_page: self.huge_page(hugepages.as_ref(), guest, max_guest, &field),
            lockable,
        }
    }

    fn huge_page(
        &mut self,
        pages: Option<&Hugepages>,
        guest: i64,
        max_guest: Option<u64>,
        path: &FieldPath,
    ) -> Option<u64> {
        let Hugepages { page_size } = pages?;
        let field = path.child("hugepages.pageSize");
        let Some(size) = page_size.as_deref().filter(|s| !s.is_empty()) else {
            self.causes.required(&field, "huge pages need a size, such as 2Mi");
            return None;
        };
        let page = self.bytes(&Quantity(size.to_owned()), &field)?;
        let page = u64::try_from(page).ok().filter(|p| p.is_power_of_two() && *p >= 4096);
        let Some(page) = page else {
            self.causes.invalid(
                &field,
                format!("\"{size}\" is not the size of a page, such as 2Mi or 1Gi"),
            );
            return None;
        };
        let whole = |bytes: u64| bytes >= page && bytes.is_multiple_of(page);
        if !whole(u64::try_from(guest).unwrap_or_default()) || !max_guest.is_none_or(whole) {
            self.causes
                .invalid(&field, format!("the guest's memory is not a multiple of {size}"));
        }
        Some(page)
    }

    fn max_guest(&mut self, guest: i64, max: Option<&Quantity>, field: &FieldPath) -> Option<u64> {
        let max = self.bytes(max?, field)?;
        if max < guest {
            self.causes
                .invalid(field, format!("maxGuest {max} is less than guest {guest}"));
        }
        if max <= guest {
            return None;
        }
        if self.architecture == Architecture::S390x {
            self.causes.not_supported(field, "s390x has no memory hotplug");
        }
        if guest < GI {
            self.causes
                .invalid(field, "memory hotplug needs at least 1Gi of guest memory");
        }
        if guest % HOTPLUG_BLOCK != 0 || max % HOTPLUG_BLOCK != 0 {
            self.causes.invalid(field, "memory hotplug needs multiples of 2Mi");
        }
        u64::try_from(max).ok()
    }

    /// Whether memory may be locked. `addedOverhead` counts in the pod's memory request.
    fn reserved_overhead(&mut self, overhead: Option<&ReservedOverhead>, path: &FieldPath) -> bool {
        let Some(ReservedOverhead {
            added_overhead,
            mem_lock,
        }) = overhead
        else {
            return false;
        };
        let path = path.child("reservedOverhead");
        if let Some(added) = added_overhead
            && self.bytes(added, &path.child("addedOverhead")).is_some_and(|b| b < 0)
        {
            self.causes.invalid(&path.child("addedOverhead"), "is negative");
        }
        let Some(lock) = mem_lock.as_deref().filter(|m| !m.is_empty()) else {
            return false;
        };
        let field = path.child("memLock");
        let known = self.causes.one_of(&field, lock, &["Required", "NotRequired"]);
        let required = known && lock == "Required";
        if required {
            self.gate(GATE_MEMLOCK, &field);
        }
        required
    }

    /// Checks requests and limits; returns the memory limit. The pod gets them all.
    fn resources(&mut self, resources: Option<&ResourceRequirements>, path: &FieldPath) -> Option<i64> {
        let ResourceRequirements {
            limits,
            overcommit_guest_overhead: _,
            requests,
        } = resources?;
        let path = path.child("resources");
        let requested = self.amounts(requests, &path.child("requests"));
        let limited = self.amounts(limits, &path.child("limits"));
        for (name, request) in &requested {
            let field = path.child("requests").child(name);
            if let Some(limit) = limited.get(name)
                && request > limit
            {
                let (request, limit) = (&requests[*name], &limits[*name]);
                self.causes
                    .invalid(&field, format!("{request} is more than the limit {limit}"));
            }
            if *name == "memory" && (0..i128::from(LEAST) * 1000).contains(request) {
                self.causes.invalid(&field, "must be at least 1M");
            }
        }
        limits.get("memory").and_then(|l| l.bytes().ok())
    }

    fn amounts<'r>(&mut self, resources: &'r BTreeMap<String, Quantity>, path: &FieldPath) -> BTreeMap<&'r str, i128> {
        let mut amounts = BTreeMap::new();
        for (name, quantity) in resources {
            let field = path.child(name);
            match quantity.millis() {
                Err(error) => self.causes.invalid(&field, error.to_string()),
                Ok(amount) if amount < 0 => {
                    self.causes.invalid(&field, format!("{quantity} is negative"));
                }
                Ok(amount) => _ = amounts.insert(name.as_str(), amount),
            }
        }
        amounts
    }

    /// The number of bytes; a cause if it is none.
    pub(super) fn bytes(&mut self, quantity: &Quantity, field: &FieldPath) -> Option<i64> {
        match quantity.bytes() {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.causes.invalid(field, error.to_string());
                None
            }
        }
    }
}
