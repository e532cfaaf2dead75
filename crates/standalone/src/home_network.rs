//! Which bridge and which addresses the pods of a home get.
//!
//! Chosen once per data directory and kept in `cni/network.json`: the first of `ferrovirt0` with 10.88.0.0/16,
//! `ferrovirt1` with 10.89.0.0/16 … that no other home and no route of the machine uses.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::paths::DataDir;
use crate::pods::network::NetworkConfig;

/// Claims of the homes of this machine, and their network namespaces; emptied by a reboot.
const RUN_DIR: &str = "/run/ferrovirt";
/// Second octet of the first home's network.
const FIRST: u8 = 88;
/// How many homes are tried.
const HOMES: u8 = 100;

/// Why there is no network for pods.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// A file.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The wanted one is no network.
    #[error("--pod-subnet {0} is not an IPv4 network such as 10.88.0.0/16")]
    Invalid(String),
    /// It is in use.
    #[error("the pod network {subnet} overlaps with {route} on {interface}; choose another one with --pod-subnet")]
    Overlap {
        /// What was wanted.
        subnet: String,
        /// A route of the machine.
        route: String,
        /// Where it leads.
        interface: String,
    },
    /// All are in use.
    #[error("no network between 10.{FIRST}.0.0/16 and 10.{}.0.0/16 is free; choose one with --pod-subnet", FIRST + HOMES - 1)]
    Exhausted,
}

#[derive(Debug, Serialize, Deserialize)]
struct Chosen {
    bridge: String,
    subnet: String,
}

/// A network in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet {
    address: u32,
    prefix: u32,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (u32::from(address.parse::<Ipv4Addr>().ok()?), prefix.parse().ok()?);
        let subnet = Self { address, prefix };
        // At least a gateway and a few pods fit.
        (prefix <= 29 && address & !subnet.mask() == 0).then_some(subnet)
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - self.prefix).unwrap_or(0)
    }

    fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.address & mask == other.address & mask
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.address), self.prefix)
    }
}

/// The networks that `/proc/net/route` knows, without the default routes, and their interfaces.
fn routes(table: &str) -> Vec<(Subnet, String)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok().map(u32::swap_bytes);
        let (address, mask) = (number(1)?, number(7)?);
        (mask != 0).then(|| {
            (
                Subnet {
                    address,
                    prefix: mask.count_ones(),
                },
                fields[0].to_owned(),
            )
        })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The first route that overlaps and does not lead to `bridge` itself.
fn overlap<'a>(subnet: Subnet, bridge: &str, routes: &'a [(Subnet, String)]) -> Option<&'a (Subnet, String)> {
    routes
        .iter()
        .find(|(route, interface)| interface != bridge && route.overlaps(subnet))
}

/// Finds the home's network, or chooses one and claims it.
///
/// # Errors
/// See [`ChoiceError`].
pub fn choose(data: &DataDir, wanted: Option<&str>) -> Result<NetworkConfig, ChoiceError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ChoiceError::File { path, source }
    };
    let claims = Path::new(RUN_DIR).join("homes");
    fs::create_dir_all(&claims).map_err(failed(&claims))?;
    fs::create_dir_all(data.cni()).map_err(failed(&data.cni()))?;
    let _one_at_a_time = exclusive(&claims.join(".lock")).map_err(failed(&claims))?;
    let file = data.cni().join("network.json");
    let kept: Option<Chosen> = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let chosen = pick(kept, wanted, &routes(&table), |bridge| is_free(&claims, bridge, data))?;
    let text = serde_json::to_vec(&chosen).map_err(|error| failed(&file)(error.into()))?;
    fs::write(&file, text).map_err(failed(&file))?;
    let claim = claims.join(&chosen.bridge);
    fs::write(&claim, data.path().as_os_str().as_encoded_bytes()).map_err(failed(&claim))?;
    Ok(NetworkConfig {
        directory: data.cni(),
        netns: Path::new(RUN_DIR).join("netns").join(&chosen.bridge),
        bridge: chosen.bridge,
        subnet: chosen.subnet,
    })
}

/// The network of a home that was up before, for cleaning up after it.
#[must_use]
pub fn known(data: &DataDir) -> Option<NetworkConfig> {
    let chosen: Chosen = serde_json::from_slice(&fs::read(data.cni().join("network.json")).ok()?).ok()?;
    Some(NetworkConfig {
        directory: data.cni(),
        netns: Path::new(RUN_DIR).join("netns").join(&chosen.bridge),
        bridge: chosen.bridge,
        subnet: chosen.subnet,
    })
}

