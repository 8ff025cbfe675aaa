//! TCP: the header (RFC 9293 section 3.1), as far as cutting a superpacket needs it.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |          Source port          |       Destination port        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                        Sequence number                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                     Acknowledgment number                     |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! | Data  |       |C|E|U|A|P|R|S|F|                               |
//! |offset | Rsrvd |W|C|R|C|S|S|Y|I|            Window             |
//! |       |       |R|E|G|K|H|T|N|N|                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |           Checksum            |         Urgent pointer        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                           [Options]                           |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use crate::Reject;

/// Protocol number of TCP.
pub const PROTOCOL: u8 = 6;
/// Length of the header in bytes, without options.
pub const MIN_HEADER: usize = 20;
/// Offset of the checksum field in the header.
pub const CHECKSUM: usize = 16;

/// No more data from the sender.
pub const FIN: u16 = 0x01;
/// Start of a connection.
pub const SYN: u16 = 0x02;
/// End of a connection, at once.
pub const RST: u16 = 0x04;
/// Hand the data to the application now.
pub const PSH: u16 = 0x08;
/// The urgent pointer is significant.
pub const URG: u16 = 0x20;
/// The sender has reduced its congestion window (RFC 3168).
pub const CWR: u16 = 0x80;

/// The TCP header without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Length with options in bytes, 20 to 60, a multiple of 4.
    pub header_len: u8,
    /// The twelve bits after the data offset: four reserved ones, then CWR down to FIN.
    pub flags: u16,
    /// Receive window, unscaled.
    pub window: u16,
    /// As on the wire.
    pub checksum: u16,
    /// Urgent pointer: end of the urgent data, counted in bytes from `seq`.
    pub urgent: u16,
}

impl Tcp {
    /// Reads the header at the start of what IP carries.
    ///
    /// # Errors
    /// [`Reject::BadHeader`] if the data offset is below 5, [`Reject::Truncated`] if it runs past the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let h = bytes.first_chunk::<MIN_HEADER>().ok_or(Reject::Truncated)?;
        let header_len = (h[12] >> 4) * 4;
        match usize::from(header_len) {
            len if len < MIN_HEADER => return Err(Reject::BadHeader),
            len if len > bytes.len() => return Err(Reject::Truncated),
            _ => {}
        }
        Ok(Self {
            src: u16::from_be_bytes([h[0], h[1]]),
            dst: u16::from_be_bytes([h[2], h[3]]),
            seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            header_len,
            flags: u16::from_be_bytes([h[12], h[13]]) & 0x0fff,
            window: u16::from_be_bytes([h[14], h[15]]),
            checksum: u16::from_be_bytes([h[16], h[17]]),
            urgent: u16::from_be_bytes([h[18], h[19]]),
        })
    }

    /// The bytes of the fixed part; `header_len - 20` bytes of options follow it.
    #[must_use]
    pub fn emit(&self) -> [u8; MIN_HEADER] {
        let offset_flags = u16::from(self.header_len / 4) << 12 | self.flags & 0x0fff;
        let mut h = [0; MIN_HEADER];
        h[0..2].copy_from_slice(&self.src.to_be_bytes());
        h[2..4].copy_from_slice(&self.dst.to_be_bytes());
        h[4..8].copy_from_slice(&self.seq.to_be_bytes());
        h[8..12].copy_from_slice(&self.ack.to_be_bytes());
        h[12..14].copy_from_slice(&offset_flags.to_be_bytes());
        h[14..16].copy_from_slice(&self.window.to_be_bytes());
        h[16..18].copy_from_slice(&self.checksum.to_be_bytes());
        h[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        h
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    #[test]
    fn a_data_offset_below_five_is_refused() {
        let mut bytes = [0; 20];
        for words in 0..5 {
            bytes[12] = words << 4;
            assert_eq!(Tcp::parse(&bytes), Err(Reject::BadHeader));
        }
    }

    proptest! {
        /// Over all twelve bits of flags, the reserved ones too: those must survive.
        #[test]
        fn emit_then_parse_is_the_identity(
            ports: [u16; 2], numbers: [u32; 2], words in 5u8..=15, flags in 0u16..0x1000, rest: [u16; 3],
        ) {
            let header = Tcp {
                src: ports[0], dst: ports[1], seq: numbers[0], ack: numbers[1], header_len: words * 4,
                flags, window: rest[0], checksum: rest[1], urgent: rest[2],
            };
            let mut bytes = header.emit().to_vec();
            bytes.resize(usize::from(header.header_len), 0);
            prop_assert_eq!(Tcp::parse(&bytes), Ok(header));
            for len in 0..bytes.len() {
                prop_assert_eq!(Tcp::parse(&bytes[..len]), Err(Reject::Truncated));
            }
        }

        #[test]
        fn reads_what_etherparse_writes(oracle in testing::tcp_header(), syn: bool, rst: bool, checksum: u16) {
            let oracle = etherparse::TcpHeader { syn, rst, checksum, ..oracle };
            let bytes = oracle.to_bytes();
            let tcp = Tcp::parse(&bytes).unwrap();
            prop_assert_eq!(&tcp.emit()[..], &bytes[..20]);
            prop_assert_eq!(usize::from(tcp.header_len), bytes.len());
            prop_assert_eq!((tcp.src, tcp.dst), (oracle.source_port, oracle.destination_port));
            prop_assert_eq!((tcp.seq, tcp.ack), (oracle.sequence_number, oracle.acknowledgment_number));
            prop_assert_eq!((tcp.window, tcp.checksum, tcp.urgent), (oracle.window_size, checksum, oracle.urgent_pointer));
            for (bit, set) in [(FIN, oracle.fin), (SYN, syn), (RST, rst), (PSH, oracle.psh), (URG, oracle.urg), (CWR, oracle.cwr)] {
                prop_assert_eq!(tcp.flags & bit != 0, set);
            }
        }
    }
}
