//! DataVolume templates of a VM.

use ferrovirt_api::cdi::{DataVolumeSource, DataVolumeSpec};
use ferrovirt_api::v1::{DataVolumeTemplateSpec, VirtualMachineInstanceSpec};

use crate::cause::{Causes, FieldPath};

/// What a template's DataVolume must be, and that the machine uses it.
pub(super) fn templates(
    causes: &mut Causes,
    templates: &[DataVolumeTemplateSpec],
    spec: Option<&VirtualMachineInstanceSpec>,
    namespace: Option<&str>,
    path: &FieldPath,
) {
    for (i, template) in templates.iter().enumerate() {
        let path = path.index(i);
        let metadata = template.metadata.as_ref();
        let name_of = |template: &DataVolumeTemplateSpec| {
            let metadata = template.metadata.as_ref();
            metadata.and_then(|m| m.name.clone()).filter(|name| !name.is_empty())
        };
        let field = path.child("metadata.name");
        match name_of(template) {
            None => causes.required(&field, "a DataVolume template needs a name"),
            Some(name) => {
                if templates[..i]
                    .iter()
                    .any(|other| name_of(other).as_ref() == Some(&name))
                {
                    causes.duplicate(&field, format!("another template has the name \"{name}\""));
                }
                let volumes = spec.map(|spec| spec.volumes.as_slice()).unwrap_or_default();
                let uses = |claim: &str| claim == name;
                let used = volumes.iter().any(|volume| {
                    let data_volume = volume.data_volume.as_ref();
                    let claim = volume.persistent_volume_claim.as_ref();
                    data_volume.is_some_and(|v| uses(&v.name)) || claim.is_some_and(|c| uses(&c.claim_name))
                });
                if !used {
                    causes.invalid(&path, format!("no volume of the machine uses DataVolume \"{name}\""));
                }
            }
        }
        let own = metadata.and_then(|m| m.namespace.as_deref()).filter(|n| !n.is_empty());
        if let (Some(own), Some(namespace)) = (own, namespace)
            && own != namespace
        {
            let message = format!("the DataVolume is made in the namespace \"{namespace}\" of its VirtualMachine");
            causes.invalid(&path.child("metadata.namespace"), message);
        }
        data_volume(causes, &template.spec, &path.child("spec"));
    }
}

fn data_volume(causes: &mut Causes, spec: &DataVolumeSpec, path: &FieldPath) {
    match (&spec.pvc, &spec.storage) {
        (None, None) => causes.required(path, "a DataVolume needs storage or pvc"),
        (Some(_), Some(_)) => causes.invalid(path, "storage and pvc exclude each other"),
        _ => {}
    }
    let external = spec
        .pvc
        .as_ref()
        .is_some_and(|pvc| pvc.data_source_ref.is_some() || pvc.data_source.is_some())
        || spec
            .storage
            .as_ref()
            .is_some_and(|s| s.data_source_ref.is_some() || s.data_source.is_some());
    let populated = spec.source.is_some() || spec.source_ref.is_some();
    if external && populated {
        causes.invalid(path, "dataSource of the claim excludes source and sourceRef");
    }
    match (&spec.source, &spec.source_ref) {
        (Some(_), Some(_)) => causes.invalid(path, "source and sourceRef exclude each other"),
        (None, None) if !external => causes.required(path, "a DataVolume needs a source or a sourceRef"),
        _ => {}
    }
    if let Some(source) = &spec.source {
        match count(source) {
            0 => causes.required(&path.child("source"), "a source needs a kind, such as http"),
            1 => {}
            count => causes.invalid(&path.child("source"), format!("a source has one kind, not {count}")),
        }
    }
    if let Some(reference) = &spec.source_ref {
        let path = path.child("sourceRef");
        causes.one_of(&path.child("kind"), &reference.kind, &["DataSource"]);
        if reference.name.is_empty() {
            causes.required(&path.child("name"), "a name is needed");
        }
    }
}

fn count(source: &DataVolumeSource) -> usize {
    let DataVolumeSource {
        blank,
        gcs,
        http,
        imageio,
        pvc,
        registry,
        s3,
        snapshot,
        upload,
        vddk,
    } = source;
    let kinds = [
        blank.is_some(),
        gcs.is_some(),
        http.is_some(),
        imageio.is_some(),
        pvc.is_some(),
        registry.is_some(),
        s3.is_some(),
        snapshot.is_some(),
        upload.is_some(),
        vddk.is_some(),
    ];
    kinds.iter().filter(|kind| **kind).count()
}
