//! The machine as a guest sees it, also one of another architecture, and what becomes of one whose kernel panics, whose
//! watchdog bites, or whose boot loader nobody has signed.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, condition, eventually, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::manifest::{add_disk, add_script, spec, vm, vmi};
use super::{BOOT, SOON, Shared, archive, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "hardware", hardware),
        trial(shared, "devices", devices),
        trial(shared, "huge-pages", huge_pages),
        trial(shared, "arm64", arm64),
        trial(shared, "secure-boot", secure_boot),
        trial(shared, "secure-boot-signed", secure_boot_signed),
        trial(shared, "watchdog", watchdog),
        trial(shared, "reboot-policy", reboot_policy),
        trial(shared, "guest-panic", guest_panic),
    ]
}

const UUID: &str = "5d307ca9-b3ef-428c-8861-06e72d69f223";

/// Each line begins with a word that no other has. A bus of USB is scanned in its own time: under emulation, on a busy
/// node, in tens of seconds.
const LOOK: &str = r#"
modprobe xhci_pci; modprobe usb_storage; modprobe uas
usb() { ls -l /sys/block | grep -q '/usb.*/sd.$'; }
for i in $(seq 600); do usb && break; usleep 100000; done
echo "cpus $(grep -c ^processor /proc/cpuinfo) $(grep -m 1 '^model name' /proc/cpuinfo)"
echo "memory $(awk '/^MemTotal/ {print ($2 > 200000 && $2 < 262144) ? "as wanted" : $2}' /proc/meminfo)"
cd /sys/class/dmi/id
echo "system $(cat product_uuid) $(cat product_serial)"
echo "chassis $(cat chassis_vendor) $(cat chassis_version) $(cat chassis_serial) $(cat chassis_asset_tag)"
echo "table $(head -c 4 /sys/firmware/acpi/tables/SLIC) $(tail -c 12 /sys/firmware/acpi/tables/SLIC)"
echo "random $(cat /sys/class/misc/hw_random/rng_current)"
cd /sys/block
for disk in vd?; do echo "virtio $(cat $disk/size) $(cat $disk/serial)"; done
for disk in sd?; do
    kind=scsi
    case $(readlink $disk) in */usb*) kind=usb ;; */ata*) kind=sata ;; esac
    echo "$kind $(cat $disk/size) $(tr -cd 'A-Z0-9' <$disk/device/vpd_pg80)"
done
echo "usb serials $(cat /sys/bus/usb/devices/*/serial)"
echo "cd-rom $(cat sr0/ro) $(grep -c 'sr0 /seed iso9660' /proc/mounts)"
echo looked-$((1+1))
"#;

/// A table that no operating system but the test looks for: the header of an ACPI table, and twelve bytes.
fn slic() -> Vec<u8> {
    let mut table = b"SLIC".to_vec();
    table.extend(48u32.to_le_bytes());
    // Revision, a checksum that QEMU makes, who made it, which table, revisions.
    table.extend([1, 0]);
    table.extend(b"FERROVTABLE123");
    table.extend(1u32.to_le_bytes());
    table.extend(b"FERR");
    table.extend(1u32.to_le_bytes());
    table.extend(b"for-licenses");
    table
}

/// Boots from SATA, and reads its user data from a CD-ROM.
fn machine() -> Value {
    let mut spec = spec();
    spec["domain"]["cpu"] = json!({"sockets": 1, "cores": 2, "threads": 1, "model": "Penryn"});
    spec["domain"]["memory"]["guest"] = json!("256Mi");
    spec["domain"]["firmware"] = json!({"uuid": UUID, "serial": "SERIAL-7", "acpi": {"slicNameRef": "slic"}});
    spec["domain"]["chassis"] = json!({"manufacturer": "Maker", "version": "V2", "serial": "C-3", "asset": "A-4"});
    spec["domain"]["devices"]["disks"][0] =
        json!({"name": "root", "disk": {"bus": "sata"}, "bootOrder": 1, "serial": "SATA1"});
    for (bus, size) in [("virtio", "16Mi"), ("scsi", "24Mi"), ("usb", "8Mi")] {
        add_disk(
            &mut spec,
            json!({"name": bus, "disk": {"bus": bus}, "serial": format!("{}1", bus.to_uppercase())}),
            json!({"name": bus, "emptyDisk": {"capacity": size}}),
        );
    }
    add_script(&mut spec, LOOK);
    if let Some(seed) = spec["domain"]["devices"]["disks"]
        .as_array_mut()
        .and_then(|all| all.last_mut())
    {
        *seed = json!({"name": "seed", "cdrom": {"bus": "sata"}});
    }
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(json!({"name": "slic", "secret": {"secretName": "slic"}}));
    }
    spec
}

