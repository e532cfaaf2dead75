//! The addresses that a guest tells of its interfaces: which come first. Pure.

use std::net::IpAddr;

/// Whether an address is valid only on its own link: nobody behind a router reaches it.
#[must_use]
pub fn is_link_local(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        Err(_) => false,
    }
}

/// Puts IPv4 first, then IPv6, and what is valid only on the link last; otherwise the order stays.
pub fn sort(addresses: &mut [String]) {
    addresses.sort_by_key(|address| {
        let v6 = address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
        (is_link_local(address), v6)
    });
}

/// The one that others may reach the interface by, of a sorted list.
#[must_use]
pub fn first(addresses: &[String]) -> Option<&String> {
    addresses.iter().find(|address| !is_link_local(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_comes_first_and_the_link_last() {
        for (told, sorted, main) in [
            (
                &["fe80::1", "2001:db8::2", "10.0.0.5", "2001:db8::1"][..],
                &["10.0.0.5", "2001:db8::2", "2001:db8::1", "fe80::1"][..],
                Some("10.0.0.5"),
            ),
            (
                &["fe80::1", "2001:db8::1"],
                &["2001:db8::1", "fe80::1"],
                Some("2001:db8::1"),
            ),
            (&["fe80::1", "169.254.3.4"], &["169.254.3.4", "fe80::1"], None),
            (
                &["fd00::1", "10.1.1.1", "10.0.0.1"],
                &["10.1.1.1", "10.0.0.1", "fd00::1"],
                Some("10.1.1.1"),
            ),
            (&[], &[], None),
        ] {
            let mut list: Vec<String> = told.iter().map(|&address| address.to_owned()).collect();
            sort(&mut list);
            assert_eq!(list, sorted);
            assert_eq!(first(&list).map(String::as_str), main);
        }
    }
}
