//! Which proxy leads to the API server: that of the kubeconfig, or else the environment's, as Go's programs read it.

use std::net::IpAddr;

use http::Uri;

/// The proxy for connections to `server`. One that the kubeconfig names is always used; one of the environment is not
/// used for this machine itself and for what `NO_PROXY` lists.
///
/// # Errors
/// It is no URL.
pub(super) fn choose(
    kubeconfig: Option<&str>,
    environment: impl Fn(&str) -> Option<String>,
    server: &Uri,
) -> Result<Option<Uri>, String> {
    let given = |name: &str| {
        let upper = environment(name).filter(|value| !value.is_empty());
        upper.or_else(|| environment(&name.to_lowercase()).filter(|value| !value.is_empty()))
    };
    if let Some(text) = kubeconfig.filter(|text| !text.is_empty()) {
        return parse(text).map(Some).map_err(|why| format!("proxy-url: {why}"));
    }
    let name = if server.scheme_str() == Some("http") {
        "HTTP_PROXY"
    } else {
        "HTTPS_PROXY"
    };
    let Some(text) = given(name) else { return Ok(None) };
    let host = server
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_lowercase();
    let default_port = if name == "HTTP_PROXY" { 80 } else { 443 };
    let port = server.port_u16().unwrap_or(default_port);
    let local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if local || excluded(&given("NO_PROXY").unwrap_or_default(), &host, port) {
        return Ok(None);
    }
    parse(&text).map(Some).map_err(|why| format!("{name}: {why}"))
}

fn parse(text: &str) -> Result<Uri, String> {
    let text = match text.split_once("://") {
        None => format!("http://{text}"),
        // Names are resolved here in both.
        Some(("socks5h", rest)) => format!("socks5://{rest}"),
        Some(_) => text.to_owned(),
    };
    let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
    match uri.scheme_str() {
        Some("http" | "https" | "socks5") => Ok(uri),
        _ => Err(format!("{text:?} is no proxy: it starts with http, https or socks5")),
    }
}

/// Whether an entry of `NO_PROXY` is about this host.
fn excluded(list: &str, host: &str, port: u16) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    list.split(',').map(|entry| entry.trim().to_lowercase()).any(|entry| {
        if entry.is_empty() {
            return false;
        }
        if entry == "*" {
            return true;
        }
        if let Some((network, bits)) = entry.split_once('/') {
            return match (address, network.parse(), bits.parse()) {
                (Some(address), Ok(network), Ok(bits)) => within(address, network, bits),
                _ => false,
            };
        }
        let (name, wanted) = split_port(&entry);
        if wanted.is_some_and(|wanted| wanted != port) {
            return false;
        }
        if let Ok(other) = name.parse::<IpAddr>() {
            return address == Some(other);
        }
        let (domain, exact) = match name.strip_prefix('*').unwrap_or(name).strip_prefix('.') {
            Some(domain) => (domain, false),
            None => (name, true),
        };
        (exact && host == domain)
            || host
                .strip_suffix(domain)
                .is_some_and(|rest| rest.ends_with('.') && !domain.is_empty())
    })
}

/// `name:port`, `[ip]:port`, or without a port.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    if let Some((ip, rest)) = entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (ip, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match entry.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, port.parse().ok()),
        _ => (entry, None),
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (bits == 0 || (address ^ network) >> (width - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(kubeconfig: &str, environment: &[(&str, &str)], server: &str) -> Result<Option<String>, String> {
        let look = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let chosen = choose(Some(kubeconfig), look, &server.parse().unwrap())?;
        Ok(chosen.map(|uri| uri.to_string()))
    }

    #[test]
    fn proxies() {
        let proxy = ("HTTPS_PROXY", "http://proxy:3128");
        for (kubeconfig, environment, server, expected) in [
            ("", &[][..], "https://k", None),
            ("", &[proxy], "https://k:6443", Some("http://proxy:3128/")),
            ("", &[("https_proxy", "proxy:1")], "https://k", Some("http://proxy:1/")),
            (
                "",
                &[("HTTPS_PROXY", ""), ("https_proxy", "proxy:1")],
                "https://k",
                Some("http://proxy:1/"),
            ),
            ("", &[proxy], "http://k", None),
            ("", &[("HTTP_PROXY", "http://p")], "http://k", Some("http://p/")),
            // This machine.
            ("", &[proxy], "https://127.0.0.1:6443", None),
            ("", &[proxy], "https://localhost:6443", None),
            ("", &[proxy], "https://[::1]:6443", None),
            // The kubeconfig's word is final.
            (
                "http://own:1",
                &[proxy, ("NO_PROXY", "*")],
                "https://127.0.0.1",
                Some("http://own:1/"),
            ),
            ("socks5h://own:1", &[], "https://k", Some("socks5://own:1/")),
            ("", &[proxy, ("NO_PROXY", "a, k ,")], "https://k", None),
            ("", &[proxy, ("no_proxy", "k")], "https://k", None),
            (
                "",
                &[proxy, ("NO_PROXY", "proxy")],
                "https://k",
                Some("http://proxy:3128/"),
            ),
        ] {
            let found = chosen(kubeconfig, environment, server).unwrap();
            assert_eq!(found.as_deref(), expected, "{kubeconfig} {environment:?} {server}");
        }
        assert!(chosen("ftp://x", &[], "https://k").unwrap_err().contains("proxy-url"));
        let odd = chosen("", &[("HTTPS_PROXY", "ftp://x")], "https://k").unwrap_err();
        assert!(odd.contains("HTTPS_PROXY"), "{odd}");
    }

    #[test]
    fn hosts_without_a_proxy() {
        for (list, host, expected) in [
            ("*", "k", true),
            ("", "k", false),
            ("corp.com", "corp.com", true),
            ("corp.com", "a.corp.com", true),
            (".corp.com", "a.corp.com", true),
            ("*.corp.com", "a.corp.com", true),
            (".corp.com", "corp.com", false),
            ("corp.com", "notcorp.com", false),
            ("Corp.COM", "corp.com", true),
            ("corp.com:6443", "corp.com", true),
            ("corp.com:443", "corp.com", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("fd00::/8", "fd00::1", true),
            ("10.0.0.0/99", "10.0.0.0", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("[fd00::1]:6443", "fd00::1", true),
            ("fd00::1", "fd00::1", true),
            ("10.0.0.0/8,x y,,k", "k", true),
        ] {
            assert_eq!(excluded(list, host, 6443), expected, "{list} {host}");
        }
    }
}