/// Shows `spec.domain.cpu.sockets`, `spec.domain.cpu.cores`, `spec.domain.cpu.model`, `spec.domain.memory.guest`,
/// `spec.domain.firmware.uuid`, `spec.domain.firmware.serial`, `spec.domain.firmware.acpi.slicNameRef`,
/// `spec.domain.chassis.manufacturer`, `spec.domain.chassis.version`, `spec.domain.chassis.serial`,
/// `spec.domain.chassis.asset`, `spec.domain.devices.rng`, `spec.domain.devices.disks[].serial`,
/// `spec.domain.devices.disks[].disk.bus`, `spec.domain.devices.disks[].cdrom.bus`,
/// `spec.domain.devices.disks[].bootOrder`, `spec.volumes[].emptyDisk.capacity`.
async fn hardware(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("slic.bin");
    std::fs::write(&file, slic())?;
    let from = format!("--from-file={}", file.display());
    run(&mut home.kubectl(&["create", "secret", "generic", "slic", "-n", ns, &from]))?;
    home.apply(ns, &vmi("a", machine()))?;
    let log = home.wait_serial(ns, "a", "looked-2", BOOT).await?;
    let system = format!("system {UUID} SERIAL-7");
    for line in [
        "cpus 2 model name\t: Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
        "memory as wanted",
        &system,
        "chassis Maker V2 C-3 A-4",
        "table SLIC for-licenses",
        "random virtio_rng.0",
        // Sizes are in sectors of 512.
        "virtio 32768 VIRTIO1",
        "sata 81920 SATA1",
        "scsi 49152 SCSI1",
        "usb 16384 ",
        "cd-rom 1 1",
    ] {
        ensure!(log.contains(line), "{line:?} is not in {log}");
    }
    let serials = log.split_once("usb serials").map(|(_, rest)| rest).unwrap_or_default();
    ensure!(serials.contains("USB1"), "{log}");
    Ok(())
}

/// Each line begins with a word that no other has.
const LOOK_AT_DEVICES: &str = r#"
modprobe xhci_pci
tablet() { cat /sys/bus/usb/devices/*/product 2>/dev/null | grep -q Tablet; }
for i in $(seq 600); do tablet && break; usleep 100000; done
echo "siblings $(cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list)"
echo "card $(cat /sys/class/net/eth0/address) $(basename $(readlink /sys/class/net/eth0/device/driver)) $(cat /sys/class/net/eth0/device/acpi_index)"
cd /sys/block
for disk in vd?; do
    echo "disk $(cat $disk/serial) ro=$(cat $disk/ro) $(cat $disk/queue/logical_block_size)/$(cat $disk/queue/physical_block_size) cache=$(cat $disk/queue/write_cache)"
done
echo "inputs $(cat /sys/bus/usb/devices/*/product)"
cd /sys/bus/pci/devices
for device in *; do echo "pci $(cat $device/vendor):$(cat $device/device)"; done
echo "year $(date -u +%Y)"
echo looked-$((1+1))
"#;

