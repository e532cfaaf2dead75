//! The guest's clock and timers.

use ferrovirt_core::machine::{Clock, Machine};

use crate::xml::{Element, el};

pub(crate) fn clock(machine: &Machine) -> Element {
    let clock = match &machine.clock {
        Clock::Utc(0) => el("clock").attr("offset", "utc"),
        Clock::Utc(seconds) => el("clock")
            .attr("offset", "variable")
            .attr("adjustment", seconds)
            .attr("basis", "utc"),
        Clock::Timezone(zone) => el("clock").attr("offset", "timezone").attr("timezone", zone),
    };
    clock.children(machine.timers.iter().map(|timer| {
        el("timer")
            .attr("name", timer.name)
            .attr_if("track", timer.track.as_deref())
            .attr_if("tickpolicy", timer.tick_policy.as_deref())
            .attr("present", if timer.present { "yes" } else { "no" })
    }))
}
