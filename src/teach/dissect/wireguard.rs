//! WireGuard's four messages. What they seal needs keys that no capture holds, so it is named and not opened.
//!
//! Formats: <https://www.wireguard.com/protocol/>, and section 5.4 of "WireGuard: Next Generation Kernel Network Tunnel".
//! Numbers go least significant byte first.
//!
//! ```text
//!              1 type, 3 reserved, then, in bytes:
//! initiation   4 sender, 32 ephemeral key, 48 sealed static key, 28 sealed timestamp, 16 MAC 1, 16 MAC 2
//! response     4 sender, 4 receiver, 32 ephemeral key, 16 sealed nothing, 16 MAC 1, 16 MAC 2
//! cookie       4 receiver, 24 nonce, 32 sealed cookie
//! data         4 receiver, 8 counter, sealed packet: padded to a multiple of 16, and a tag of 16
//! ```

use super::walk::{Name, Pen, Walk};

const SENDER: Name = ("sender index", "Sender");
const RECEIVER: Name = ("receiver index", "Receiver");
const BY_SENDER: &str = "the sender's name for this session";
const BY_RECEIVER: &str = "the receiver's name for this session";

const SEALED: &str = "The packet inside cannot be read without keys: the sum below counts the outer packet as the original.";

/// Bytes of the tag by which a receiver knows that nobody changed what is sealed (RFC 8439 section 2.8).
const TAG: usize = 16;

impl Walk<'_> {
    /// A datagram between two WireGuard peers.
    pub(super) fn wireguard(&mut self, at: usize, end: usize) {
        let source = "wireguard.com/protocol";
        let mut pen = self.header("WireGuard", source, at, end);
        let kind = pen.byte(("message type", "Type"));
        let name = match kind {
            1 => "handshake initiation",
            2 => "handshake response",
            3 => "cookie reply",
            4 => "data",
            _ => "",
        };
        pen.means(name);
        pen.reserved(24);
        if pen.is_cut() {
            return;
        }
        match kind {
            1 => {
                pen.little(SENDER, 32, BY_SENDER);
                pen.ephemeral();
                pen.sealed(
                    ("sealed static key", "Sealed Static"),
                    32 + TAG,
                    "the sender's lasting public key",
                );
                pen.sealed(
                    ("sealed timestamp", "Sealed Timestamp"),
                    12 + TAG,
                    "TAI64N, against replays",
                );
                pen.macs();
            }
            2 => {
                pen.little(SENDER, 32, BY_SENDER);
                pen.little(RECEIVER, 32, BY_RECEIVER);
                pen.ephemeral();
                pen.sealed(
                    ("sealed nothing", "Sealed Nothing"),
                    TAG,
                    "a tag alone: proves that the keys agree",
                );
                pen.macs();
            }
            3 => {
                pen.little(RECEIVER, 32, BY_RECEIVER);
                pen.bytes(("nonce", "Nonce"), 24);
                pen.means("random, goes into the sealing");
                pen.sealed(
                    ("sealed cookie", "Sealed Cookie"),
                    16 + TAG,
                    "for MAC 2 of the next attempt",
                );
            }
            4 => {
                pen.note(SEALED);
                pen.little(RECEIVER, 32, BY_RECEIVER);
                pen.little(
                    ("counter", "Counter"),
                    64,
                    "the packet's number in this session",
                );
                pen.packet();
            }
            _ => {
                pen.problem(
                    at,
                    format!("no WireGuard: message type {kind} is not 1 to 4"),
                );
                return self.payload("payload", at + 4, end);
            }
        }
        let (stop, cut) = (pen.at(), pen.is_cut());
        self.say(format_args!("| WireGuard {name}"));
        if !cut {
            self.padding("padding", stop, end);
        }
    }
}

impl Pen<'_, '_> {
    fn ephemeral(&mut self) {
        self.bytes(("ephemeral key", "Ephemeral"), 32);
        self.means("the sender's public key for this handshake alone");
    }

    /// Bytes that only the peers can open.
    fn sealed(&mut self, name: Name, len: usize, meaning: &'static str) {
        self.bytes(name, len);
        self.means(meaning);
    }

    fn macs(&mut self) {
        self.bytes(("MAC 1", "MAC 1"), 16);
        self.means("shows that the sender knows the receiver's public key");
        let at = self.at();
        self.bytes(("MAC 2", "MAC 2"), 16);
        let is_absent = matches!(self.walk.frame.get(at..at + 16), Some(mac) if mac == [0; 16]);
        self.means(if is_absent {
            "none: no cookie was asked for"
        } else {
            "made with the cookie that a busy receiver asked for"
        });
    }

    /// What a data message carries.
    fn packet(&mut self) {
        if self.is_cut() {
            return;
        }
        let Some(len) = self.left().checked_sub(TAG) else {
            // Says what lacks.
            return self.bytes(("authentication tag", "Tag"), TAG);
        };
        self.bytes(("sealed packet", "Sealed Packet"), len);
        if len > 0 {
            self.means("an IP packet, padded to a multiple of 16 bytes, and encrypted");
        }
        self.bytes(("authentication tag", "Tag"), TAG);
        self.means(match len {
            0 => "nothing is sealed: a keepalive",
            _ => "shows that nobody changed it",
        });
    }
}
