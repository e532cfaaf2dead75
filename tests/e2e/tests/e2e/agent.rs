//! Guests whose agent is not on our side: what it says is cut to size, and nothing else suffers.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, condition, eventually, run};
use libtest_mimic::Trial;
use serde_json::Value;

use super::manifest::{add_script, spec, vmi};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "hostile-agent", hostile_agent)]
}

/// A guest agent that lies and exaggerates when it is asked first, then is silent, hangs up, and at last never stops
/// talking. It claims two thousand interfaces, its own first, all with somebody else's address.
const HOSTILE: &str = r#"
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && device=/dev/${port##*/}
done
mac=$(cat /sys/class/net/eth0/address)
answer() { echo "$1" >&3; }
filler() { head -c "$1" /dev/zero | tr '\0' x; }
interfaces() {
    printf '{"return": [{"name": "eth0", "hardware-address": "%s", "ip-addresses": [{"ip-address": "203.0.113.66"}]}' "$mac"
    seq 2000 | sed 's/.*/, {"name": "e\\u001b[&", "hardware-address": "52:54:00:99:99:99", "ip-addresses": [{"ip-address": "203.0.113.67"}, {"ip-address": "no address"}]}/' | tr -d '\n'
    echo ']}'
}
(
    turn=0
    while exec 3<>"$device"; do
        # The port reads as ended while the host has not connected to it.
        hung_up=
        until [ "$hung_up" ]; do
        while read -r line <&3; do
            case $line in
                *guest-sync*) answer "{\"return\": $(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')}" ;;
                *guest-info*) turn=$((turn + 1)); echo "turn $turn" >/dev/ttyS0; case $turn in
                    1) answer "{\"return\": {\"version\": \"\\u001b[31m$(filler 100000)\", \"supported_commands\": []}}" ;;
                    2) sleep 7 ;;
                    3) hung_up=1; break ;;
                    *) filler 104857600 >&3; echo "all was said" >/dev/ttyS0 ;;
                    esac ;;
                *guest-get-osinfo*) answer "{\"return\": {\"id\": \"liar\\u0000\\n\", \"name\": \"$(filler 100000)\"}}" ;;
                *guest-network-get-interfaces*) interfaces >&3 ;;
                *) answer '{"error": {"class": "CommandNotFound", "desc": "not here"}}' ;;
            esac
        done
        sleep 1
        done
        exec 3>&-
        sleep 1
    done
) &
"#;

/// All strings in a value, keys included.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(all) => all.iter().flat_map(strings).collect(),
        Value::Object(all) => all
            .iter()
            .flat_map(|(key, value)| [vec![key.as_str()], strings(value)].concat())
            .collect(),
        _ => Vec::new(),
    }
}

async fn hostile_agent(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    add_script(&mut spec, HOSTILE);
    home.apply(ns, &vmi("a", spec))?;
    let kind = "VirtualMachineInstance";
    let seen = home
        .wait(kind, ns, "a", BOOT, "the agent's words are there", |o| {
            condition(o, "AgentConnected")["status"] == "True" && o["status"]["guestOSInfo"]["id"].is_string()
        })
        .await?;
    sane(home, ns, &seen)?;
    // Asked until it talks without end. Each answer or refusal comes in time, whatever the agent does.
    eventually("the agent talks without end", BOOT, || async {
        let _ = home.virtctl(&["guestosinfo", "-n", ns, "a"]).output();
        let log = home.serial_log(ns, "a").map_err(|error| format!("{error:#}"))?;
        if log.contains("turn 4") { Ok(()) } else { Err(log) }
    })
    .await?;
    run(&mut home.virtctl(&["pause", "vmi", "a", "-n", ns]))?;
    home.wait(kind, ns, "a", SOON, "it is paused", |o| {
        condition(o, "Paused")["status"] == "True"
    })
    .await?;
    run(&mut home.virtctl(&["unpause", "vmi", "a", "-n", ns]))?;
    let seen = home
        .wait(kind, ns, "a", SOON, "it goes on", |o| condition(o, "Paused").is_null())
        .await?;
    ensure!(seen["status"]["phase"] == "Running", "{}", seen["status"]);
    sane(home, ns, &seen)?;
    run(&mut home.kubectl(&["delete", "vmi", "a", "-n", ns, "--wait=false"]))?;
    home.wait_gone(kind, ns, "a", SOON).await
}

/// The status is small, and believes the agent nothing that others decide by.
fn sane(home: &Home, ns: &str, vmi: &Value) -> Result<()> {
    let status = &vmi["status"];
    let size = status.to_string().len();
    ensure!(size < 64 << 10, "the status has {size} bytes");
    for text in strings(status) {
        ensure!(text.len() <= 1024 && !text.contains(char::is_control), "{text:?}");
    }
    let pod = run(&mut home.kubectl(&[
        "get",
        "pod",
        "-n",
        ns,
        "-l",
        "vm.kubevirt.io/name=a",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ]))?;
    let interfaces = status["interfaces"].as_array().context("interfaces")?;
    let own = interfaces
        .iter()
        .find(|one| one["name"] == "default")
        .context("the pod network's")?;
    ensure!(
        own["ipAddress"] == pod.as_str() && !pod.is_empty(),
        "{own} of the pod {pod:?}"
    );
    ensure!(interfaces.len() <= 64, "{} interfaces", interfaces.len());
    Ok(())
}
