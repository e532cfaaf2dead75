//! Directories that the guest shares by virtiofs, each served by a process of its own.

use ferrovirt_core::machine::Machine;

use crate::alias;
use crate::facts::{Facts, MissingFact};
use crate::xml::{Element, el};

/// Requests that may wait at once.
const QUEUE: u32 = 1024;

/// They need memory that can be shared, see [`crate::memory::backing`].
pub(crate) fn filesystems(machine: &Machine, facts: &Facts) -> Result<Vec<Element>, MissingFact> {
    let element = |name: &String| {
        let socket = facts.filesystem_sockets.get(name);
        let socket = socket.ok_or_else(|| MissingFact::Filesystem(name.clone()))?;
        Ok(el("filesystem")
            .attr("type", "mount")
            .child(el("driver").attr("type", "virtiofs").attr("queue", QUEUE))
            .child(el("source").attr("socket", socket.display()))
            .child(el("target").attr("dir", name))
            .child(alias(name)))
    };
    machine.filesystems.iter().map(|share| element(&share.name)).collect()
}
