//! ICMP and ICMPv6: the one question the packet path asks, "is this an error message?"
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     Type      |     Code      |           Checksum            |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! RFC 792 for IPv4, RFC 4443 section 2.1 for IPv6.

/// Protocol number of ICMP.
pub const PROTOCOL: u8 = 1;
/// Next-header value of ICMPv6.
pub const PROTOCOL_V6: u8 = 58;

/// Is this ICMP type an error message (RFC 1122 section 3.2.2): unreachable, source quench, redirect, time
/// exceeded, parameter problem?
#[must_use]
pub const fn is_error(message_type: u8) -> bool {
    matches!(message_type, 3 | 4 | 5 | 11 | 12)
}

/// Must no error be sent about this ICMPv6 type? Those below 128 are errors (RFC 4443 section 2.1), and
/// section 2.4 (e.2) adds Redirect.
#[must_use]
pub const fn is_error_v6(message_type: u8) -> bool {
    message_type < 128 || message_type == 137
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_others() {
        assert!([3, 4, 5, 11, 12].into_iter().all(is_error));
        assert!(![0, 8, 9, 10, 13, 14, 42].into_iter().any(is_error));
        assert!([1, 2, 3, 4, 100, 127, 137].into_iter().all(is_error_v6));
        assert!(
            ![128, 129, 133, 134, 135, 136, 138, 143]
                .into_iter()
                .any(is_error_v6)
        );
    }
}