/// Shows `spec.domain.cpu.threads`, `spec.domain.devices.disks[].disk.readonly`, `spec.domain.devices.disks[].blockSize`,
/// `spec.domain.devices.disks[].cache`, `spec.domain.devices.interfaces[].macAddress`,
/// `spec.domain.devices.interfaces[].model`, `spec.domain.devices.interfaces[].acpiIndex`,
/// `spec.domain.devices.inputs[].type`, `spec.domain.devices.inputs[].bus`, `spec.domain.devices.sound.model`,
/// `spec.domain.clock.utc.offsetSeconds`.
async fn devices(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["cpu"] = json!({"sockets": 1, "cores": 1, "threads": 2, "model": "Penryn"});
    // Twenty years.
    spec["domain"]["clock"] = json!({"utc": {"offsetSeconds": 20 * 31_556_952}});
    let devices = &mut spec["domain"]["devices"];
    devices["interfaces"][0]["macAddress"] = json!("02:00:00:00:00:77");
    devices["interfaces"][0]["model"] = json!("e1000e");
    devices["interfaces"][0]["acpiIndex"] = json!(101);
    devices["inputs"] = json!([{"name": "tablet", "type": "tablet", "bus": "usb"}]);
    devices["sound"] = json!({"name": "loud", "model": "ich9"});
    for disk in [
        json!({"name": "still", "disk": {"bus": "virtio", "readonly": true}, "serial": "STILL"}),
        json!({"name": "large", "disk": {"bus": "virtio"}, "serial": "LARGE",
            "blockSize": {"custom": {"logical": 4096, "physical": 4096}}}),
        json!({"name": "through", "disk": {"bus": "virtio"}, "serial": "THROUGH", "cache": "writethrough"}),
    ] {
        let volume = json!({"name": disk["name"], "emptyDisk": {"capacity": "8Mi"}});
        add_disk(&mut spec, disk, volume);
    }
    add_script(&mut spec, LOOK_AT_DEVICES);
    let now = i64::from(jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year());
    home.apply(ns, &vmi("a", spec))?;
    let log = home.wait_serial(ns, "a", "looked-2", BOOT).await?;
    for line in [
        "siblings 0-1",
        "card 02:00:00:00:00:77 e1000e 101",
        "disk STILL ro=1 512/512",
        "disk LARGE ro=0 4096/4096 cache=write back",
        "disk THROUGH ro=0 512/512 cache=write through",
        "pci 0x8086:0x293e",
    ] {
        ensure!(log.contains(line), "{line:?} is not in {log}");
    }
    let inputs = log.split_once("inputs").map(|(_, rest)| rest).unwrap_or_default();
    ensure!(inputs.contains("QEMU USB Tablet"), "{log}");
    let years = [now + 20, now + 21].map(|year| format!("year {year}"));
    ensure!(years.iter().any(|year| log.contains(year)), "{log}");
    Ok(())
}

/// A guest that reboots is over, and its VM starts another.
///
/// Shows `spec.domain.rebootPolicy`.
async fn reboot_policy(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["rebootPolicy"] = json!("Terminate");
    add_script(&mut spec, "reboot -f");
    home.apply(ns, &vmi("a", spec))?;
    home.wait_phase(ns, "a", "Succeeded", BOOT).await.map(drop)
}

/// Pages of 2 MiB that the guest of `huge_pages` is made of.
const HUGE_PAGES: u64 = 64;
const HUGE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn pages(file: &str) -> Result<u64> {
    let path = format!("{HUGE}/{file}");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().with_context(|| format!("{path}: {text:?}"))
}

/// Has the kernel set pages aside, as an administrator does before the machine becomes a node. They stay, so that the
/// next run need not find memory that hangs together again.
pub fn reserve_huge_pages() -> Result<()> {
    if pages("nr_hugepages")? < HUGE_PAGES {
        std::fs::write(format!("{HUGE}/nr_hugepages"), HUGE_PAGES.to_string()).context(HUGE)?;
    }
    let there = pages("free_hugepages")?;
    ensure!(
        there >= HUGE_PAGES,
        "{there} huge pages are free, {HUGE_PAGES} are needed"
    );
    Ok(())
}