/// Gives a home's claim back.
pub(crate) fn release(network: &NetworkConfig) {
    let _ = fs::remove_dir(&network.netns);
    let _ = fs::remove_file(Path::new(RUN_DIR).join("homes").join(&network.bridge));
}

fn exclusive(path: &Path) -> io::Result<Flock<fs::File>> {
    Flock::lock(fs::File::create(path)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// No other home that still exists has claimed it, and no interface has the name.
fn is_free(claims: &Path, bridge: &str, data: &DataDir) -> bool {
    match fs::read_to_string(claims.join(bridge)) {
        Ok(owner) => Path::new(&owner) == data.path() || !DataDir::new(owner).cni().exists(),
        Err(_) => !Path::new("/sys/class/net").join(bridge).exists(),
    }
}

fn pick(
    kept: Option<Chosen>,
    wanted: Option<&str>,
    routes: &[(Subnet, String)],
    is_free: impl Fn(&str) -> bool,
) -> Result<Chosen, ChoiceError> {
    let kept = kept.filter(|kept| wanted.is_none_or(|wanted| wanted == kept.subnet));
    if let Some(kept) = kept.filter(|kept| is_free(&kept.bridge)) {
        let subnet = Subnet::parse(&kept.subnet).ok_or_else(|| ChoiceError::Invalid(kept.subnet.clone()))?;
        return match overlap(subnet, &kept.bridge, routes) {
            None => Ok(kept),
            Some((route, interface)) => Err(ChoiceError::Overlap {
                subnet: kept.subnet,
                route: route.to_string(),
                interface: interface.clone(),
            }),
        };
    }
    for number in (0..HOMES).filter(|number| is_free(&format!("ferrovirt{number}"))) {
        let bridge = format!("ferrovirt{number}");
        let subnet = wanted.map_or_else(|| format!("10.{}.0.0/16", FIRST + number), str::to_owned);
        let parsed = Subnet::parse(&subnet).ok_or_else(|| ChoiceError::Invalid(subnet.clone()))?;
        match (overlap(parsed, &bridge, routes), wanted) {
            (None, _) => return Ok(Chosen { bridge, subnet }),
            (Some((route, interface)), Some(_)) => {
                return Err(ChoiceError::Overlap {
                    subnet,
                    route: route.to_string(),
                    interface: interface.clone(),
                });
            }
            (Some(_), None) => {}
        }
    }
    Err(ChoiceError::Exhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        podman0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn the_first_free_network_is_taken() {
        let routes = routes(TABLE);
        assert_eq!(routes, [(Subnet::parse("10.88.0.0/16").unwrap(), "podman0".to_owned())]);
        let chosen = pick(None, None, &routes, |_| true).unwrap();
        assert_eq!(
            (chosen.bridge.as_str(), chosen.subnet.as_str()),
            ("ferrovirt1", "10.89.0.0/16")
        );
        let chosen = pick(None, None, &[], |bridge| bridge != "ferrovirt0").unwrap();
        assert_eq!(
            (chosen.bridge.as_str(), chosen.subnet.as_str()),
            ("ferrovirt1", "10.89.0.0/16")
        );
        assert!(matches!(pick(None, None, &[], |_| false), Err(ChoiceError::Exhausted)));
    }

    #[test]
    fn what_was_chosen_stays() {
        let kept = || {
            Some(Chosen {
                bridge: "ferrovirt4".into(),
                subnet: "10.88.0.0/16".into(),
            })
        };
        let own = [(Subnet::parse("10.88.0.0/16").unwrap(), "ferrovirt4".to_owned())];
        assert_eq!(pick(kept(), None, &own, |_| true).unwrap().bridge, "ferrovirt4");
        assert!(matches!(
            pick(kept(), None, &routes(TABLE), |_| true),
            Err(ChoiceError::Overlap { .. })
        ));
    }

    #[test]
    fn a_wanted_network_is_checked() {
        assert_eq!(
            pick(None, Some("192.168.7.0/24"), &[], |_| true).unwrap().subnet,
            "192.168.7.0/24"
        );
        for invalid in ["10.88.0.1/16", "10.88.0.0", "x/16", "10.0.0.0/30", "10.0.0.0/33"] {
            assert!(
                matches!(pick(None, Some(invalid), &[], |_| true), Err(ChoiceError::Invalid(_))),
                "{invalid}"
            );
        }
        let error = pick(None, Some("10.88.4.0/24"), &routes(TABLE), |_| true).unwrap_err();
        assert!(
            error.to_string().contains("overlaps with 10.88.0.0/16 on podman0"),
            "{error}"
        );
    }
}
