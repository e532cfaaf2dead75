//! `dhcpOptions` of interfaces.

use ferrovirt_api::v1::{DHCPOptions, DHCPPrivateOptions};

use super::{Cx, text};
use crate::cause::FieldPath;
use crate::machine::DhcpOptions;

/// Options that have no meaning of their own.
const PRIVATE: std::ops::RangeInclusive<i32> = 224..=254;
/// An option's length is one byte.
const MAX_BYTES: usize = 255;

impl Cx<'_> {
    pub(super) fn dhcp(&mut self, options: Option<&DHCPOptions>, path: &FieldPath) -> DhcpOptions {
        let Some(DHCPOptions {
            boot_file_name,
            ntp_servers,
            private_options,
            tftp_server_name,
        }) = options
        else {
            return DhcpOptions::default();
        };
        let mut parsed = DhcpOptions {
            boot_file: self.dhcp_text(boot_file_name.as_deref(), &path.child("bootFileName")),
            tftp_server: self.dhcp_text(tftp_server_name.as_deref(), &path.child("tftpServerName")),
            ..DhcpOptions::default()
        };
        for (i, server) in ntp_servers.iter().enumerate() {
            match server.parse() {
                Ok(address) => parsed.ntp_servers.push(address),
                Err(_) => self.causes.invalid(
                    &path.child("ntpServers").index(i),
                    format!("\"{server}\" is not an IPv4 address"),
                ),
            }
        }
        for (i, DHCPPrivateOptions { option, value }) in private_options.iter().enumerate() {
            let path = path.child("privateOptions").index(i);
            let field = path.child("option");
            let number = u8::try_from(*option).ok().filter(|_| PRIVATE.contains(option));
            match number {
                None => self.causes.invalid(
                    &field,
                    format!("{option} is not between {} and {}", PRIVATE.start(), PRIVATE.end()),
                ),
                Some(number) if parsed.private.iter().any(|(other, _)| *other == number) => {
                    self.causes
                        .duplicate(&field, format!("option {number} is listed twice"));
                }
                Some(number) => {
                    let value = self.dhcp_text(Some(value), &path.child("value"));
                    parsed.private.push((number, value.unwrap_or_default()));
                }
            }
        }
        parsed
    }

    fn dhcp_text(&mut self, value: Option<&str>, field: &FieldPath) -> Option<String> {
        let value = value.filter(|v| !v.is_empty())?;
        if value.len() > MAX_BYTES {
            self.causes.invalid(field, format!("is longer than {MAX_BYTES} bytes"));
        } else if !text::is_printable(value) {
            self.causes.invalid(field, "has control characters");
        }
        Some(value.to_owned())
    }
}