/// Shows `spec.domain.memory.hugepages.pageSize`.
async fn huge_pages(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let before = pages("free_hugepages")?;
    let mut spec = spec();
    spec["domain"]["memory"] = json!({"guest": "128Mi", "hugepages": {"pageSize": "2Mi"}});
    home.apply(ns, &vmi("a", spec.clone()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let during = pages("free_hugepages")?;
    ensure!(
        during < before,
        "{before} pages were free before, {during} with the guest"
    );

    // There are no pages for another one: it waits, and says what for.
    home.apply(ns, &vmi("b", spec))?;
    let kind = "VirtualMachineInstance";
    let waits = |o: &Value| {
        condition(o, "PodScheduled")["message"]
            .as_str()
            .is_some_and(|message| message.contains("Insufficient hugepages-2Mi"))
    };
    home.wait(kind, ns, "b", SOON, "it waits for huge pages", waits).await?;
    run(&mut home.kubectl(&["delete", "vmi", "a", "-n", ns]))?;
    home.wait_serial(ns, "b", "is ready at", BOOT).await.map(drop)
}

/// Each line begins with a word that no other has.
const LOOK_ARM64: &str = r#"
echo "machine $(uname -m)"
echo "cpus $(grep -c ^processor /proc/cpuinfo)"
echo "firmware $(ls -d /sys/firmware/efi)"
for disk in /sys/block/vd?; do
    echo "disk ${disk##*/} $(cat "$disk/size") $(cat "$disk/serial") $(cat "$disk/device/vendor")"
done
echo "net $(cat /sys/class/net/eth0/device/vendor) $(ip -4 -o addr show dev eth0 | awk '{print $4}')"
echo looked-$((1+1))
"#;

/// QEMU emulates a machine of another architecture than this one's.
///
/// Shows `spec.architecture`.
async fn arm64(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.import(&archive("FERROVIRT_TINY_ARM64", "tiny-arm64")?, "test/tiny-arm64:1")?;
    let mut spec = spec();
    spec["architecture"] = json!("arm64");
    spec["domain"]["cpu"] = json!({"cores": 2});
    spec["domain"]["memory"]["guest"] = json!("256Mi");
    spec["volumes"][0]["containerDisk"]["image"] = json!("test/tiny-arm64:1");
    add_disk(
        &mut spec,
        json!({"name": "data", "disk": {"bus": "virtio"}, "serial": "DATA1"}),
        json!({"name": "data", "emptyDisk": {"capacity": "16Mi"}}),
    );
    add_script(&mut spec, LOOK_ARM64);
    home.apply(ns, &vmi("a", spec))?;
    let log = home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    for line in [
        "machine aarch64",
        "cpus 2",
        "firmware /sys/firmware/efi",
        // In sectors of 512, by virtio's number of its vendor.
        "disk vdb 32768 DATA1 0x1af4",
        "net 0x1af4 10.0.2.2/",
        "looked-2",
        "is ready at 10.0.2.2",
    ] {
        ensure!(log.contains(line), "{line:?} is not in {log}");
    }
    let vmi = home.wait_phase(ns, "a", "Running", SOON).await?;
    let machine = vmi["status"]["machine"]["type"].as_str().unwrap_or_default();
    ensure!(machine.starts_with("virt-"), "{}", vmi["status"]);
    run(&mut home.kubectl(&["delete", "vmi", "a", "-n", ns])).map(drop)
}

/// A guest that starts only what was signed.
fn with_secure_boot() -> Value {
    let mut spec = spec();
    spec["domain"]["features"] = json!({"smm": {"enabled": true}});
    spec["domain"]["firmware"] = json!({"bootloader": {"efi": {"secureBoot": true}}});
    spec["domain"]["memory"]["guest"] = json!("512Mi");
    spec
}

/// The same disk boots without secure boot (see `uefi`), and with it by a loader that is signed (see
/// `secure_boot_signed`).
///
/// Shows `spec.domain.firmware.bootloader.efi.secureBoot`, `spec.domain.features.smm`.
async fn secure_boot(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vmi("a", with_secure_boot()))?;
    let log = home.wait_serial(ns, "a", "Access Denied", BOOT).await?;
    ensure!(!log.contains("is ready at"), "{log}");
    Ok(())
}

/// What the firmware says of itself: four bytes of attributes, and whether it is on.
const SECURE: &str = r#"
modprobe efivarfs
mount -t efivarfs none /sys/firmware/efi/efivars
echo "secure boot is $(tail -c 1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c | od -An -tu1)"
"#;

/// Shows `spec.domain.firmware.bootloader.efi.secureBoot`, `spec.domain.features.smm`,
/// `spec.volumes[].containerDisk.path`.
async fn secure_boot_signed(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = with_secure_boot();
    spec["domain"]["devices"]["disks"][0]["bootOrder"] = json!(2);
    add_disk(
        &mut spec,
        json!({"name": "loader", "disk": {"bus": "virtio"}, "bootOrder": 1}),
        json!({"name": "loader", "containerDisk": {"image": "test/tiny:1", "path": "/boot/signed.img"}}),
    );
    add_script(&mut spec, SECURE);
    home.apply(ns, &vmi("a", spec))?;
    let log = home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let told = log
        .split_once("secure boot is")
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    ensure!(told.trim_start().starts_with('1'), "{log}");
    Ok(())
}

/// Nobody feeds the watchdog; a guest that finds the mark on its disk was reset.
const UNFED: &str = r#"
if [ "$(head -c 6 /dev/vdb)" = bitten ]; then
    echo "back after the watchdog"
else
    printf bitten | dd of=/dev/vdb conv=fsync 2>/dev/null
    modprobe i6300esb heartbeat=2
    exec 3>/dev/watchdog
    while :; do sleep 1; done
fi
"#;

fn with_watchdog(action: &str) -> Value {
    let mut spec = spec();
    spec["domain"]["devices"]["watchdog"] = json!({"name": "dog", "i6300esb": {"action": action}});
    add_disk(
        &mut spec,
        json!({"name": "mark", "disk": {"bus": "virtio"}}),
        json!({"name": "mark", "emptyDisk": {"capacity": "1Mi"}}),
    );
    add_script(&mut spec, UNFED);
    spec
}

/// Shows `spec.domain.devices.watchdog.name`, `spec.domain.devices.watchdog.i6300esb.action`.
async fn watchdog(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vmi("reset", with_watchdog("reset")))?;
    let before = home.wait_phase(ns, "reset", "Running", BOOT).await?;
    home.wait_serial(ns, "reset", "back after the watchdog", BOOT).await?;
    let after = home.wait_phase(ns, "reset", "Running", SOON).await?;
    let pods = |vmi: &Value| vmi["status"]["activePods"].clone();
    ensure!(pods(&before) == pods(&after), "{after}");
    run(&mut home.kubectl(&["delete", "vmi", "reset", "-n", ns]))?;

    home.apply(ns, &vmi("off", with_watchdog("poweroff")))?;
    ended(
        home,
        ns,
        "off",
        "(GuestCrashed): the guest's QEMU process ended unexpectedly",
    )
    .await
}

