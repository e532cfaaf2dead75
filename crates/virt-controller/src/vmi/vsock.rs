//! Context IDs of guests' sockets: each VMI that has such sockets has one of its own in the whole cluster, so that it
//! keeps it wherever its guest goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use ferrovirt_api::v1::VirtualMachineInstance;
use uuid::Uuid;

use crate::cache::Cache;

/// Below are the hypervisor, the guest itself and the host (vsock(7)).
const FIRST: u32 = 3;
/// Above is the one that means any.
const LAST: u32 = u32::MAX - 1;

/// IDs that were given and whose VMIs do not show them yet.
#[derive(Debug, Default)]
pub struct Cids(Mutex<BTreeMap<String, u32>>);

impl Cids {
    /// The context ID of a VMI: the one of its status, or a new one. `None`: it has no such sockets.
    ///
    /// Guarantees: no two VMIs have the same one, however many are asked for at the same time.
    pub fn of(&self, vmi: &VirtualMachineInstance, all: &Cache<VirtualMachineInstance>) -> Option<u32> {
        if vmi.spec.domain.devices.autoattach_vsock != Some(true) {
            return None;
        }
        if let Some(cid) = shown(vmi) {
            return Some(cid);
        }
        let uid = vmi.metadata.uid.clone()?;
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = all.all();
        Some(give(&mut given, &uid, &others))
    }
}

fn shown(vmi: &VirtualMachineInstance) -> Option<u32> {
    u32::try_from(vmi.status.as_ref()?.vsockcid?).ok()
}

/// Gives one to `uid`, remembers it, and forgets those that their VMIs show, or whose VMIs are gone.
fn give(given: &mut BTreeMap<String, u32>, uid: &str, all: &[Arc<VirtualMachineInstance>]) -> u32 {
    given.retain(|other, _| {
        let known = all.iter().find(|vmi| vmi.metadata.uid.as_deref() == Some(other));
        known.is_some_and(|vmi| shown(vmi).is_none())
    });
    if let Some(cid) = given.get(uid) {
        return *cid;
    }
    let taken: BTreeSet<u32> = all
        .iter()
        .filter_map(|vmi| shown(vmi))
        .chain(given.values().copied())
        .collect();
    let cid = free(uid, &taken);
    given.insert(uid.to_owned(), cid);
    cid
}

/// The first that is free, from one on that the UID chooses: guests that come and go do not inherit one another's.
fn free(uid: &str, taken: &BTreeSet<u32>) -> u32 {
    let chosen = Uuid::parse_str(uid).map_or(FIRST, |uid| uid.as_fields().0);
    let first = chosen.clamp(FIRST, LAST);
    let mut cids = (first..=LAST).chain(FIRST..first);
    // No memory holds as many VMIs as there are IDs.
    cids.find(|cid| !taken.contains(cid)).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn vmi(uid: &str, cid: Option<u32>) -> Arc<VirtualMachineInstance> {
        let mut vmi = json!({"metadata": {"uid": uid}, "spec": {"domain": {"devices": {"autoattachVSOCK": true}}}});
        if let Some(cid) = cid {
            vmi["status"] = json!({"VSOCKCID": cid});
        }
        Arc::new(serde_json::from_value(vmi).unwrap())
    }

    fn uid(n: u32) -> String {
        Uuid::from_fields(n, 0, 0x4000, &[0x80, 0, 0, 0, 0, 0, 0, 0]).to_string()
    }

    #[test]
    fn reserved_ids_are_never_given() {
        let none = BTreeSet::new();
        for (chosen, expected) in [(0, 3), (2, 3), (3, 3), (77, 77), (u32::MAX, u32::MAX - 1)] {
            assert_eq!(free(&uid(chosen), &none), expected, "{chosen}");
        }
        assert_eq!(free("no UID", &none), 3);
        assert_eq!(
            free(&uid(u32::MAX), &[u32::MAX - 1].into()),
            3,
            "it goes on at the beginning"
        );
    }

    #[test]
    fn what_is_shown_or_gone_is_forgotten() {
        let (a, b) = (uid(5), uid(6));
        let mut given = BTreeMap::new();
        assert_eq!(give(&mut given, &a, &[vmi(&a, None)]), 5);
        assert_eq!(give(&mut given, &a, &[vmi(&a, None)]), 5, "the same again");
        assert_eq!(give(&mut given, &b, &[vmi(&a, Some(5)), vmi(&b, None)]), 6);
        assert_eq!(given.keys().collect::<Vec<_>>(), [&b]);
        assert_eq!(give(&mut given, &a, &[vmi(&a, None)]), 5);
        assert_eq!(given.keys().collect::<Vec<_>>(), [&a]);
    }

    proptest! {
        /// VMIs ask, show what they got, and go, in any order; few UIDs, so that many ask for the same ID.
        #[test]
        fn no_two_have_the_same(steps in proptest::collection::vec((0_u32..40, 0..3), 1..200)) {
            let mut given = BTreeMap::new();
            // UID → what it was given, and whether its status shows it.
            let mut alive: BTreeMap<String, (u32, bool)> = BTreeMap::new();
            for (n, step) in steps {
                // Ten VMIs of each chosen ID.
                let name = Uuid::from_fields(n % 4 + 3, 0, 0x4000, &[0x80, 0, 0, 0, 0, 0, 0, u8::try_from(n).unwrap()]).to_string();
                match step {
                    0 if !alive.contains_key(&name) => {
                        let mut all: Vec<_> = alive
                            .iter()
                            .map(|(uid, (cid, shown))| vmi(uid, shown.then_some(*cid)))
                            .collect();
                        all.push(vmi(&name, None));
                        let cid = give(&mut given, &name, &all);
                        alive.insert(name, (cid, false));
                    }
                    1 => {
                        if let Some((_, shown)) = alive.get_mut(&name) {
                            *shown = true;
                        }
                    }
                    2 => {
                        alive.remove(&name);
                    }
                    _ => {}
                }
                let cids: BTreeSet<_> = alive.values().map(|(cid, _)| *cid).collect();
                prop_assert_eq!(cids.len(), alive.len());
            }
        }
    }
}
