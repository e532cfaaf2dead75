//! What the guest reads from its firmware: SMBIOS strings, and configuration for Ignition.

use ferrovirt_core::machine::{Architecture, Chassis, Machine, Smbios};

use crate::facts::{Facts, MissingFact};
use crate::xml::{Element, el};

/// Where Ignition looks for its configuration.
const IGNITION: &str = "opt/com.coreos/config";

fn entries(name: &'static str, entries: &[(&str, Option<&str>)]) -> Option<Element> {
    let entries: Vec<Element> = entries
        .iter()
        .filter_map(|(name, value)| Some(el("entry").attr("name", name).text((*value)?)))
        .collect();
    (!entries.is_empty()).then(|| el(name).children(entries))
}

/// Strings, and files of the firmware's configuration device.
///
/// # Errors
/// The machine has configuration for Ignition, and `facts` no file with it.
pub(crate) fn sysinfo(machine: &Machine, facts: &Facts) -> Result<Vec<Element>, MissingFact> {
    let mut all: Vec<Element> = smbios(machine).into_iter().collect();
    if machine.ignition.is_some() {
        let file = facts.ignition.as_ref().ok_or(MissingFact::Ignition)?;
        let entry = el("entry").attr("name", IGNITION).attr("file", file.display());
        all.push(el("sysinfo").attr("type", "fwcfg").child(entry));
    }
    Ok(all)
}

/// Nothing where the architecture has no SMBIOS.
fn smbios(machine: &Machine) -> Option<Element> {
    if machine.architecture == Architecture::S390x {
        return None;
    }
    let Smbios {
        manufacturer,
        product,
        family,
        sku,
        version,
    } = &machine.smbios;
    let Chassis {
        asset,
        manufacturer: chassis_maker,
        serial,
        sku: chassis_sku,
        version: chassis_version,
    } = &machine.chassis;
    let uuid = machine.uuid.to_string();
    let system = entries(
        "system",
        &[
            ("manufacturer", Some(manufacturer)),
            ("product", Some(product)),
            ("version", version.as_deref()),
            ("serial", machine.serial.as_deref()),
            ("uuid", Some(&uuid)),
            ("sku", sku.as_deref()),
            ("family", Some(family)),
        ],
    );
    let board = entries(
        "baseBoard",
        &[("manufacturer", Some(manufacturer)), ("product", Some(product))],
    );
    let chassis = entries(
        "chassis",
        &[
            ("manufacturer", chassis_maker.as_deref()),
            ("version", chassis_version.as_deref()),
            ("serial", serial.as_deref()),
            ("asset", asset.as_deref()),
            ("sku", chassis_sku.as_deref()),
        ],
    );
    Some(
        el("sysinfo")
            .attr("type", "smbios")
            .children([system, board, chassis].into_iter().flatten()),
    )
}
