//! The memory balloon.

use ferrovirt_core::machine::Machine;

use crate::features::on_off;
use crate::virtio;
use crate::xml::{Element, el};

pub(crate) fn balloon(machine: &Machine) -> Element {
    if !machine.mem_balloon {
        return el("memballoon").attr("model", "none");
    }
    let period = machine.mem_balloon_stats_period;
    el("memballoon")
        .attr("model", virtio(machine))
        .attr("freePageReporting", on_off(machine.free_page_reporting))
        .children((period > 0).then(|| el("stats").attr("period", period)))
}
