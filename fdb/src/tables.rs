//! What one batch of packets is decided by: destinations to next hops, public IPs to peers.

use std::fmt;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};

use foldhash::{HashMap, HashMapExt};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::fib::{Fib4, Fib6};
use crate::rib::Endpoint;

/// Names a peer within one [`Tables`]; an index, not kept from one table to the next.
pub type PeerId = u32;

/// Ready to use: where to send, and the bytes to put in front of the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The peer behind it.
    pub peer: PeerId,
    /// The outer destination.
    pub to: SocketAddr,
    /// The largest inner packet that fits, in bytes.
    pub mtu: u16,
    /// The finished encapsulation header.
    pub header: encap::Header,
}

/// Where a destination leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// To another node.
    Peer(&'a NextHop),
    /// To this node: it is ours to deliver, never to send.
    Local,
    /// Nowhere: no lease and no route holds it.
    None,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Peer<P> {
    /// Its public IPs.
    pub public: Endpoint,
    /// What the user of the table keeps about it: counters, for one.
    pub data: P,
}

/// Who stands behind a public IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Peer(PeerId),
    Own,
}

/// The FIB's value for a prefix that is ours; other values are indices into `hops`.
const LOCAL: u32 = u32::MAX - 1;

/// Everything a forwarding thread looks up, immutable once built. Hand it over in a
/// [`Snapshot`](crate::Snapshot).
///
/// The hash maps take foldhash, which is fast and not proof against an attacker who chooses the
/// *keys stored*. Here those are the public IPs of accepted leases, which come from the lease
/// store. What strangers choose, by the source addresses they send from, are the keys *looked up*:
/// these leave no trace in the map, and a lookup ends at the first group of slots with a free one,
/// however its key was chosen, so the worst they can force is one scan that the stored keys bound.
#[derive(Debug)]
pub struct Tables<P> {
    v4: Fib4,
    v6: Fib6,
    hops: Box<[NextHop]>,
    peers: Box<[Peer<P>]>,
    // Keyed by the addresses' bits, which hash faster than byte arrays.
    nodes_v4: HashMap<u32, Node>,
    nodes_v6: HashMap<u128, Node>,
}

impl<P> Tables<P> {
    /// Starts an empty table.
    pub fn builder() -> TablesBuilder<P> {
        TablesBuilder {
            v4: Vec::new(),
            v6: Vec::new(),
            hops: Vec::new(),
            peers: Vec::new(),
            nodes_v4: HashMap::new(),
            nodes_v6: HashMap::new(),
        }
    }

    /// Where packets for `dst` go: the longest prefix that holds it decides.
    #[inline]
    pub fn route(&self, dst: IpAddr) -> Route<'_> {
        match self.lookup(dst) {
            Some(LOCAL) => Route::Local,
            Some(hop) => self.hops.get(hop as usize).map_or(Route::None, Route::Peer),
            None => Route::None,
        }
    }

    /// The peer whose prefix holds the inner source `src`. `None` for our own prefixes too.
    #[inline]
    pub fn owner(&self, src: IpAddr) -> Option<PeerId> {
        match self.route(src) {
            Route::Peer(hop) => Some(hop.peer),
            Route::Local | Route::None => None,
        }
    }

    /// Whether `dst` lies in one of our own prefixes.
    #[inline]
    pub fn is_local(&self, dst: IpAddr) -> bool {
        self.lookup(dst) == Some(LOCAL)
    }

    /// The peer that sends from the outer source `outer`. IPv4-mapped IPv6 addresses, as a
    /// dual-stack socket reports them, are not unwrapped.
    #[inline]
    pub fn peer_by_public(&self, outer: IpAddr) -> Option<PeerId> {
        match self.node(outer) {
            Some(Node::Peer(id)) => Some(id),
            Some(Node::Own) | None => None,
        }
    }

    /// Whether `ip` is the public IP of any node, this one included.
    #[inline]
    pub fn is_public_ip(&self, ip: IpAddr) -> bool {
        self.node(ip).is_some()
    }

    /// The peer `id`.
    ///
    /// # Panics
    /// When `id` is not from this very table.
    #[inline]
    pub fn peer(&self, id: PeerId) -> &Peer<P> {
        &self.peers[id as usize]
    }

    /// All peers; a peer's id is its index.
    pub fn peers(&self) -> &[Peer<P>] {
        &self.peers
    }

    /// Bytes this table takes, its own struct included; of `P` what lies inline.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.v4.memory()
            + self.v6.memory()
            + size_of_val(&*self.hops)
            + size_of_val(&*self.peers)
            + map_memory(&self.nodes_v4)
            + map_memory(&self.nodes_v6)
    }

    #[inline]
    fn lookup(&self, dst: IpAddr) -> Option<u32> {
        match dst {
            IpAddr::V4(dst) => self.v4.lookup(dst.to_bits()),
            IpAddr::V6(dst) => self.v6.lookup(dst.to_bits()),
        }
    }

    #[inline]
    fn node(&self, ip: IpAddr) -> Option<Node> {
        match ip {
            IpAddr::V4(ip) => self.nodes_v4.get(&ip.to_bits()).copied(),
            IpAddr::V6(ip) => self.nodes_v6.get(&ip.to_bits()).copied(),
        }
    }
}

