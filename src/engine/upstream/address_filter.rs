//! Restricts the addresses of model servers: the URL is configured, but DNS decides what its name
//! resolves to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::config::PrivateAddresses;

/// An address that the configuration does not allow.
#[derive(Debug, thiserror::Error)]
#[error("the server's address {0} is not allowed; see private_addresses")]
pub(super) struct ForbiddenAddress(IpAddr);

/// Checks an address.
///
/// # Errors
/// When it is not allowed.
pub(super) fn check(address: IpAddr, allowed: PrivateAddresses) -> Result<(), ForbiddenAddress> {
    let address = address.to_canonical();
    let is_forbidden = match allowed {
        PrivateAddresses::All => false,
        PrivateAddresses::Local => is_link_local(address),
        PrivateAddresses::None => !is_public(address),
    };
    if is_forbidden {
        return Err(ForbiddenAddress(address));
    }
    Ok(())
}

/// True for link-local addresses, where clouds serve instance metadata.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        // fe80::/10, and the addresses of AWS's metadata service over IPv6.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[..3] == [0xfd00, 0xec2, 0],
    }
}

/// True for addresses that are routed on the internet (RFC 6890 and its registries, as relevant here).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    !(a == 0
        || v4.is_loopback()
        || v4.is_private()
        || v4.is_link_local()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
        || v4.is_documentation()
        || a >= 224)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let first = v6.segments()[0];
    // Global unicast is 2000::/3; 6to4 and Teredo embed other addresses, 2001:db8 is for documentation.
    first & 0xe000 == 0x2000
        && first != 0x2002
        && !(first == 0x2001 && matches!(v6.segments()[1], 0 | 0xdb8))
}

/// Resolves names with the system's resolver and drops addresses that are not allowed.
#[derive(Debug)]
pub(super) struct FilteredResolver(pub(super) PrivateAddresses);

impl Resolve for FilteredResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut error = None;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in found {
                match check(address.ip(), allowed) {
                    Ok(()) => addresses.push(address),
                    Err(forbidden) => error = Some(forbidden),
                }
            }
            match error {
                Some(error) if addresses.is_empty() => Err(error.into()),
                _ => Ok(Box::new(addresses.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(address: &str, allowed: PrivateAddresses) -> bool {
        check(address.parse().expect("an address"), allowed).is_ok()
    }

    #[test]
    fn private_addresses_are_refused_as_configured() {
        for public in ["1.1.1.1", "93.184.215.14", "2606:4700::1111"] {
            assert!(passes(public, PrivateAddresses::None), "{public}");
        }
        let private = "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 0.0.0.0 ::1 fc00::1 \
            ::ffff:10.0.0.1 198.18.0.1 255.255.255.255 224.0.0.1 2002:0a00:0001::1";
        for private in private.split_whitespace() {
            assert!(!passes(private, PrivateAddresses::None), "{private}");
            assert!(passes(private, PrivateAddresses::Local), "{private}");
        }
        let metadata = "169.254.169.254 fe80::1 fd00:ec2::254 ::ffff:169.254.169.254";
        for metadata in metadata.split_whitespace() {
            assert!(!passes(metadata, PrivateAddresses::Local), "{metadata}");
            assert!(passes(metadata, PrivateAddresses::All), "{metadata}");
        }
    }
}
