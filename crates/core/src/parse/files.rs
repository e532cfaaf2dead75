//! Volumes that are the files of an object: configMap, secret, serviceAccount, downwardAPI, sysprep.

use ferrovirt_api::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, SecretVolumeSource, ServiceAccountVolumeSource, SysprepSource,
    Volume,
};
use k8s_openapi::api::core::v1::DownwardAPIVolumeFile;

use super::{Cx, on, text};
use crate::cause::FieldPath;
use crate::machine::{Files, FilesOrigin, ObjectRef, ServiceAccount};

/// ISO 9660's limit.
const MAX_LABEL: usize = 32;

impl Cx<'_> {
    /// The files of a volume, if it is one of these kinds.
    pub(super) fn files(&mut self, volume: &Volume, path: &FieldPath) -> Option<Files> {
        if let Some(ConfigMapVolumeSource {
            name,
            optional,
            volume_label,
        }) = &volume.config_map
        {
            let path = path.child("configMap");
            let object = self.object(name.as_deref(), *optional, &path.child("name"));
            let label = self.label(volume_label.as_deref(), &path);
            let origin = FilesOrigin::ConfigMap(object);
            return Some(Files { origin, label });
        }
        if let Some(SecretVolumeSource {
            optional,
            secret_name,
            volume_label,
        }) = &volume.secret
        {
            let path = path.child("secret");
            let object = self.object(secret_name.as_deref(), *optional, &path.child("secretName"));
            let label = self.label(volume_label.as_deref(), &path);
            let origin = FilesOrigin::Secret(object);
            return Some(Files { origin, label });
        }
        if let Some(DownwardAPIVolumeSource { fields, volume_label }) = &volume.downward_api {
            let path = path.child("downwardAPI");
            for (i, field) in fields.iter().enumerate() {
                self.downward_file(field, &fields[..i], &path.child("fields").index(i));
            }
            let label = self.label(volume_label.as_deref(), &path);
            let origin = FilesOrigin::DownwardApi;
            return Some(Files { origin, label });
        }
        if let Some(source) = &volume.sysprep {
            let origin = self.sysprep(source, &path.child("sysprep"))?;
            return Some(Files { origin, label: None });
        }
        volume.service_account.as_ref().map(|_| Files {
            origin: FilesOrigin::ServiceAccount,
            label: None,
        })
    }

    fn object(&mut self, name: Option<&str>, optional: Option<bool>, field: &FieldPath) -> ObjectRef {
        let name = name.unwrap_or_default();
        self.object_name(name, field);
        ObjectRef {
            name: name.to_owned(),
            optional: on(optional),
        }
    }

    fn label(&mut self, label: Option<&str>, path: &FieldPath) -> Option<String> {
        let label = label.filter(|l| !l.is_empty())?;
        if label.len() > MAX_LABEL || !text::is_printable(label) {
            self.causes.invalid(
                &path.child("volumeLabel"),
                format!("\"{label}\" is no label: at most {MAX_LABEL} printable characters"),
            );
        }
        Some(label.to_owned())
    }

    fn sysprep(&mut self, source: &SysprepSource, path: &FieldPath) -> Option<FilesOrigin> {
        let SysprepSource { config_map, secret } = source;
        match (config_map, secret) {
            (Some(map), None) => {
                self.object_name(&map.name, &path.child("configMap.name"));
                Some(FilesOrigin::SysprepConfigMap(map.name.clone()))
            }
            (None, Some(secret)) => {
                self.object_name(&secret.name, &path.child("secret.name"));
                Some(FilesOrigin::SysprepSecret(secret.name.clone()))
            }
            (Some(_), Some(_)) => {
                self.causes.invalid(path, "configMap and secret exclude each other");
                None
            }
            (None, None) => {
                self.causes
                    .required(path, "the answer file comes from a configMap or a secret");
                None
            }
        }
    }

    fn downward_file(&mut self, file: &DownwardAPIVolumeFile, earlier: &[DownwardAPIVolumeFile], path: &FieldPath) {
        let DownwardAPIVolumeFile {
            field_ref,
            mode,
            path: name,
            resource_field_ref,
        } = file;
        let field = path.child("path");
        let relative = name.split('/').all(|part| !matches!(part, "" | "." | "..")) && !name.starts_with("..");
        if name.is_empty() {
            self.causes.required(&field, "the file needs a path");
        } else if !relative || !text::is_printable(name) {
            self.causes.invalid(
                &field,
                format!("\"{name}\" must be a relative path without \"..\" in front and without . and .."),
            );
        }
        if earlier.iter().any(|other| other.path == *name) {
            self.causes
                .duplicate(&field, format!("another file has the path \"{name}\""));
        }
        match (field_ref, resource_field_ref) {
            (Some(reference), None) if reference.field_path.is_empty() => self
                .causes
                .required(&path.child("fieldRef.fieldPath"), "a field is needed"),
            (None, Some(reference)) if reference.resource.is_empty() => self
                .causes
                .required(&path.child("resourceFieldRef.resource"), "a resource is needed"),
            (Some(_), None) | (None, Some(_)) => {}
            (Some(_), Some(_)) => self
                .causes
                .invalid(path, "fieldRef and resourceFieldRef exclude each other"),
            (None, None) => self.causes.required(path, "fieldRef or resourceFieldRef is needed"),
        }
        if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
            self.causes.invalid(
                &path.child("mode"),
                format!("{mode} is not between 0 and 511 (octal 777)"),
            );
        }
    }

    /// The account of the pod: the spec's, or that of the one volume with its token.
    pub(super) fn service_account(
        &mut self,
        own: Option<&str>,
        volumes: &[Volume],
        path: &FieldPath,
    ) -> Option<ServiceAccount> {
        let own = own.filter(|name| !name.is_empty());
        if let Some(name) = own {
            self.object_name(name, &path.child("serviceAccountName"));
        }
        let mut of_volume = None;
        for (i, volume) in volumes.iter().enumerate() {
            let Some(ServiceAccountVolumeSource { service_account_name }) = &volume.service_account else {
                continue;
            };
            let source = path.child("volumes").index(i).child("serviceAccount");
            let field = source.child("serviceAccountName");
            let name = service_account_name.as_deref().unwrap_or_default();
            self.object_name(name, &field);
            if of_volume.replace(name).is_some() {
                self.causes
                    .invalid(&source, "a machine has one serviceAccount volume at most");
            }
            if own.is_some_and(|own| own != name) {
                self.causes.invalid(
                    &field,
                    format!("\"{name}\" is not the account in spec.serviceAccountName"),
                );
            }
        }
        of_volume.or(own).map(|name| ServiceAccount {
            name: name.to_owned(),
            token: of_volume.is_some(),
        })
    }
}