impl<P> Default for Tables<P> {
    /// No peers, no routes: every packet is without a route.
    fn default() -> Self {
        Self::builder().build()
    }
}

/// Collects what goes into a [`Tables`]. It trusts what it is given: the [`Rib`](crate::Rib) has
/// judged it.
///
/// Give things in priority order: of two equal prefixes, and of two nodes with one public IP, the
/// first stands.
pub struct TablesBuilder<P> {
    v4: Vec<(Ipv4Net, u32)>,
    v6: Vec<(Ipv6Net, u32)>,
    hops: Vec<NextHop>,
    peers: Vec<Peer<P>>,
    nodes_v4: HashMap<u32, Node>,
    nodes_v6: HashMap<u128, Node>,
}

impl<P> fmt::Debug for TablesBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TablesBuilder")
            .field("prefixes", &(self.v4.len() + self.v6.len()))
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

impl<P> TablesBuilder<P> {
    /// Our own public IPs. Give them before any peer.
    pub fn own(&mut self, public: Endpoint) {
        self.name(public, Node::Own);
    }

    /// A peer. One node may hold several leases (an old one that has not run out yet, one per
    /// family): a peer that has a public IP of a known one is that one, whose id is returned and
    /// whose data stays; an address it did not have becomes its own.
    pub fn peer(&mut self, public: Endpoint, data: P) -> PeerId {
        let known = [
            public.v4.and_then(|ip| self.nodes_v4.get(&ip.to_bits())),
            public.v6.and_then(|ip| self.nodes_v6.get(&ip.to_bits())),
        ];
        let known = known.into_iter().flatten().find_map(|node| match node {
            Node::Peer(id) => Some(*id),
            Node::Own => None,
        });
        let id = known.unwrap_or_else(|| {
            self.peers.push(Peer { public, data });
            number(self.peers.len() - 1)
        });
        if let Some(peer) = self.peers.get_mut(id as usize) {
            peer.public.v4 = peer.public.v4.or(public.v4);
            peer.public.v6 = peer.public.v6.or(public.v6);
        }
        self.name(public, Node::Peer(id));
        id
    }

    /// Packets for `prefix` go to `hop`.
    ///
    /// # Panics
    /// When `hop.peer` is not an id that [`peer`](Self::peer) returned.
    pub fn route(&mut self, prefix: IpNet, hop: NextHop) {
        assert!(
            (hop.peer as usize) < self.peers.len(),
            "a next hop of peer {}, which this table has not got",
            hop.peer
        );
        let index = number(self.hops.len());
        self.hops.push(hop);
        self.prefix(prefix, index);
    }

    /// Packets for `prefix` are ours to deliver.
    pub fn local(&mut self, prefix: IpNet) {
        self.prefix(prefix, LOCAL);
    }

    /// The finished table, in O(n log n).
    pub fn build(mut self) -> Tables<P> {
        // They grew by doubling; the table is kept.
        self.nodes_v4.shrink_to_fit();
        self.nodes_v6.shrink_to_fit();
        Tables {
            v4: Fib4::build(self.v4),
            v6: Fib6::build(self.v6),
            hops: self.hops.into_boxed_slice(),
            peers: self.peers.into_boxed_slice(),
            nodes_v4: self.nodes_v4,
            nodes_v6: self.nodes_v6,
        }
    }

    fn prefix(&mut self, prefix: IpNet, value: u32) {
        match prefix {
            IpNet::V4(net) => self.v4.push((net, value)),
            IpNet::V6(net) => self.v6.push((net, value)),
        }
    }

    fn name(&mut self, public: Endpoint, node: Node) {
        if let Some(ip) = public.v4 {
            self.nodes_v4.entry(ip.to_bits()).or_insert(node);
        }
        if let Some(ip) = public.v6 {
            self.nodes_v6.entry(ip.to_bits()).or_insert(node);
        }
    }
}

/// An index as the FIB keeps it. Memory runs out long before 2^32 hops of 64 bytes do.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 peers and next hops")
}

/// hashbrown fills at most 7/8 of a power of two of buckets, and keeps a control byte for each and
/// for one more group of 16.
fn map_memory<K, V>(map: &HashMap<K, V>) -> usize {
    if map.capacity() == 0 {
        return 0;
    }
    let buckets = (map.capacity() * 8 / 7).next_power_of_two();
    buckets * (size_of::<(K, V)>() + 1) + 16
}

#[cfg(test)]
mod tests;
