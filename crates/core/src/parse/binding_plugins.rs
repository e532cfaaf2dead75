//! `spec.domain.devices.interfaces[].binding`: NICs that plugins of the cluster's administrator bind.

use ferrovirt_api::v1::PluginBinding;

use super::{Cx, is_dns_label, is_dns_subdomain};
use crate::cause::FieldPath;
use crate::config::{BindingPlugin, ClusterConfig};
use crate::machine::{Attachment, HookSidecar, Machine, Plugin};

/// Whether this is the name of a NetworkAttachmentDefinition, with or without its namespace.
pub(crate) fn is_definition(text: &str) -> bool {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    is_dns_subdomain(name) && namespace.is_none_or(is_dns_label)
}

impl Cx<'_> {
    /// The plugin that a NIC names, as the administrator registered it.
    pub(super) fn plugin(&mut self, binding: &PluginBinding, path: &FieldPath) -> Option<Plugin> {
        let PluginBinding { name } = binding;
        let field = path.child("name");
        if name.is_empty() {
            self.causes.required(&field, "a binding needs the name of a plugin");
            return None;
        }
        let registered = match self.config.binding_plugins.get(name) {
            Some(Ok(registered)) => registered.clone(),
            Some(Err(why)) => {
                let message = format!(
                    "the network binding plugin \"{name}\" cannot be used as spec.configuration.network of the KubeVirt \
                     object registers it: {why}"
                );
                self.causes.invalid(&field, message);
                return None;
            }
            None if self.config.any_binding_plugin => BindingPlugin::default(),
            None => {
                let message = format!(
                    "no network binding plugin \"{name}\" is registered; an administrator registers it in \
                     spec.configuration.network.binding of the KubeVirt object"
                );
                self.causes.invalid(&field, message);
                return None;
            }
        };
        self.possible(&registered, &field);
        Some(Plugin {
            name: name.clone(),
            attachment: registered.attachment,
            definition: registered.definition,
        })
    }

    /// Refuses what a plugin needs and is not here.
    fn possible(&mut self, registered: &BindingPlugin, field: &FieldPath) {
        let (sidecars, networks) = (self.config.hook_sidecars, self.config.secondary_networks);
        if registered.sidecar_image.is_some() && !sidecars {
            self.causes.not_supported(
                field,
                "this plugin has a sidecar, and this machine runs no containers of other images; clusters do",
            );
        } else if registered.attachment == Attachment::Sidecar && !sidecars {
            self.causes.not_supported(
                field,
                "this plugin has no domainAttachmentType: a sidecar would have to attach the guest, and this machine runs none",
            );
        }
        if registered.definition.is_some() && !networks {
            self.causes.not_supported(
                field,
                "this plugin has a networkAttachmentDefinition; one machine has the pod network only, a cluster may have others",
            );
        } else if registered.attachment == Attachment::Tap && !networks {
            self.causes.not_supported(
                field,
                "the tap of this plugin comes from a CNI plugin, and one machine has none; use domainAttachmentType managedTap",
            );
        }
    }
}

/// The sidecars of a machine's plugins, one for each that has one.
pub(super) fn sidecars(machine: &Machine, config: &ClusterConfig) -> Vec<HookSidecar> {
    let plugins = machine.binding_plugins();
    let registered = plugins
        .iter()
        .filter_map(|name| config.binding_plugins.get(*name)?.as_ref().ok());
    let sidecar = |plugin: &BindingPlugin| {
        Some(HookSidecar {
            image: Some(plugin.sidecar_image.clone()?),
            pull_policy: Some(config.image_pull_policy.clone()),
            command: Vec::new(),
            args: Vec::new(),
            script: None,
            device_info: plugin.device_info,
            claim: None,
        })
    };
    registered.filter_map(sidecar).collect()
}
