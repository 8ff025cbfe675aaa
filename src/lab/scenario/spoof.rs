//! Encapsulated packets that are forged, as anyone on an underlay can who may choose the source of a datagram.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use encap::{Encapsulation as _, Family, MacAddr, OwnMacs, Vxlan};
use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::state;
use crate::lab::topology::{Backend, INTRUDER, NodePlan, Spec};

/// From one round of forged datagrams to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// The inner source port of forged packets, which tells them from others in a capture.
const PORT: u16 = 6666;
/// RFC 862: the pods' echo.
const ECHO: u16 = 7;

/// A forged datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forged<'a> {
    /// What the outer header says who sent it.
    pub outer: Ipv4Addr,
    /// What the inner header says who sent it.
    pub inner: IpAddr,
    /// The node that is to believe it.
    pub node: &'a NodePlan,
    /// The pod there that is to get it, and its UDP port.
    pub pod: SocketAddr,
    /// The inner payload.
    pub payload: &'a [u8],
}

/// A raw socket in the calling thread's namespace: whoever writes to it writes the IP header too (raw(7), IP_HDRINCL).
pub(super) fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
    socket.set_header_included_v4(true)?;
    Ok(socket)
}

impl Forged<'_> {
    /// The outer IP packet, whole.
    fn packet(&self, backend: Backend) -> Result<Vec<u8>> {
        let to = self
            .node
            .public_ip
            .context("the node has no IPv4 address")?;
        let mut inner = Vec::new();
        let (family, header) = match (self.inner, self.pod.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = PacketBuilder::ipv4(from.octets(), to.octets(), 63);
                (Family::V4, header)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = PacketBuilder::ipv6(from.octets(), to.octets(), 63);
                (Family::V6, header)
            }
            (from, to) => bail!("{from} and {to} are of two families"),
        };
        let header = header.udp(PORT, self.pod.port());
        header.write(&mut inner, self.payload)?;
        let mut datagram = Vec::new();
        if backend == Backend::Vxlan {
            let mac = |ip: Ipv4Addr| {
                let [a, b, c, d] = ip.octets();
                MacAddr([0x0a, 0x58, a, b, c, d])
            };
            let own = mac(self.outer);
            let end = Vxlan {
                vni: 1,
                macs: OwnMacs { v4: own, v6: own },
                strict: true,
            };
            datagram.extend_from_slice(end.header(family, mac(to)).as_slice());
        }
        datagram.extend_from_slice(&inner);
        let port = backend
            .port()
            .context("without encapsulation there is nothing to forge")?;
        let mut packet = Vec::new();
        PacketBuilder::ipv4(self.outer.octets(), to.octets(), 64)
            .udp(port, port)
            .write(&mut packet, &datagram)?;
        Ok(packet)
    }

    pub(super) fn send(&self, socket: &Socket, backend: Backend) -> Result<()> {
        let packet = self.packet(backend)?;
        let to = self
            .node
            .public_ip
            .context("the node has no IPv4 address")?;
        socket.send_to(&packet, &SocketAddrV4::new(to, 0).into())?;
        Ok(())
    }
}

/// The three kinds that the stranger sends to the first node's first pod in the name of the second's.
fn round(spec: &Spec) -> Result<Vec<(Ipv4Addr, Ipv4Addr)>> {
    let plans = spec.node_plans();
    let claimed = plans.get(1).context("there is no node2")?;
    let pod = claimed.pods.first().context("node2 has no pod")?.ip;
    let public = claimed.public_ip.context("node2 has no IPv4 address")?;
    // Of another node's lease, or of nobody's.
    let other = plans.get(2).and_then(|other| other.pods.first());
    let foreign = other.map_or(Ipv4Addr::new(10, 244, 99, 2), |pod| pod.ip);
    Ok(vec![(INTRUDER, pod), (public, foreign), (public, pod)])
}

/// Sends forged datagrams into the lab for ever; in the stranger's namespace. This is all of `overlayd lab intrude`.
///
/// # Errors
/// When there is no such lab, or no raw socket to be had.
pub fn intrude(lab: &str) -> Result<()> {
    let spec = state::read(lab)?
        .with_context(|| format!("there is no lab {lab:?}"))?
        .spec;
    let plans = spec.node_plans();
    let node = plans.first().context("a lab has a node")?;
    let pod = node.pods.first().context("node1 has no pod")?.ip;
    let (socket, round) = (socket()?, round(&spec)?);
    loop {
        for &(outer, inner) in &round {
            let forged = Forged {
                outer,
                inner: inner.into(),
                node,
                pod: SocketAddr::new(pod.into(), ECHO),
                payload: b"are you there?\n",
            };
            // A cable that was pulled may be plugged in again.
            let _ = forged.send(&socket, spec.backend);
        }
        thread::sleep(INTERVAL);
    }
}