/// Waits for the end of a guest that did not end well, and for an event that says why.
async fn ended(home: &Home, ns: &str, name: &str, why: &str) -> Result<()> {
    let vmi = home.wait_phase(ns, name, "Failed", BOOT).await?;
    ensure!(vmi["status"]["reason"] == "GuestCrashed", "{}", vmi["status"]);
    eventually("an event says why", SOON, || async {
        let events = run(&mut home.kubectl(&["get", "events", "-n", ns])).map_err(|e| format!("{e:#}"))?;
        events.contains(why).then_some(()).ok_or(events)
    })
    .await
}

/// Shows `spec.domain.devices.panicDevices[].model`.
async fn guest_panic(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["devices"]["panicDevices"] = json!([{"model": "pvpanic"}]);
    add_script(&mut spec, "modprobe pvpanic_pci; echo c >/proc/sysrq-trigger");
    home.apply(ns, &vmi("alone", spec.clone()))?;
    ended(home, ns, "alone", "(GuestCrashed): the guest panicked").await?;

    home.apply(ns, &vm("a", "RerunOnFailure", spec))?;
    let first = home.wait_phase(ns, "a", "Running", BOOT).await?;
    let first = first["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    let other = |o: &Value| o["metadata"]["uid"].as_str().is_some_and(|uid| uid != first);
    let kind = "VirtualMachineInstance";
    home.wait(kind, ns, "a", BOOT, "started anew by its run strategy", other)
        .await
        .map(drop)
}
