//! Pieces of text, appended to a buffer that is used again and again.
//!
//! A capture of small packets has some thirty fields for each hundred bytes, and what it costs to show them is the making
//! of such pieces. So these are made without the machinery of `format!`, which would take most of the time.

use std::iter::repeat_n;
use std::net::Ipv4Addr;

const DIGITS: &[u8; 16] = b"0123456789abcdef";
const SPACES: &str = "                                ";

/// A number in decimal.
pub(super) fn number(text: &mut String, number: u64) {
    text.push_str(itoa::Buffer::new().format(number));
}

/// So many hexadecimal digits of a number, or more if it has more.
pub(super) fn digits(text: &mut String, number: u64, least: usize) {
    let significant = 16 - usize::try_from(number.leading_zeros() / 4).unwrap_or(0);
    let wanted = significant.max(1).max(least);
    text.extend(repeat_n('0', wanted.saturating_sub(16)));
    for place in (0..wanted.min(16)).rev() {
        let [.., low] = (number >> (4 * place)).to_be_bytes();
        text.push(char::from(DIGITS[usize::from(low & 15)]));
    }
}

/// Bytes in hexadecimal, with something between them.
pub(super) fn hex(text: &mut String, bytes: &[u8], between: &str) {
    for (index, &byte) in bytes.iter().enumerate() {
        if index > 0 {
            text.push_str(between);
        }
        text.push_str(pair(byte));
    }
}

/// The two hexadecimal digits of a byte.
pub(super) fn pair(byte: u8) -> &'static str {
    const PAIRS: [u8; 512] = {
        let mut pairs = [0; 512];
        let mut at = 0;
        while at < 256 {
            pairs[2 * at] = DIGITS[at >> 4];
            pairs[2 * at + 1] = DIGITS[at & 15];
            at += 1;
        }
        pairs
    };
    const TEXT: &str = match std::str::from_utf8(&PAIRS) {
        Ok(text) => text,
        Err(_) => panic!("digits are ASCII"),
    };
    let at = 2 * usize::from(byte);
    &TEXT[at..at + 2]
}

/// An address in dotted decimal.
pub(super) fn ipv4(text: &mut String, ip: Ipv4Addr) {
    let mut dot = "";
    for octet in ip.octets() {
        text.push_str(dot);
        number(text, octet.into());
        dot = ".";
    }
}

/// `1 byte`, `2 bytes`.
pub(super) fn bytes(text: &mut String, count: usize) {
    text.push_str(itoa::Buffer::new().format(count));
    text.push_str(if count == 1 { " byte" } else { " bytes" });
}

/// So many spaces.
pub(super) fn spaces(text: &mut String, count: usize) {
    match SPACES.get(..count) {
        Some(spaces) => text.push_str(spaces),
        None => text.extend(repeat_n(' ', count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(make: impl FnOnce(&mut String)) -> String {
        let mut text = String::new();
        make(&mut text);
        text
    }

    #[test]
    fn pieces_are_what_format_would_make() {
        for number in [0, 9, 10, 15, 16, 255, 4096, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(made(|t| super::number(t, number)), number.to_string());
            for least in [0, 1, 2, 4, 8, 16, 20] {
                assert_eq!(
                    made(|t| digits(t, number, least)),
                    format!("{number:0least$x}")
                );
            }
        }
        for ip in [[0; 4], [10, 244, 1, 2], [255; 4]].map(Ipv4Addr::from) {
            assert_eq!(made(|t| ipv4(t, ip)), ip.to_string());
        }
        let all: Vec<u8> = (0..=255).collect();
        let expected: Vec<_> = all.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(made(|t| hex(t, &all, ":")), expected.join(":"));
        for count in [0, 1, 31, 32, 33, 100] {
            assert_eq!(made(|t| spaces(t, count)), " ".repeat(count));
        }
        assert_eq!(made(|t| bytes(t, 1)), "1 byte");
        assert_eq!(made(|t| bytes(t, 20)), "20 bytes");
    }
}
