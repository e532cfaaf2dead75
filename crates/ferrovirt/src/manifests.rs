//! `ferrovirt manifests`: the files of `deploy/`, all from what the operator knows of itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use virt_controller::operator::manifests::{self, Source};
use virt_controller::operator::resources::{dashboard, prometheus_rules};

/// Where images are, and where files go.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to
    directory: PathBuf,
    /// Registry and path of the images
    #[arg(long, default_value = "ghcr.io/ferrovirt")]
    registry: String,
    /// Tag of the images, and version that is installed
    #[arg(long, default_value = concat!("v", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Write nothing; fail if something is not as it would be written
    #[arg(long)]
    check: bool,
}

/// Writes or checks the files.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut stale = Vec::new();
    for (name, text) in files(&args.registry, &args.tag)? {
        let path = args.directory.join(name);
        if args.check {
            if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                stale.push(path.display().to_string());
            }
            continue;
        }
        let parent = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !stale.is_empty() {
        bail!("not up to date, run `cargo xtask deploy`: {}", stale.join(", "));
    }
    Ok(())
}

const MADE: &str = "# Written by `cargo xtask deploy`; changes go into the operator's source.\n";

fn files(registry: &str, tag: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let plain = Source {
        registry: registry.to_owned(),
        tag: tag.to_owned(),
        namespace: "kubevirt".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
    };
    let template = Source {
        registry: "{{ .Values.image.registry }}".to_owned(),
        tag: "{{ .Values.image.tag }}".to_owned(),
        namespace: "{{ .Release.Namespace }}".to_owned(),
        pull_policy: "{{ .Values.image.pullPolicy }}".to_owned(),
    };
    let [kubevirt_crd, cdi_crd] = manifests::definitions();
    let mut all = vec![manifests::namespace(&plain), kubevirt_crd.clone(), cdi_crd.clone()];
    all.extend(manifests::operator(&plain));
    let kubevirt = manifests::kubevirt(&plain.namespace);
    let version = tag.strip_prefix('v').unwrap_or(tag);
    let chart = json!({
        "apiVersion": "v2", "name": "ferrovirt", "type": "application",
        "description": "Virtual machines through the Kubernetes API: the operator of Ferrovirt",
        "version": env!("CARGO_PKG_VERSION"), "appVersion": version, "kubeVersion": ">=1.32.0-0",
    });
    let values = json!({
        "image": {"registry": registry, "tag": tag, "pullPolicy": "IfNotPresent"},
        "kubevirt": {"create": true, "spec": kubevirt["spec"]},
        "grafana": {"dashboard": {"create": true, "labels": {"grafana_dashboard": "1"}, "annotations": {}}},
    });
    let dashboard = json(&dashboard())?;
    Ok(vec![
        ("ferrovirt-operator.yaml", documents(&all)?),
        ("kubevirt-cr.yaml", documents(std::slice::from_ref(&kubevirt))?),
        ("helm/ferrovirt/Chart.yaml", format!("{MADE}{}", yaml(&chart)?)),
        ("helm/ferrovirt/values.yaml", format!("{MADE}{}", yaml(&values)?)),
        ("helm/ferrovirt/crds/kubevirt.yaml", documents(&[kubevirt_crd])?),
        ("helm/ferrovirt/crds/cdi.yaml", documents(&[cdi_crd])?),
        (
            "helm/ferrovirt/templates/operator.yaml",
            documents(&manifests::operator(&template))?,
        ),
        ("helm/ferrovirt/templates/kubevirt.yaml", CHART_KUBEVIRT.to_owned()),
        ("helm/ferrovirt/templates/dashboard.yaml", CHART_DASHBOARD.to_owned()),
        ("helm/ferrovirt/dashboards/ferrovirt.json", dashboard.clone()),
        ("grafana/ferrovirt.json", dashboard),
        (
            "prometheus/ferrovirt-rules.yaml",
            format!("{MADE}{}", yaml(&prometheus_rules(&plain.namespace, 2))?),
        ),
    ])
}

/// The object outlives the chart: removing it removes all VMs, which nobody should do by accident.
const CHART_KUBEVIRT: &str = "\
{{- if .Values.kubevirt.create }}
apiVersion: kubevirt.io/v1
kind: KubeVirt
metadata:
  name: kubevirt
  namespace: '{{ .Release.Namespace }}'
  annotations:
    helm.sh/resource-policy: keep
spec:
  {{- toYaml .Values.kubevirt.spec | nindent 2 }}
{{- end }}
";

/// Grafana's sidecar looks for the label. The dashboard is a file of its own, as its templates are Grafana's and not Helm's.
const CHART_DASHBOARD: &str = "\
{{- with .Values.grafana.dashboard }}
{{- if .create }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: ferrovirt-dashboard
  namespace: '{{ $.Release.Namespace }}'
  labels:
    {{- toYaml .labels | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
data:
  ferrovirt.json: |-
    {{- $.Files.Get \"dashboards/ferrovirt.json\" | trim | nindent 4 }}
{{- end }}
{{- end }}
";

fn json(value: &Value) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    Ok(text)
}

fn yaml(value: &Value) -> anyhow::Result<String> {
    serde_yaml_ng::to_string(value).context("cannot write YAML")
}

fn documents(all: &[Value]) -> anyhow::Result<String> {
    let mut text = MADE.to_owned();
    for value in all {
        text.push_str("---\n");
        text.push_str(&yaml(value)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With its default values the chart says the same as the plain manifests.
    #[test]
    fn chart_and_manifests_agree() {
        let all = files("registry.example", "v1").unwrap();
        let text = |name: &str| &all.iter().find(|(file, _)| *file == name).unwrap().1;
        let filled = text("helm/ferrovirt/templates/operator.yaml")
            .replace("{{ .Values.image.registry }}", "registry.example")
            .replace("{{ .Values.image.tag }}", "v1")
            .replace("{{ .Values.image.pullPolicy }}", "IfNotPresent")
            .replace("{{ .Release.Namespace }}", "kubevirt");
        assert!(!filled.contains("{{"));
        let parse = |text: &str| -> Vec<Value> {
            let documents = text.split("---\n").skip(1);
            documents.map(|text| serde_yaml_ng::from_str(text).unwrap()).collect()
        };
        let plain = parse(text("ferrovirt-operator.yaml"));
        assert_eq!(parse(&filled), plain[3..]);
        assert_eq!(parse(text("helm/ferrovirt/crds/kubevirt.yaml")), plain[1..2]);
        assert_eq!(parse(text("helm/ferrovirt/crds/cdi.yaml")), plain[2..3]);
    }
}
