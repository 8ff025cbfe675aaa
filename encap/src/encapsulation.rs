//! What stands between the outer UDP header and the inner IP packet, behind one static trait.

use crate::{Family, MacAddr, Reject};

/// The most bytes an encapsulation puts in front of the inner packet (VXLAN uses 22).
pub const MAX_HEADER: usize = 24;

/// Finished header bytes that precede the inner packet inside the outer UDP datagram, kept inline so that
/// a next hop carries them along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    len: u8,
    bytes: [u8; MAX_HEADER],
}

impl Header {
    /// No header at all, as the raw-UDP encapsulation has it.
    pub const EMPTY: Self = Self {
        len: 0,
        bytes: [0; MAX_HEADER],
    };

    /// The header made of these bytes; `None` if there are more than [`MAX_HEADER`].
    #[must_use]
    pub fn new(header: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_HEADER];
        bytes.get_mut(..header.len())?.copy_from_slice(header);
        Some(Self {
            len: u8::try_from(header.len()).ok()?,
            bytes,
        })
    }

    /// The bytes, in wire order.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Is there no header?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Things seen in an accepted header that are worth a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderNotes {
    /// VXLAN: a reserved bit was set. RFC 7348 section 5 says to ignore it on receipt.
    pub reserved_bits: bool,
}

/// A way to carry an inner IP packet in a UDP datagram.
///
/// Receiving is two calls because the order of the receive checks puts one between them that is not ours:
/// is the outer source a live lease? [`check_header`](Self::check_header) comes before it,
/// [`check_link`](Self::check_link) after. The inner IP packet then starts at `HEADER_LEN`.
pub trait Encapsulation: Clone + Send + Sync + 'static {
    /// The backend's name in flannel's words: `udp` or `vxlan`.
    const NAME: &'static str;
    /// Bytes between the outer UDP header and the inner IP packet.
    const HEADER_LEN: usize;

    /// Bytes that an inner IP packet grows by: outer IP header, UDP header and `HEADER_LEN`.
    #[must_use]
    fn overhead(outer: Family) -> u16;

    /// The header toward a peer for inner packets of a family (source MAC and EtherType follow it).
    #[must_use]
    fn header(&self, inner: Family, peer: MacAddr) -> Header;

    /// First half of the receive checks: length, then header, then VNI.
    ///
    /// # Errors
    /// [`Reject::Truncated`], [`Reject::VxlanFlag`], [`Reject::ReservedBits`] or [`Reject::WrongVni`], in that order.
    fn check_header(&self, datagram: &[u8]) -> Result<HeaderNotes, Reject>;

    /// Second half: what the link layer inside says. Returns the family of the inner packet, which is still
    /// to be parsed.
    ///
    /// # Errors
    /// The rule that was broken; see the implementations for their order.
    fn check_link(&self, datagram: &[u8]) -> Result<Family, Reject>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_up_to_its_size() {
        assert_eq!(
            Header::new(&[7; MAX_HEADER]).unwrap().as_slice(),
            [7; MAX_HEADER]
        );
        assert_eq!(Header::new(&[7; MAX_HEADER + 1]), None);
        assert!(Header::new(&[]).unwrap().is_empty());
        assert_eq!(Header::new(&[]).unwrap(), Header::EMPTY);
    }
}
