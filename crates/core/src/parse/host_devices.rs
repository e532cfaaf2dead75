//! `spec.domain.devices.gpus` and `hostDevices`.

use ferrovirt_api::v1::{FeatureState, GPU, HostDevice as WireHostDevice, VGPUDisplayOptions, VGPUOptions};

use super::{Cx, text};
use crate::cause::FieldPath;
use crate::config::GATE_HOST_DEVICES;
use crate::machine::{Display, HostDevice, HostDeviceList};

/// What both lists say of a device.
struct Wanted<'a> {
    list: HostDeviceList,
    name: &'a str,
    device: Option<&'a str>,
    claimed: [(&'static str, bool); 2],
    tag: Option<&'a str>,
    display: Option<Display>,
}

impl Cx<'_> {
    pub(super) fn host_devices(
        &mut self,
        gpus: &[GPU],
        host_devices: &[WireHostDevice],
        path: &FieldPath,
    ) -> Vec<HostDevice> {
        let mut parsed = Vec::new();
        for (i, gpu) in gpus.iter().enumerate() {
            let GPU {
                claim_name,
                device_name,
                name,
                request_name,
                tag,
                virtual_gpu_options,
            } = gpu;
            let wanted = Wanted {
                list: HostDeviceList::Gpu,
                name,
                device: device_name.as_deref(),
                claimed: [
                    ("claimName", claim_name.is_some()),
                    ("requestName", request_name.is_some()),
                ],
                tag: tag.as_deref(),
                display: virtual_gpu_options.as_ref().and_then(display),
            };
            self.host_device(&wanted, &mut parsed, &path.child("gpus").index(i));
        }
        let path = path.child("hostDevices");
        if !host_devices.is_empty() {
            self.gate(GATE_HOST_DEVICES, &path);
        }
        for (i, device) in host_devices.iter().enumerate() {
            let WireHostDevice {
                claim_name,
                device_name,
                name,
                request_name,
                tag,
            } = device;
            let wanted = Wanted {
                list: HostDeviceList::HostDevice,
                name,
                device: device_name.as_deref(),
                claimed: [
                    ("claimName", claim_name.is_some()),
                    ("requestName", request_name.is_some()),
                ],
                tag: tag.as_deref(),
                display: None,
            };
            self.host_device(&wanted, &mut parsed, &path.index(i));
        }
        parsed
    }

    fn host_device(&mut self, wanted: &Wanted<'_>, parsed: &mut Vec<HostDevice>, path: &FieldPath) {
        let field = path.child("name");
        self.device_name(wanted.name, &field);
        let same = |other: &HostDevice| other.list == wanted.list && other.name == wanted.name;
        if parsed.iter().any(same) {
            self.causes
                .duplicate(&field, format!("another device has the name \"{}\"", wanted.name));
        }
        self.tag(wanted.tag, &path.child("tag"));
        let resource = wanted.device.unwrap_or_default();
        let field = path.child("deviceName");
        let claimed = wanted.claimed.iter().any(|(_, set)| *set);
        self.causes.none_of(path, &wanted.claimed);
        if resource.is_empty() && !claimed {
            self.causes
                .required(&field, "a device needs the name of a resource of the nodes");
        } else if !resource.is_empty() && claimed {
            self.causes
                .invalid(path, "deviceName excludes claimName and requestName");
        } else if !resource.is_empty() && !text::is_resource_name(resource) {
            self.causes.invalid(
                &field,
                format!("\"{resource}\" is not a resource of nodes such as example.com/device"),
            );
        } else if !resource.is_empty() && !self.config.permits_device(resource) {
            self.causes.not_supported(
                &field,
                format!("\"{resource}\" is not in permittedHostDevices of the cluster's configuration"),
            );
        }
        parsed.push(HostDevice {
            name: wanted.name.to_owned(),
            list: wanted.list,
            resource: resource.to_owned(),
            tag: wanted.tag.filter(|tag| !tag.is_empty()).map(str::to_owned),
            display: wanted.display,
        });
    }
}

fn display(options: &VGPUOptions) -> Option<Display> {
    let VGPUOptions { display } = options;
    let VGPUDisplayOptions { enabled, ram_fb } = display.as_ref()?;
    let enabled = enabled.unwrap_or(true);
    let ram_fb = ram_fb
        .as_ref()
        .is_none_or(|FeatureState { enabled }| enabled.unwrap_or(true));
    Some(Display {
        enabled,
        ram_fb: enabled && ram_fb,
    })
}
