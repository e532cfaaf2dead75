//! Forwarded ports on the command line: `[tcp/|udp/]LOCAL[:REMOTE]`.

/// One forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP instead of TCP.
    pub udp: bool,
    /// Port here; 0: any free one.
    pub local: u16,
    /// Port of the guest.
    pub remote: u16,
}

impl Forward {
    /// Reads one argument.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (udp, ports) = match text.split_once('/') {
            None => (false, text),
            Some(("tcp", ports)) => (false, ports),
            Some(("udp", ports)) => (true, ports),
            Some((other, _)) => return Err(format!("protocol {other:?} is neither tcp nor udp")),
        };
        let number = |part: &str| {
            part.parse::<u16>()
                .map_err(|_| format!("{part:?} is no port (0 to 65535)"))
        };
        let (local, remote) = match ports.split_once(':') {
            None => (number(ports)?, number(ports)?),
            Some(("", remote)) => (0, number(remote)?),
            Some((local, remote)) => (number(local)?, number(remote)?),
        };
        if remote == 0 {
            return Err(format!("{text:?}: port 0 of the guest cannot be reached"));
        }
        Ok(Self { udp, local, remote })
    }

    /// `tcp` or `udp`.
    pub(crate) fn protocol(self) -> &'static str {
        if self.udp { "udp" } else { "tcp" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards() {
        for (text, udp, local, remote) in [
            ("22", false, 22, 22),
            ("8080:80", false, 8080, 80),
            ("tcp/8080:80", false, 8080, 80),
            ("udp/53", true, 53, 53),
            (":80", false, 0, 80),
            ("0:80", false, 0, 80),
        ] {
            assert_eq!(Forward::parse(text), Ok(Forward { udp, local, remote }), "{text}");
        }
        for text in ["", "x", "80:", "0", "1:0", "65536", "sctp/80", "1:2:3", "-1"] {
            assert!(Forward::parse(text).is_err(), "{text}");
        }
    }
}
