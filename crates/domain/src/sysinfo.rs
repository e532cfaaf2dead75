//! SMBIOS strings.

use ferrovirt_core::machine::{Architecture, Chassis, Machine, Smbios};

use crate::xml::{Element, el};

fn entries(name: &'static str, entries: &[(&str, Option<&str>)]) -> Option<Element> {
    let entries: Vec<Element> = entries
        .iter()
        .filter_map(|(name, value)| Some(el("entry").attr("name", name).text((*value)?)))
        .collect();
    (!entries.is_empty()).then(|| el(name).children(entries))
}

/// Nothing where the architecture has no SMBIOS.
pub(crate) fn sysinfo(machine: &Machine) -> Option<Element> {
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
