//! Volumes of several sources in one directory, tokens of service accounts among them.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    Container, Pod, ProjectedVolumeSource, ResourceFieldSelector, ServiceAccount, ServiceAccountTokenProjection,
    VolumeProjection,
};
use kube::Api;
use kube::api::PostParams;

use super::{Preparation, VolumeFile, downward_file, inner, mode, select};

/// What Kubernetes takes when a projection asks for no time.
const TOKEN_SECONDS: i64 = 3600;

impl Preparation<'_> {
    pub(super) async fn projected(&self, volume: &ProjectedVolumeSource) -> Result<Vec<VolumeFile>, String> {
        let mut files = Vec::new();
        let default = volume.default_mode;
        for source in volume.sources.iter().flatten() {
            let VolumeProjection {
                config_map,
                downward_api,
                secret,
                service_account_token,
                ..
            } = source;
            if let Some(map) = config_map {
                let data = self.config_map(&map.name, map.optional == Some(true)).await?;
                files.extend(select(data, map.items.as_deref(), default, &map.name)?);
            } else if let Some(secret) = secret {
                let data = self.secret(&secret.name, secret.optional == Some(true)).await?;
                files.extend(select(data, secret.items.as_deref(), default, &secret.name)?);
            } else if let Some(facts) = downward_api {
                for item in facts.items.iter().flatten() {
                    files.push(downward_file(self.pod, item, default)?);
                }
            } else if let Some(token) = service_account_token {
                files.push(VolumeFile {
                    path: inner(&token.path)?,
                    content: self.token(token).await?.into_bytes(),
                    mode: mode(None, default),
                });
            } else {
                return Err(
                    "projected volumes only know configMap, secret, downwardAPI and serviceAccountToken \
                            on one machine"
                        .to_owned(),
                );
            }
        }
        Ok(files)
    }

    async fn token(&self, wanted: &ServiceAccountTokenProjection) -> Result<String, String> {
        let account = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone());
        let account = account.unwrap_or_else(|| "default".to_owned());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: wanted.audience.clone().map(|audience| vec![audience]),
                bound_object_ref: None,
                expiration_seconds: Some(wanted.expiration_seconds.unwrap_or(TOKEN_SECONDS)),
            }),
            ..TokenRequest::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.namespace());
        let issued = api
            .create_token_request(&account, &PostParams::default(), &request)
            .await
            .map_err(|error| format!("cannot get a token of service account \"{account}\": {error}"))?;
        let token = issued.status.and_then(|status| status.token);
        token.ok_or_else(|| format!("service account \"{account}\" got no token"))
    }
}

/// A container's request or limit as the downward API gives it: whole multiples of the divisor, rounded up.
pub(super) fn resource_value(pod: &Pod, selector: &ResourceFieldSelector) -> Result<String, String> {
    let ResourceFieldSelector {
        container_name,
        divisor,
        resource,
    } = selector;
    let name = container_name.as_deref().unwrap_or_default();
    let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let found = containers.find(|container: &&Container| name.is_empty() || container.name == name);
    let container = found.ok_or_else(|| format!("the pod has no container \"{name}\""))?;
    let resources = container.resources.as_ref();
    let quantity = match resource.split_once('.') {
        Some(("limits", kind)) => resources.and_then(|r| r.limits.as_ref()?.get(kind)),
        Some(("requests", kind)) => resources.and_then(|r| r.requests.as_ref()?.get(kind)),
        _ => return Err(format!("\"{resource}\" is no resource such as limits.memory")),
    };
    // What has no limit may use all of the node; how much that is, is nothing to rely on.
    let millis = quantity.and_then(crate::quantity::millis).unwrap_or(0);
    let divisor = divisor.as_ref().and_then(crate::quantity::millis).filter(|d| *d > 0);
    Ok(millis.div_ceil(divisor.unwrap_or(1000)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_whole_multiples_of_their_divisor() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "compute", "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "1100m"}}},
            {"name": "other", "resources": {"requests": {"cpu": "5m"}}},
        ]}}))
        .unwrap();
        for (container, resource, divisor, expected) in [
            (None, "requests.cpu", None, Ok("2")),
            (Some("compute"), "requests.cpu", Some("1m"), Ok("1100")),
            (Some("other"), "requests.cpu", Some("1m"), Ok("5")),
            (Some("compute"), "limits.memory", Some("1Mi"), Ok("1024")),
            (Some("compute"), "limits.cpu", None, Ok("0")),
            (
                Some("none"),
                "limits.cpu",
                None,
                Err("the pod has no container \"none\""),
            ),
            (None, "cpu", None, Err("\"cpu\" is no resource such as limits.memory")),
        ] {
            let selector = ResourceFieldSelector {
                container_name: container.map(str::to_owned),
                divisor: divisor.map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.to_owned())),
                resource: resource.to_owned(),
            };
            let value = resource_value(&pod, &selector);
            assert_eq!(value.as_deref().map_err(String::as_str), expected, "{resource}");
        }
    }
}
