//! Threads that serve disks beside QEMU's main loop.

use ferrovirt_core::machine::Machine;

use crate::xml::{Element, el};

pub(crate) fn count(machine: &Machine) -> Option<Element> {
    (machine.io_threads > 0).then(|| el("iothreads").text(machine.io_threads))
}

/// One thread is an attribute of the disk's driver, several are a list below it.
pub(crate) fn driver(driver: Element, threads: &[u32]) -> Element {
    match threads {
        [] => driver,
        [one] => driver.attr("iothread", one),
        many => driver.child(el("iothreads").children(many.iter().map(|id| el("iothread").attr("id", id)))),
    }
}
