//! `spec.domain.devices.gpus` and `hostDevices`, and the `spec.resourceClaims` that they and `spec.networks` refer to.

use ferrovirt_api::v1::{
    ClaimRequest, Devices, FeatureState, GPU, HostDevice as WireHostDevice, Network, VGPUDisplayOptions, VGPUOptions,
    VirtualMachineInstanceResourceClaim,
};

use super::{Cx, is_dns_label, text};
use crate::cause::FieldPath;
use crate::config::{GATE_GPUS_WITH_DRA, GATE_HOST_DEVICES, GATE_HOST_DEVICES_WITH_DRA, GATE_NETWORK_DEVICES_WITH_DRA};
use crate::machine::{ClaimSource, Display, HostDevice, HostDeviceList, HostDeviceSource, ResourceClaim};

/// What both lists say of a device; what is empty says nothing.
struct Wanted<'a> {
    list: HostDeviceList,
    name: &'a str,
    device: Option<&'a str>,
    claim: Option<&'a str>,
    request: Option<&'a str>,
    tag: Option<&'a str>,
    display: Option<Display>,
}

impl Wanted<'_> {
    fn is_claimed(&self) -> bool {
        self.claim.is_some() || self.request.is_some()
    }
}

impl<'a> From<&'a GPU> for Wanted<'a> {
    fn from(gpu: &'a GPU) -> Self {
        let GPU {
            claim_name,
            device_name,
            name,
            request_name,
            tag,
            virtual_gpu_options,
        } = gpu;
        Self {
            list: HostDeviceList::Gpu,
            name,
            device: set(device_name),
            claim: set(claim_name),
            request: set(request_name),
            tag: set(tag),
            display: virtual_gpu_options.as_ref().and_then(display),
        }
    }
}

impl<'a> From<&'a WireHostDevice> for Wanted<'a> {
    fn from(device: &'a WireHostDevice) -> Self {
        let WireHostDevice {
            claim_name,
            device_name,
            name,
            request_name,
            tag,
        } = device;
        Self {
            list: HostDeviceList::HostDevice,
            name,
            device: set(device_name),
            claim: set(claim_name),
            request: set(request_name),
            tag: set(tag),
            display: None,
        }
    }
}

