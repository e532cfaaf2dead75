//! Machine type, firmware and how it boots.

use ferrovirt_core::machine::{AcpiTable, Architecture, Boot, LaunchSecurity, Machine};

use crate::facts::{Facts, MissingFact};
use crate::xml::{Element, el};

/// Time to connect and choose a boot device when a machine starts paused.
const MENU_MILLIS: u32 = 10_000;

fn acpi_tables(machine: &Machine, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    if machine.acpi_tables.is_empty() {
        return Ok(None);
    }
    let tables: Result<Vec<Element>, MissingFact> = machine
        .acpi_tables
        .iter()
        .map(|AcpiTable { kind, volume }| {
            let missing = || MissingFact::AcpiTable {
                kind,
                volume: volume.clone(),
            };
            let file = facts.acpi_tables.get(kind).ok_or_else(missing)?;
            Ok(el("table").attr("type", kind).text(file.display()))
        })
        .collect();
    Ok(Some(el("acpi").children(tables?)))
}

pub(crate) fn os(machine: &Machine, facts: &Facts) -> Result<Element, MissingFact> {
    let kind = el("type")
        .attr("arch", machine.architecture.qemu_name())
        .attr("machine", &machine.machine_type)
        .text("hvm");
    let mut os = el("os").child(kind);
    match machine.boot {
        Boot::Bios { use_serial } => {
            if use_serial && machine.serial_console {
                os = os.child(el("bios").attr("useserial", "yes"));
            }
        }
        Boot::Efi { .. }
            if machine
                .launch_security
                .as_ref()
                .is_some_and(LaunchSecurity::is_firmware_stateless) =>
        {
            let files = facts.firmware.as_ref().ok_or(MissingFact::Firmware)?;
            let loader = el("loader")
                .attr("type", "rom")
                .attr("stateless", "yes")
                .text(files.code.display());
            os = os.child(loader);
        }
        Boot::Efi { secure_boot, .. } => {
            let files = facts.firmware.as_ref().ok_or(MissingFact::Firmware)?;
            let loader = el("loader")
                .attr("readonly", "yes")
                .attr("secure", if secure_boot { "yes" } else { "no" })
                .attr("type", "pflash")
                .text(files.code.display());
            let nvram = el("nvram")
                .attr("template", files.vars_template.display())
                .text(files.nvram.display());
            os = os.child(loader).child(nvram);
        }
    }
    if let Some(boot) = &machine.kernel_boot {
        for (name, wanted, file) in [
            ("kernel", &boot.kernel, &facts.kernel),
            ("initrd", &boot.initrd, &facts.initrd),
        ] {
            if wanted.is_some() {
                let file = file.as_ref().ok_or(MissingFact::KernelBoot(name))?;
                os = os.child(el(name).text(file.display()));
            }
        }
        os = os.children(boot.args.as_ref().map(|args| el("cmdline").text(args)));
    }
    os = os.children(acpi_tables(machine, facts)?);
    if machine.start_paused {
        os = os.child(el("bootmenu").attr("enable", "yes").attr("timeout", MENU_MILLIS));
    }
    if machine.architecture != Architecture::S390x {
        os = os.child(el("smbios").attr("mode", "sysinfo"));
    }
    Ok(os)
}
