//! What Prometheus finds.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ferrovirt_e2e::{eventually, fails, run};

use super::node_of;
use super::release::pods;
use super::tls;
use crate::manifest::{spec, vmi};
use crate::{SOON, Shared};

/// Every component serves KubeVirt's names over TLS, under a certificate of our authority.
pub async fn metrics(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vmi("a", spec()))?;
    let node = node_of(home, ns, "a").await?;
    let guest = format!("node=\"{node}\",namespace=\"{ns}\",name=\"a\"");
    let mut leaders = (0, 0);
    for pod in pods(home, "virt-operator, virt-api, virt-controller, virt-handler")? {
        let word = |path: &str| pod.pointer(path).and_then(|v| v.as_str()).unwrap_or_default();
        let (component, ip) = (word("/metadata/labels/kubevirt.io"), word("/status/podIP"));
        let client = tls::client(home, ip)?;
        let scrape = || async {
            let request = http::Request::get("/metrics").body(Vec::new())?;
            anyhow::Ok(client.request_text(request).await?)
        };
        let text = scrape().await.with_context(|| format!("{component} at {ip}"))?;
        let has = |line: &str| text.lines().any(|found| found.starts_with(line));
        let mut wanted = vec!["kubevirt_info{kubeversion=\"v", "process_resident_memory_bytes "];
        match component {
            "virt-operator" => {
                wanted.extend([
                    "kubevirt_virt_operator_ready_status 1",
                    "kubevirt_virt_operator_leading_status ",
                ]);
                leaders.0 += usize::from(has("kubevirt_virt_operator_leading_status 1"));
            }
            "virt-controller" => {
                wanted.extend([
                    "kubevirt_virt_controller_ready_status 1",
                    "kubevirt_virt_controller_leading_status ",
                ]);
                if has("kubevirt_virt_controller_leading_status 1") {
                    leaders.1 += 1;
                    wanted.extend([
                        "kubevirt_vmi_phase_count{",
                        "kubevirt_vmi_info{",
                        "kubevirt_number_of_vms",
                    ]);
                }
            }
            "virt-handler" if word("/spec/nodeName") == node => guest_metrics(&guest, scrape).await?,
            "virt-api" | "virt-handler" => {}
            other => bail!("what is {other}?"),
        }
        for line in wanted {
            ensure!(has(line), "{component} has no {line} in\n{text}");
        }
        // Also as administrators look, through the API server.
        let proxy = format!(
            "/api/v1/namespaces/kubevirt/pods/https:{}:8443/proxy/metrics",
            word("/metadata/name")
        );
        ensure!(run(&mut home.kubectl(&["get", "--raw", &proxy]))?.contains("kubevirt_info{"));
        let plain = proxy.replace("https:", "http:");
        fails(&mut home.kubectl(&["get", "--raw", &plain]))?;
    }
    ensure!(leaders == (1, 1), "leaders of operators and controllers: {leaders:?}");
    Ok(())
}

/// What a guest uses, as its node says.
async fn guest_metrics<F>(guest: &str, scrape: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<String>>,
{
    for name in [
        "kubevirt_vmi_cpu_usage_seconds_total",
        "kubevirt_vmi_vcpu_seconds_total",
        "kubevirt_vmi_memory_resident_bytes",
        "kubevirt_vmi_network_receive_bytes_total",
        "kubevirt_vmi_storage_iops_read_total",
    ] {
        let line = format!("{name}{{{guest}");
        eventually(&line, SOON, || async {
            let text = scrape().await.map_err(|error| format!("{error:#}"))?;
            let found = text.lines().find(|found| found.starts_with(&line));
            let value = found.and_then(|found| found.rsplit(' ').next()?.parse::<f64>().ok());
            if value.is_some_and(|value| value > 0.0) {
                Ok(())
            } else {
                let ours: Vec<&str> = text.lines().filter(|line| line.contains(guest)).collect();
                Err(ours.join("\n"))
            }
        })
        .await?;
    }
    Ok(())
}
