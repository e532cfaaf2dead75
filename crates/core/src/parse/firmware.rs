//! `spec.domain.firmware`, `features`, `clock` and `chassis`.

use ferrovirt_api::v1::{
    ACPI, BIOS, Bootloader, Chassis as WireChassis, Clock as WireClock, ClockOffsetUTC, EFI, FeatureAPIC, FeatureKVM,
    FeatureState, Features, Firmware, HPETTimer, HypervTimer, KVMTimer, PITTimer, RTCTimer, Timer as WireTimer, Volume,
};
use uuid::Uuid;

use super::{Cx, on, text};
use crate::cause::FieldPath;
use crate::machine::{AcpiTable, Architecture, Boot, Chassis, Clock, Machine, Timer};

impl Cx<'_> {
    pub(super) fn firmware(&mut self, firmware: Option<&Firmware>, machine: &mut Machine, path: &FieldPath) {
        let Some(Firmware {
            // Its volumes are not known yet.
            acpi: _,
            bootloader,
            kernel_boot,
            serial,
            uuid,
        }) = firmware
        else {
            return;
        };
        let path = &path.child("firmware");
        machine.kernel_boot = kernel_boot.as_ref().and_then(|boot| self.kernel_boot(boot, path));
        if let Some(uuid) = uuid.as_deref().filter(|u| !u.is_empty()) {
            match Uuid::try_parse(uuid) {
                Ok(uuid) => machine.uuid = uuid,
                Err(_) => self
                    .causes
                    .invalid(&path.child("uuid"), format!("\"{uuid}\" is not a UUID")),
            }
        }
        if let Some(serial) = serial.as_deref().filter(|s| !s.is_empty()) {
            self.serial(serial, &path.child("serial"));
            machine.serial = Some(serial.to_owned());
        }
        let path = path.child("bootloader");
        machine.boot = self.boot(bootloader.as_ref(), machine.smm, &path);
        if matches!(machine.boot, Boot::Efi { .. }) && !machine.acpi {
            self.causes.invalid(&path.child("efi"), "efi needs features.acpi");
        }
    }

    pub(super) fn acpi_tables(
        &mut self,
        firmware: Option<&Firmware>,
        volumes: &[Volume],
        acpi: bool,
        path: &FieldPath,
    ) -> Vec<AcpiTable> {
        let Some(ACPI {
            msdm_name_ref,
            slic_name_ref,
        }) = firmware.and_then(|firmware| firmware.acpi.as_ref())
        else {
            return Vec::new();
        };
        let path = path.child("domain.firmware.acpi");
        if !acpi {
            self.causes.invalid(&path, "ACPI tables need features.acpi");
        }
        if self.architecture != Architecture::Amd64 {
            self.causes
                .not_supported(&path, "only Windows on amd64 looks for these tables");
        }
        let tables = [
            ("slic", "slicNameRef", slic_name_ref),
            ("msdm", "msdmNameRef", msdm_name_ref),
        ];
        let mut parsed = Vec::new();
        for (kind, field, volume) in tables {
            let Some(volume) = volume.clone().filter(|v| !v.is_empty()) else {
                continue;
            };
            if !volumes.iter().any(|v| v.name == volume && v.secret.is_some()) {
                self.causes.invalid(
                    &path.child(field),
                    format!("there is no volume \"{volume}\" of a Secret"),
                );
            }
            parsed.push(AcpiTable { kind, volume });
        }
        if parsed.is_empty() {
            self.causes.invalid(&path, "needs slicNameRef, msdmNameRef or both");
        }
        parsed
    }

    /// Whether there is system management mode, the VMI says.
    pub(super) fn firmware_of_preset(&mut self, firmware: Option<&Firmware>, path: &FieldPath) {
        let Some(firmware) = firmware else { return };
        let path = path.child("firmware");
        self.boot(firmware.bootloader.as_ref(), true, &path.child("bootloader"));
        if let Some(boot) = &firmware.kernel_boot {
            self.kernel_boot(boot, &path);
        }
    }

    fn boot(&mut self, bootloader: Option<&Bootloader>, smm: bool, path: &FieldPath) -> Boot {
        let default = Bootloader::default();
        let Bootloader { bios, efi } = bootloader.unwrap_or(&default);
        if bios.is_some() && efi.is_some() {
            self.causes.invalid(path, "bios and efi exclude each other");
        }
        if self.architecture == Architecture::Arm64 && bios.is_some() {
            self.causes.invalid(&path.child("bios"), "arm64 boots by efi only");
        }
        match (efi, bios) {
            (
                Some(EFI {
                    persistent,
                    secure_boot,
                }),
                _,
            ) => {
                let path = path.child("efi");
                let secure_boot = secure_boot.unwrap_or(true);
                if secure_boot && !smm {
                    self.causes.invalid(
                        &path.child("secureBoot"),
                        "secure boot needs features.smm; enable it, or set secureBoot to false",
                    );
                }
                Boot::Efi {
                    secure_boot,
                    persistent: on(*persistent),
                }
            }
            (None, Some(BIOS { use_serial })) => Boot::Bios {
                use_serial: on(*use_serial),
            },
            (None, None) => Boot::Bios { use_serial: false },
        }
    }

    pub(super) fn serial(&mut self, serial: &str, field: &FieldPath) {
        if serial.len() > 256 {
            self.causes.invalid(field, "is longer than 256 characters");
        } else if !text::is_serial(serial) {
            self.causes.invalid(
                field,
                format!("\"{serial}\" has characters other than letters, digits and _.+-"),
            );
        }
    }

    pub(super) fn features(
        &mut self,
        features: Option<&Features>,
        clock: Option<&WireClock>,
        machine: &mut Machine,
        path: &FieldPath,
    ) {
        let Some(features) = features else { return };
        let path = &path.child("features");
        let hyperv_clock = clock.and_then(|c| c.timer.as_ref()?.hyperv.as_ref());
        let hyperv_clock = hyperv_clock.is_some_and(|HypervTimer { present }| present.unwrap_or(true));
        machine.hyperv = self.hyperv(features, hyperv_clock, path);
        let Features {
            acpi,
            apic,
            hyperv: _,
            hyperv_passthrough: _,
            kvm,
            pvspinlock,
            smm,
        } = features;
        let enabled = |state: &FeatureState| state.enabled.unwrap_or(true);
        machine.acpi = acpi.as_ref().is_none_or(enabled);
        if let Some(FeatureAPIC {
            enabled,
            end_of_interrupt,
        }) = apic
        {
            machine.apic = enabled.unwrap_or(true);
            machine.apic_eoi = *end_of_interrupt;
        }
        if let Some(FeatureKVM { hidden }) = kvm {
            machine.kvm_hidden = on(*hidden);
        }
        machine.pv_spinlock = pvspinlock.as_ref().map(enabled);
        machine.smm = smm.as_ref().is_some_and(enabled);
        if machine.smm && self.architecture != Architecture::Amd64 {
            self.causes.not_supported(&path.child("smm"), "only amd64 has SMM");
        }
    }

    pub(super) fn clock(&mut self, clock: Option<&WireClock>, machine: &mut Machine, path: &FieldPath) {
        let Some(WireClock { timer, timezone, utc }) = clock else {
            return;
        };
        let path = &path.child("clock");
        let timezone = timezone.as_deref().filter(|t| !t.is_empty());
        match (utc, timezone) {
            (Some(_), Some(_)) => self.causes.invalid(path, "utc and timezone exclude each other"),
            (Some(ClockOffsetUTC { offset_seconds }), None) => {
                machine.clock = Clock::Utc(offset_seconds.unwrap_or_default());
            }
            (None, Some(zone)) => {
                // Cities are written with spaces, their files are not.
                let zone = zone.replace(' ', "_");
                let known = |c: char| c.is_ascii_alphanumeric() || "/_+-".contains(c);
                if !zone.chars().all(known) || zone.split('/').any(|part| part.split('_').any(str::is_empty)) {
                    self.causes.invalid(
                        &path.child("timezone"),
                        format!("\"{zone}\" is not a time zone such as Europe/Berlin"),
                    );
                }
                machine.clock = Clock::Timezone(zone);
            }
            (None, None) => {}
        }
        if let Some(timer) = timer {
            machine.timers = self.timers(timer, &path.child("timer"));
        }
    }

    fn timers(&mut self, timer: &WireTimer, path: &FieldPath) -> Vec<Timer> {
        let WireTimer {
            hpet,
            hyperv,
            kvm,
            pit,
            rtc,
        } = timer;
        let mut timers = Vec::new();
        let mut add = |name, present: &Option<bool>, policy: &Option<String>, track: &Option<String>| {
            timers.push(Timer {
                name,
                present: present.unwrap_or(true),
                tick_policy: policy.clone().filter(|p| !p.is_empty()),
                track: track.clone().filter(|t| !t.is_empty()),
            });
        };
        if let Some(RTCTimer {
            present,
            tick_policy,
            track,
        }) = rtc
        {
            add("rtc", present, tick_policy, track);
        }
        if let Some(PITTimer { present, tick_policy }) = pit {
            add("pit", present, tick_policy, &None);
        }
        if let Some(HPETTimer { present, tick_policy }) = hpet {
            add("hpet", present, tick_policy, &None);
        }
        if let Some(KVMTimer { present }) = kvm {
            add("kvmclock", present, &None, &None);
        }
        if let Some(HypervTimer { present }) = hyperv {
            add("hypervclock", present, &None, &None);
        }
        for timer in &timers {
            // What QEMU can do with lost ticks of each timer.
            let policies: &[&str] = match timer.name {
                "rtc" => &["delay", "catchup"],
                "pit" => &["delay", "discard"],
                _ => &["delay"],
            };
            let path = path.child(timer.name);
            if let Some(policy) = &timer.tick_policy {
                self.causes.one_of(&path.child("tickPolicy"), policy, policies);
            }
            if let Some(track) = &timer.track {
                self.causes.one_of(&path.child("track"), track, &["guest", "wall"]);
            }
        }
        timers
    }

    pub(super) fn chassis(&mut self, chassis: Option<&WireChassis>, path: &FieldPath) -> Chassis {
        let Some(WireChassis {
            asset,
            manufacturer,
            serial,
            sku,
            version,
        }) = chassis
        else {
            return Chassis::default();
        };
        let path = path.child("chassis");
        let mut take = |value: &Option<String>, name: &str| {
            let value = value.clone().filter(|v| !v.is_empty())?;
            if !text::is_printable(&value) {
                self.causes.invalid(&path.child(name), "has control characters");
            }
            Some(value)
        };
        Chassis {
            asset: take(asset, "asset"),
            manufacturer: take(manufacturer, "manufacturer"),
            serial: take(serial, "serial"),
            sku: take(sku, "sku"),
            version: take(version, "version"),
        }
    }
}
