//! What the address of a server says of who else reaches it.

use std::net::IpAddr;

/// Whether an address is one of another machine.
#[must_use]
pub fn is_remote(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

/// Whether an address is one of the internet's, and none that is kept for networks of one's own.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(one) => {
            let [a, b, ..] = one.octets();
            !(one.is_private()
                || one.is_loopback()
                || one.is_link_local()
                || one.is_unspecified()
                || (a == 100 && (64..128).contains(&b)))
        }
        IpAddr::V6(one) => (one.segments()[0] & 0xe000) == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart_by_who_reaches_them() {
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for (address, remote, public) in [
            ("127.0.0.1", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("10.1.2.3", true, false),
            ("100.64.0.1", true, false),
            ("169.254.169.254", true, false),
            ("fd00::1", true, false),
            ("198.51.100.7", true, true),
            ("2001:db8::1", true, true),
        ] {
            assert_eq!(is_remote(at(address)), remote, "{address}");
            assert_eq!(is_public(at(address)), public, "{address}");
        }
    }
}
