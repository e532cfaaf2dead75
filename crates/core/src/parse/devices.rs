//! `spec.domain.devices`, but for disks and interfaces.

use ferrovirt_api::v1::{
    Devices, Diag288Watchdog, I6300ESBWatchdog, Input as WireInput, PanicDevice, SoundDevice, TPMDevice, VideoDevice,
    Watchdog as WireWatchdog,
};

use super::{Cx, on, text};
use crate::cause::FieldPath;
use crate::config::{GATE_DOWNWARD_METRICS, GATE_VSOCK};
use crate::machine::{Architecture, Input, Machine, Sound, Tpm, Watchdog};

impl Cx<'_> {
    pub(super) fn devices(&mut self, devices: &Devices, machine: &mut Machine, path: &FieldPath) {
        let path = &path.child("devices");
        let Devices {
            autoattach_graphics_device,
            // Both were turned into a device by the defaults.
            autoattach_input_device: _,
            autoattach_pod_interface: _,
            autoattach_mem_balloon,
            autoattach_serial_console,
            autoattach_vsock,
            block_multi_queue,
            client_passthrough,
            // Nothing is reserved for hotplug, so there is nothing to leave out.
            disable_hotplug: _,
            disks: _,
            downward_metrics,
            // Joined with the volumes, when those are known.
            filesystems: _,
            // Joined with the resource claims.
            gpus: _,
            host_devices: _,
            inputs,
            interfaces: _,
            log_serial_console,
            network_interface_multiqueue,
            panic_devices,
            rng,
            sound,
            tpm,
            use_virtio_transitional,
            video,
            watchdog,
        } = devices;
        machine.vsock = on(*autoattach_vsock);
        if machine.vsock {
            self.gate(GATE_VSOCK, &path.child("autoattachVSOCK"));
        }
        machine.downward_metrics = downward_metrics.is_some();
        if machine.downward_metrics {
            self.gate(GATE_DOWNWARD_METRICS, &path.child("downwardMetrics"));
        }
        machine.graphics = autoattach_graphics_device.unwrap_or(true);
        machine.mem_balloon = autoattach_mem_balloon.unwrap_or(true);
        machine.serial_console = autoattach_serial_console.unwrap_or(true);
        machine.log_serial_console =
            machine.serial_console && log_serial_console.unwrap_or(!self.config.disable_serial_console_log);
        machine.block_multi_queue = on(*block_multi_queue);
        machine.network_multi_queue = on(*network_interface_multiqueue);
        machine.rng = rng.is_some();
        machine.sound = self.sound(sound.as_ref(), &path.child("sound"));
        machine.tpm = self.tpm(tpm.as_ref(), &path.child("tpm"));
        machine.usb_redirection = client_passthrough.is_some();
        if machine.usb_redirection && self.architecture == Architecture::S390x {
            let field = path.child("clientPassthrough");
            self.causes.not_supported(&field, "s390x has no USB");
        }
        machine.virtio_transitional = on(*use_virtio_transitional);
        machine.inputs = self.inputs(inputs, &path.child("inputs"));
        machine.panic_devices = self.panic_devices(panic_devices, &path.child("panicDevices"));
        machine.video = self.video(video.as_ref(), machine.graphics, &path.child("video"));
        machine.watchdog = self.watchdog(watchdog.as_ref(), &path.child("watchdog"));
    }

    fn inputs(&mut self, inputs: &[WireInput], path: &FieldPath) -> Vec<Input> {
        let mut parsed: Vec<Input> = Vec::new();
        for (i, WireInput { bus, name, r#type }) in inputs.iter().enumerate() {
            let path = path.index(i);
            let bus = bus.as_deref().unwrap_or("usb");
            self.causes.one_of(&path.child("bus"), bus, &["usb", "virtio"]);
            self.causes.one_of(&path.child("type"), r#type, &["tablet"]);
            self.device_name(name, &path.child("name"));
            if parsed.iter().any(|other| other.name == *name) {
                self.causes
                    .duplicate(&path.child("name"), format!("another input has the name \"{name}\""));
            }
            parsed.push(Input {
                bus: bus.to_owned(),
                kind: r#type.clone(),
                name: name.clone(),
            });
        }
        parsed
    }

    /// Names become aliases in the domain.
    pub(super) fn device_name(&mut self, name: &str, field: &FieldPath) {
        if name.is_empty() {
            self.causes.required(field, "a name is needed");
        } else if !text::is_interface_name(name) {
            self.causes.invalid(
                field,
                format!("\"{name}\" has characters other than letters, digits, _ and -"),
            );
        }
    }

    fn panic_devices(&mut self, devices: &[PanicDevice], path: &FieldPath) -> Vec<String> {
        // The first is what a device has that names none.
        let known: &[&str] = match self.architecture {
            Architecture::Amd64 => &["isa", "hyperv", "pvpanic"],
            Architecture::Arm64 => &["pvpanic"],
            Architecture::S390x => &[],
        };
        let Some(default) = known.first() else {
            if !devices.is_empty() {
                self.causes.not_supported(path, "s390x has no panic devices");
            }
            return Vec::new();
        };
        let mut models = Vec::new();
        for (i, PanicDevice { model }) in devices.iter().enumerate() {
            let model = model.as_deref().filter(|m| !m.is_empty()).unwrap_or(default);
            self.causes.one_of(&path.index(i).child("model"), model, known);
            models.push(model.to_owned());
        }
        models
    }

    fn tpm(&mut self, tpm: Option<&TPMDevice>, path: &FieldPath) -> Option<Tpm> {
        let TPMDevice { enabled, persistent } = tpm?;
        let enabled = enabled.unwrap_or(true);
        if enabled && self.architecture == Architecture::S390x {
            self.causes.not_supported(path, "s390x has no TPM");
        }
        let persistent = on(*persistent);
        enabled.then_some(Tpm { persistent })
    }

    fn sound(&mut self, sound: Option<&SoundDevice>, path: &FieldPath) -> Option<Sound> {
        let SoundDevice { model, name } = sound?;
        self.device_name(name, &path.child("name"));
        let model = model.as_deref().filter(|m| !m.is_empty()).unwrap_or("ich9");
        self.causes.one_of(&path.child("model"), model, &["ac97", "ich9"]);
        if self.architecture == Architecture::S390x {
            self.causes.not_supported(path, "s390x has no sound cards");
        }
        Some(Sound {
            name: name.clone(),
            model: model.to_owned(),
        })
    }

    fn video(&mut self, video: Option<&VideoDevice>, graphics: bool, path: &FieldPath) -> Option<String> {
        let VideoDevice { r#type } = video?;
        let field = path.child("type");
        if !graphics {
            self.causes.invalid(path, "a video card needs autoattachGraphicsDevice");
        }
        let model = r#type.as_deref().unwrap_or_default();
        let models: &[&str] = match self.architecture {
            Architecture::Amd64 => &["vga", "cirrus", "virtio", "ramfb", "bochs"],
            Architecture::Arm64 => &["virtio", "ramfb"],
            Architecture::S390x => &["virtio"],
        };
        self.causes.one_of(&field, model, models);
        Some(model.to_owned())
    }

    fn watchdog(&mut self, watchdog: Option<&WireWatchdog>, path: &FieldPath) -> Option<Watchdog> {
        let WireWatchdog {
            diag288,
            i6300esb,
            name,
        } = watchdog?;
        self.device_name(name, &path.child("name"));
        let (model, action) = match (i6300esb, diag288) {
            (Some(_), Some(_)) => {
                self.causes.invalid(path, "i6300esb and diag288 exclude each other");
                return None;
            }
            (Some(I6300ESBWatchdog { action }), None) => ("i6300esb", action),
            (None, Some(Diag288Watchdog { action })) => ("diag288", action),
            (None, None) => {
                self.causes
                    .required(path, "a watchdog needs a model: i6300esb or diag288");
                return None;
            }
        };
        let fits = match self.architecture {
            Architecture::Amd64 => "i6300esb",
            Architecture::S390x => "diag288",
            Architecture::Arm64 => "",
        };
        let field = path.child(model);
        if model != fits {
            let architecture = self.architecture.name();
            self.causes
                .not_supported(&field, format!("{architecture} has no {model} watchdog"));
        }
        let action = action.as_deref().filter(|a| !a.is_empty()).unwrap_or("reset");
        self.causes
            .one_of(&field.child("action"), action, &["poweroff", "reset", "shutdown"]);
        Some(Watchdog {
            name: name.clone(),
            model,
            action: action.to_owned(),
        })
    }
}