impl Cx<'_> {
    pub(super) fn resource_claims(
        &mut self,
        claims: &[VirtualMachineInstanceResourceClaim],
        path: &FieldPath,
    ) -> Vec<ResourceClaim> {
        let path = path.child("resourceClaims");
        if !claims.is_empty() && !self.config.resource_claims {
            self.causes.not_supported(
                &path,
                "one machine has no drivers for resource claims; a cluster may have some",
            );
        }
        let gates = [
            GATE_GPUS_WITH_DRA,
            GATE_HOST_DEVICES_WITH_DRA,
            GATE_NETWORK_DEVICES_WITH_DRA,
        ];
        if !claims.is_empty() && !gates.iter().any(|gate| self.config.gate(gate)) {
            let message = format!("none of the feature gates {} is enabled", gates.join(", "));
            self.causes.not_supported(&path, message);
        }
        let mut parsed: Vec<ResourceClaim> = Vec::new();
        for (i, claim) in claims.iter().enumerate() {
            let VirtualMachineInstanceResourceClaim {
                name,
                resource_claim_name,
                resource_claim_template_name,
            } = claim;
            let path = path.index(i);
            self.label_name(name, &path.child("name"));
            if parsed.iter().any(|other| other.name == *name) {
                self.causes.duplicate(
                    &path.child("name"),
                    format!("another resource claim has the name \"{name}\""),
                );
            }
            let source = match (set(resource_claim_name), set(resource_claim_template_name)) {
                (Some(claim), None) => {
                    self.object_name(claim, &path.child("resourceClaimName"));
                    ClaimSource::Claim(claim.to_owned())
                }
                (None, Some(template)) => {
                    self.object_name(template, &path.child("resourceClaimTemplateName"));
                    ClaimSource::Template(template.to_owned())
                }
                (claim, _) => {
                    let message = "needs one of resourceClaimName and resourceClaimTemplateName";
                    match claim {
                        None => self.causes.required(&path, message),
                        Some(_) => self.causes.invalid(&path, message),
                    }
                    continue;
                }
            };
            parsed.push(ResourceClaim {
                name: name.clone(),
                source,
            });
        }
        parsed
    }

    pub(super) fn host_devices(
        &mut self,
        devices: &Devices,
        claims: &[VirtualMachineInstanceResourceClaim],
        path: &FieldPath,
    ) -> Vec<HostDevice> {
        let path = path.child("domain.devices");
        let (gpus, host_devices) = (path.child("gpus"), path.child("hostDevices"));
        let mut wanted: Vec<(Wanted<'_>, FieldPath)> = Vec::new();
        let list = devices.gpus.iter().enumerate();
        wanted.extend(list.map(|(i, gpu)| (gpu.into(), gpus.index(i))));
        let list = devices.host_devices.iter().enumerate();
        wanted.extend(list.map(|(i, device)| (device.into(), host_devices.index(i))));

        let has = |list, claimed| {
            let mut all = wanted.iter().map(|(wanted, _)| wanted);
            all.any(|w| w.list == list && w.is_claimed() == claimed)
        };
        if has(HostDeviceList::HostDevice, false) {
            self.gate(GATE_HOST_DEVICES, &host_devices);
        }
        if has(HostDeviceList::Gpu, true) && has(HostDeviceList::Gpu, false) {
            self.causes.invalid(
                &gpus,
                "GPUs by resource claims and GPUs by deviceName exclude each other: a node gives its GPUs in one way only",
            );
        }
        let mut parsed = Vec::new();
        for (wanted, path) in &wanted {
            let device = self.host_device(wanted, claims, &parsed, path);
            parsed.push(device);
        }
        parsed
    }

    fn host_device(
        &mut self,
        wanted: &Wanted<'_>,
        claims: &[VirtualMachineInstanceResourceClaim],
        others: &[HostDevice],
        path: &FieldPath,
    ) -> HostDevice {
        let field = path.child("name");
        self.device_name(wanted.name, &field);
        let same = |other: &HostDevice| other.list == wanted.list && other.name == wanted.name;
        if others.iter().any(same) {
            self.causes
                .duplicate(&field, format!("another device has the name \"{}\"", wanted.name));
        }
        self.tag(wanted.tag, &path.child("tag"));
        if wanted.device.is_some() && wanted.is_claimed() {
            self.causes
                .invalid(path, "deviceName excludes claimName and requestName");
        }
        let source = if wanted.is_claimed() {
            self.claimed(wanted, claims, others, path)
        } else {
            self.resource(wanted.device, &path.child("deviceName"))
        };
        HostDevice {
            name: wanted.name.to_owned(),
            list: wanted.list,
            source,
            tag: wanted.tag.map(str::to_owned),
            display: wanted.display,
        }
    }

    /// Firmware finds one frame buffer in the guest's memory, whoever made it. `video` is the machine's own.
    pub(super) fn one_ram_fb(&mut self, gpus: &[GPU], video: Option<&str>, path: &FieldPath) {
        let mut taken = video == Some("ramfb");
        for (i, gpu) in gpus.iter().enumerate() {
            let ram_fb = Wanted::from(gpu).display.is_some_and(|display| display.ram_fb);
            if ram_fb && taken {
                let field = path.child("domain.devices.gpus").index(i);
                self.causes.invalid(
                    &field.child("virtualGPUOptions.display.ramFB"),
                    "a machine has one ramfb at most: set ramFB.enabled to false, or have no display or video card with another one",
                );
            }
            taken |= ram_fb;
        }
    }

    /// A device that the pod gets as one of a resource of nodes.
    fn resource(&mut self, device: Option<&str>, field: &FieldPath) -> HostDeviceSource {
        let resource = device.unwrap_or_default();
        if resource.is_empty() {
            self.causes.required(
                field,
                "a device needs the name of a resource of the nodes, or claimName and requestName",
            );
        } else if !text::is_resource_name(resource) {
            self.causes.invalid(
                field,
                format!("\"{resource}\" is not a resource of nodes such as example.com/device"),
            );
        } else if !self.config.permits_device(resource) {
            self.causes.not_supported(
                field,
                format!("\"{resource}\" is not in permittedHostDevices of the cluster's configuration"),
            );
        }
        HostDeviceSource::Resource(resource.to_owned())
    }

    /// A device that the pod gets by a resource claim. Which devices there are is the drivers' to say, so
    /// permittedHostDevices does not speak of them.
    fn claimed(
        &mut self,
        wanted: &Wanted<'_>,
        claims: &[VirtualMachineInstanceResourceClaim],
        others: &[HostDevice],
        path: &FieldPath,
    ) -> HostDeviceSource {
        let gate = match wanted.list {
            HostDeviceList::Gpu => GATE_GPUS_WITH_DRA,
            HostDeviceList::HostDevice => GATE_HOST_DEVICES_WITH_DRA,
        };
        self.request(gate, wanted.claim, wanted.request, claims, path);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let source = HostDeviceSource::Claim {
            claim: text(wanted.claim),
            request: text(wanted.request),
        };
        let complete = wanted.claim.is_some() && wanted.request.is_some();
        if complete && others.iter().any(|other| other.source == source) {
            self.same_request(path);
        }
        source
    }

    /// A request of a resource claim, at `path`.
    fn request(
        &mut self,
        gate: &str,
        claim: Option<&str>,
        request: Option<&str>,
        claims: &[VirtualMachineInstanceResourceClaim],
        path: &FieldPath,
    ) {
        let (claim_field, request_field) = (path.child("claimName"), path.child("requestName"));
        self.gate(gate, &claim_field);
        match claim {
            None => self.causes.required(
                &claim_field,
                "requestName is of a resource claim, which claimName names",
            ),
            Some(name) if !claims.iter().any(|claim| claim.name == name) => self.causes.invalid(
                &claim_field,
                format!("there is no resource claim \"{name}\" in spec.resourceClaims"),
            ),
            Some(_) => {}
        }
        match request {
            None => self.causes.required(
                &request_field,
                "a claim has requests; a device is what one of them is given",
            ),
            Some(name) => self.label_name(name, &request_field),
        }
    }

    /// `resourceClaim` of a network.
    pub(super) fn claimed_network(
        &mut self,
        request: &ClaimRequest,
        claims: &[VirtualMachineInstanceResourceClaim],
        path: &FieldPath,
    ) {
        let ClaimRequest {
            claim_name,
            request_name,
        } = request;
        self.request(
            GATE_NETWORK_DEVICES_WITH_DRA,
            set(claim_name),
            set(request_name),
            claims,
            path,
        );
    }

    /// A device of a resource claim is one thing in the guest; and `status.deviceStatus` tells of networks among
    /// `hostDevices`, so they share their names.
    pub(super) fn claimed_once(&mut self, devices: &[HostDevice], networks: &[Network], path: &FieldPath) {
        let path = path.child("networks");
        let mut taken: Vec<HostDeviceSource> = devices.iter().map(|device| device.source.clone()).collect();
        for (i, network) in networks.iter().enumerate() {
            let Some(ClaimRequest {
                claim_name: Some(claim),
                request_name: Some(request),
            }) = &network.resource_claim
            else {
                continue;
            };
            let path = path.index(i);
            let same_name = |device: &HostDevice| {
                let listed = device.list == HostDeviceList::HostDevice && device.resource().is_none();
                listed && device.name == network.name
            };
            if devices.iter().any(same_name) {
                self.causes.duplicate(
                    &path.child("name"),
                    format!(
                        "a host device of a resource claim has the name \"{}\", too",
                        network.name
                    ),
                );
            }
            let source = HostDeviceSource::Claim {
                claim: claim.clone(),
                request: request.clone(),
            };
            if taken.contains(&source) {
                self.same_request(&path.child("resourceClaim"));
            }
            taken.push(source);
        }
    }

    fn same_request(&mut self, path: &FieldPath) {
        self.causes.duplicate(
            &path.child("requestName"),
            "another device is of the same request of the same resource claim",
        );
    }

    fn label_name(&mut self, name: &str, field: &FieldPath) {
        if name.is_empty() {
            self.causes.required(field, "a name is needed");
        } else if !is_dns_label(name) {
            self.causes.invalid(
                field,
                format!("\"{name}\" is not a DNS label (a-z, 0-9 and -, at most 63)"),
            );
        }
    }
}

fn set(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
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
