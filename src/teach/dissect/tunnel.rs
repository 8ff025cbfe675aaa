//! What carries another packet in UDP: flannel's udp, which has no header, and VXLAN, which `encap::vxlan` draws.

use super::Tunnel;
use super::walk::Walk;

const OTV: &str = "Packet analysers call port 8472 OTV, to which the IANA gave it. Linux took it for VXLAN before VXLAN had \
    4789, and kept it. To see VXLAN: tshark -d udp.port==8472,vxlan (in Wireshark: Decode As).";

impl Walk<'_> {
    /// What a UDP datagram to a tunnel's port carries.
    pub(super) fn tunnel(&mut self, tunnel: Tunnel, port: u16, at: usize, end: usize) {
        match tunnel {
            Tunnel::Udp => {
                let mut pen = self.header("flannel udp", "flannel's udp backend", at, end);
                pen.note("No header at all: the datagram is the inner IP packet.");
                self.say(format_args!("| flannel udp:"));
                self.deeper(false, at, end, |walk| walk.ip(at, end));
            }
            Tunnel::Vxlan => self.vxlan(port, at, end),
        }
    }

    fn vxlan(&mut self, port: u16, at: usize, end: usize) {
        let mut pen = self.header("VXLAN", "RFC 7348 section 5", at, end);
        if port == 8472 {
            pen.note(OTV);
        }
        pen.reserved(4);
        let valid = pen.flag(("I flag", "I"), "the VNI is valid");
        if !valid {
            pen.means("must be set");
        }
        pen.reserved(3);
        pen.reserved(24);
        let vni = pen.number(("network identifier", "VXLAN Network Identifier (VNI)"), 24);
        pen.reserved(8);
        if pen.is_cut() {
            return;
        }
        if !valid {
            pen.problem(at, "VXLAN without the I flag: receivers must drop it");
        }
        self.say(format_args!("| VXLAN {vni}:"));
        self.deeper(false, at + 8, end, |walk| walk.ethernet(at + 8, end));
    }
}
