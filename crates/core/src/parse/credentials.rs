//! `spec.accessCredentials`.

use ferrovirt_api::v1::{
    AccessCredential as WireCredential, AccessCredentialSecretSource,
    QemuGuestAgentSSHPublicKeyAccessCredentialPropagation, SSHPublicKeyAccessCredential,
    SSHPublicKeyAccessCredentialPropagationMethod, UserPasswordAccessCredential,
};

use super::{Cx, is_dns_label};
use crate::cause::FieldPath;
use crate::machine::{AccessCredential, CloudInit, CloudInitFlavor, CredentialMethod, Source};

impl Cx<'_> {
    pub(super) fn access_credentials(
        &mut self,
        list: &[WireCredential],
        sources: &[Option<Source>],
        path: &FieldPath,
    ) -> Vec<AccessCredential> {
        let path = path.child("accessCredentials");
        let mut parsed: Vec<AccessCredential> = Vec::new();
        for (i, credential) in list.iter().enumerate() {
            let Some((secret, method)) = self.credential(credential, sources, &path.index(i)) else {
                continue;
            };
            let volume = match parsed.iter().find(|other| other.secret == secret) {
                Some(other) => other.volume.clone(),
                None => credential_volume(&secret, i),
            };
            parsed.push(AccessCredential { secret, volume, method });
        }
        parsed
    }

    fn credential(
        &mut self,
        credential: &WireCredential,
        sources: &[Option<Source>],
        path: &FieldPath,
    ) -> Option<(String, CredentialMethod)> {
        let WireCredential {
            ssh_public_key,
            user_password,
        } = credential;
        match (ssh_public_key, user_password) {
            (Some(keys), None) => {
                let SSHPublicKeyAccessCredential {
                    propagation_method,
                    source,
                } = keys;
                let path = path.child("sshPublicKey");
                let secret = self.credential_secret(source.secret.as_ref(), &path);
                let method = self.key_method(propagation_method, sources, &path.child("propagationMethod"))?;
                Some((secret?, method))
            }
            (None, Some(passwords)) => {
                let UserPasswordAccessCredential {
                    propagation_method,
                    source,
                } = passwords;
                let path = path.child("userPassword");
                let secret = self.credential_secret(source.secret.as_ref(), &path);
                if propagation_method.qemu_guest_agent.is_none() {
                    self.causes
                        .required(&path.child("propagationMethod"), "a method is needed: qemuGuestAgent");
                }
                Some((secret?, CredentialMethod::PasswordsByAgent))
            }
            (Some(_), Some(_)) => {
                self.causes
                    .invalid(path, "sshPublicKey and userPassword exclude each other");
                None
            }
            (None, None) => {
                self.causes
                    .required(path, "a credential is sshPublicKey or userPassword");
                None
            }
        }
    }

    fn credential_secret(&mut self, secret: Option<&AccessCredentialSecretSource>, path: &FieldPath) -> Option<String> {
        let path = path.child("source");
        let Some(AccessCredentialSecretSource { secret_name }) = secret else {
            self.causes.required(&path, "a source is needed: secret");
            return None;
        };
        self.object_name(secret_name, &path.child("secret.secretName"));
        Some(secret_name.clone())
    }

    fn key_method(
        &mut self,
        method: &SSHPublicKeyAccessCredentialPropagationMethod,
        sources: &[Option<Source>],
        path: &FieldPath,
    ) -> Option<CredentialMethod> {
        let SSHPublicKeyAccessCredentialPropagationMethod {
            config_drive,
            no_cloud,
            qemu_guest_agent,
        } = method;
        let seed = |wanted: CloudInitFlavor| {
            let mut sources = sources.iter().flatten();
            sources.any(|source| matches!(source, Source::CloudInit(CloudInit { flavor, .. }) if *flavor == wanted))
        };
        match (config_drive, no_cloud, qemu_guest_agent) {
            (Some(_), None, None) => {
                if !seed(CloudInitFlavor::ConfigDrive) {
                    self.causes
                        .invalid(&path.child("configDrive"), "needs a cloudInitConfigDrive volume");
                }
                Some(CredentialMethod::KeysOnSeed(CloudInitFlavor::ConfigDrive))
            }
            (None, Some(_), None) => {
                if !seed(CloudInitFlavor::NoCloud) {
                    self.causes
                        .invalid(&path.child("noCloud"), "needs a cloudInitNoCloud volume");
                }
                Some(CredentialMethod::KeysOnSeed(CloudInitFlavor::NoCloud))
            }
            (None, None, Some(QemuGuestAgentSSHPublicKeyAccessCredentialPropagation { users })) => {
                let field = path.child("qemuGuestAgent.users");
                if users.is_empty() {
                    self.causes.required(&field, "at least one user is needed");
                }
                for (i, user) in users.iter().enumerate() {
                    if user.is_empty() || user.contains(char::is_control) {
                        self.causes.invalid(&field.index(i), "is not the name of a user");
                    }
                }
                Some(CredentialMethod::KeysByAgent(users.clone()))
            }
            (None, None, None) => {
                self.causes
                    .required(path, "a method is needed: configDrive, noCloud or qemuGuestAgent");
                None
            }
            _ => {
                self.causes
                    .invalid(path, "configDrive, noCloud and qemuGuestAgent exclude each other");
                None
            }
        }
    }
}

/// Volumes have shorter names than Secrets, and no dots in them.
fn credential_volume(secret: &str, index: usize) -> String {
    let name = format!("{secret}-access-cred");
    if is_dns_label(&name) {
        name
    } else {
        format!("access-cred-{index}")
    }
}
