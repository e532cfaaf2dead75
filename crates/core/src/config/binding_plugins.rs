//! Plugins that bind NICs in ways of their own.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{InterfaceBindingMigration, InterfaceBindingPlugin, ResourceRequirementsWithoutClaims};

use crate::cause::{self, Causes, FieldPath};
use crate::machine::Attachment;
use crate::parse::is_definition;

/// The one thing that a plugin may be told.
const DEVICE_INFO: &str = "device-info";
/// The one way in which plugins migrate, beside just doing so.
const LINK_REFRESH: &str = "link-refresh";

/// A plugin as it is registered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BindingPlugin {
    /// Image of its hook sidecar.
    pub sidecar_image: Option<String>,
    /// `[namespace/]name` of the NetworkAttachmentDefinition of its CNI plugin.
    pub definition: Option<String>,
    /// What it leaves to us.
    pub attachment: Attachment,
    /// Its sidecar is told which devices are behind the networks.
    pub device_info: bool,
    /// Guests with it can migrate.
    pub migratable: bool,
    /// What it needs of the guest's container.
    pub overhead: ResourceRequirementsWithoutClaims,
}

impl BindingPlugin {
    /// Reads a registration; what is wrong with it is added to `causes`.
    pub(crate) fn read(wire: &InterfaceBindingPlugin, path: &FieldPath, causes: &mut Causes) -> Self {
        let InterfaceBindingPlugin {
            compute_resource_overhead,
            domain_attachment_type,
            downward_api,
            migration,
            network_attachment_definition,
            sidecar_image,
        } = wire;
        let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let attachment = domain_attachment_type.as_deref().unwrap_or_default();
        let known = Attachment::from_name(attachment);
        if known.is_none() {
            causes.one_of(&path.child("domainAttachmentType"), attachment, &["tap", "managedTap"]);
        }
        let told = set(downward_api);
        if let Some(told) = &told {
            causes.one_of(&path.child("downwardAPI"), told, &[DEVICE_INFO]);
        }
        if let Some(InterfaceBindingMigration { method }) = migration
            && let Some(method) = set(method)
        {
            causes.one_of(&path.child("migration.method"), &method, &[LINK_REFRESH]);
        }
        let definition = set(network_attachment_definition);
        if let Some(name) = definition.as_deref().filter(|name| !is_definition(name)) {
            causes.invalid(
                &path.child("networkAttachmentDefinition"),
                format!("\"{name}\" is not the name of a definition, with or without its namespace"),
            );
        }
        let image = set(sidecar_image);
        if image
            .as_ref()
            .is_some_and(|image| image.contains(char::is_whitespace) || image.contains(char::is_control))
        {
            causes.invalid(&path.child("sidecarImage"), "an image reference has no white space");
        }
        let overhead = compute_resource_overhead.clone().unwrap_or_default();
        quantities(&overhead, &path.child("computeResourceOverhead"), causes);
        Self {
            sidecar_image: image,
            definition,
            attachment: known.unwrap_or_default(),
            device_info: told.is_some(),
            migratable: migration.is_some(),
            overhead,
        }
    }
}

fn quantities(overhead: &ResourceRequirementsWithoutClaims, path: &FieldPath, causes: &mut Causes) {
    for (side, quantities) in [("requests", &overhead.requests), ("limits", &overhead.limits)] {
        let path = path.child(side);
        for (name, quantity) in quantities {
            let field = path.key(name);
            if !["cpu", "memory"].contains(&name.as_str()) {
                causes.not_supported(&field, "an overhead is of cpu or memory");
            } else if !quantity.millis().is_ok_and(|amount| amount >= 0) {
                causes.invalid(&field, format!("\"{}\" is no amount of {name}", quantity.0));
            }
        }
    }
}

/// The plugins of a `KubeVirt` object, with what is wrong with them.
pub(super) fn read(
    wire: &BTreeMap<String, InterfaceBindingPlugin>,
) -> impl Iterator<Item = (String, Result<BindingPlugin, String>)> {
    wire.iter().map(|(name, wire)| {
        let mut causes = Causes::default();
        let plugin = BindingPlugin::read(wire, &FieldPath::root("binding").key(name), &mut causes);
        let causes = causes.into_vec();
        let read = if causes.is_empty() {
            Ok(plugin)
        } else {
            Err(cause::summary(&causes))
        };
        (name.clone(), read)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plugin(wire: serde_json::Value) -> (BindingPlugin, Vec<String>) {
        let mut causes = Causes::default();
        let wire = serde_json::from_value(wire).unwrap();
        let read = BindingPlugin::read(&wire, &FieldPath::root("p"), &mut causes);
        (read, causes.into_vec().into_iter().map(|cause| cause.field).collect())
    }

    #[test]
    fn registrations_are_read() {
        let (all, causes) = plugin(json!({
            "sidecarImage": "r/passt:1", "networkAttachmentDefinition": "kube-system/passt", "domainAttachmentType": "tap",
            "migration": {"method": "link-refresh"}, "downwardAPI": "device-info",
            "computeResourceOverhead": {"requests": {"memory": "250Mi"}},
        }));
        assert_eq!(causes, [""; 0]);
        assert_eq!(all.sidecar_image.as_deref(), Some("r/passt:1"));
        assert_eq!(all.definition.as_deref(), Some("kube-system/passt"));
        assert_eq!(all.attachment, Attachment::Tap);
        assert!(all.migratable && all.device_info);
        assert_eq!(all.overhead.requests["memory"], "250Mi".into());
        assert_eq!(plugin(json!({})), (BindingPlugin::default(), vec![]));
        for attachment in [Attachment::Sidecar, Attachment::Tap, Attachment::ManagedTap] {
            assert_eq!(Attachment::from_name(attachment.name()), Some(attachment));
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        for (wire, field) in [
            (json!({"domainAttachmentType": "vhostuser"}), "p.domainAttachmentType"),
            (json!({"downwardAPI": "all"}), "p.downwardAPI"),
            (json!({"migration": {"method": "magic"}}), "p.migration.method"),
            (
                json!({"networkAttachmentDefinition": "a/b/c"}),
                "p.networkAttachmentDefinition",
            ),
            (
                json!({"networkAttachmentDefinition": "A"}),
                "p.networkAttachmentDefinition",
            ),
            (json!({"sidecarImage": "a b"}), "p.sidecarImage"),
            (
                json!({"computeResourceOverhead": {"requests": {"memory": "much"}}}),
                "p.computeResourceOverhead.requests[memory]",
            ),
            (
                json!({"computeResourceOverhead": {"limits": {"ex.com/nic": "1"}}}),
                "p.computeResourceOverhead.limits[ex.com/nic]",
            ),
        ] {
            assert_eq!(plugin(wire).1, [field]);
        }
    }
}
