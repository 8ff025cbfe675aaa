//! What each scenario tells and asks, and what is behind it.

/// The book's chapter that explains the scenarios, a part for each.
pub const CHAPTER: &str = "Three broken labs";
/// Its file.
pub const PAGE: &str = "scenarios.md";
/// It is told by the program too: whoever has nothing else has this.
pub(super) const TEXT: &str = include_str!("../../../docs/src/scenarios.md");

/// The words of a scenario.
#[derive(Debug)]
pub struct Story {
    /// In a few words.
    pub title: &'static str,
    /// What happened, as those tell it who suffer from it.
    pub told: &'static str,
    /// What to predict before looking.
    pub predict: &'static [&'static str],
    /// One at a time, each a little clearer.
    pub hints: &'static [&'static str],
}

pub(super) const MTU: Story = Story {
    title: "ping works, a download hangs",
    told: "Since the network people moved the last node to another rack, its users complain: every page opens, but any \
           file of some size hangs for ever. ping says that all is well, and so does `overlayd lab status`. Try \
           `curl http://ADDRESS/` and `curl -o /dev/null http://ADDRESS/bytes/1000000` from a pod on node1 to a pod on \
           the last node.",
    predict: &[
        "ping sends 84 bytes. What is the largest ping (-s) to the last node's pod that will be answered, with -M do \
         and without?",
        "The download hangs. Will its connection be set up? Will the first bytes of the answer arrive? What would \
         tcpdump show on the sender's eth0?",
        "Will any drop counter of overlayd rise?",
    ],
    hints: &[
        "Capture on eth0 of node1 and on eth0 of the last node at the same time (`overlayd lab sh node1 tcpdump -ni \
         eth0 udp`) while a download hangs. Which packets arrive, and which do not?",
        "Find the largest packet that arrives: `ping -M do -s N`, and halve the interval. Add the overhead that \
         `overlayd mtu` shows. What does the underlay carry, then? And what do the nodes believe it carries?",
        "Whoever meets a packet that is too big should say so (ICMP, Fragmentation Needed), and the sender sends less. \
         Why does nobody here? What kind of device is in the middle: a router or a switch?",
        "Either the way becomes as wide as the nodes believe, or the nodes believe what is true: somebody who can \
         speak ICMP has to know the right number. On which devices of which nodes would it have to stand, so that no \
         packet ever comes to the narrow place? overlay0 is overlayd's own, which puts its MTU back when somebody else \
         sets it: it takes the number from its configuration (`overlayd config example`, device.mtu), or from eth0.",
    ],
};

pub(super) const NO_LEASE: Story = Story {
    title: "one node's pods cannot be reached",
    told: "The pods of node2 have vanished from the network. node2 itself answers pings from node1, overlayd runs there, and \
           nobody touched anything, they say, except that somebody tidied up the files in the lab's directory.",
    predict: &[
        "node1/pod1 pings node2/pod1. Who will say what about it: which ICMP error, from which address?",
        "node2/pod1 pings node1/pod1. Does the request leave node2? Where does it die, and under which drop reason?",
        "Will pods of node2 still reach each other?",
    ],
    hints: &[
        "`overlayd lab sh node1 overlayd status`: which peers does node1 know? Compare with `overlayd lab status`.",
        "Ask node2 as well. `overlayd lab sh node2 overlayd status` says how it feels, and why, in its first lines.",
        "All nodes read one lease file. Where it is, a node's configuration says (`overlayd lab sh node1 sh -c 'cat \
         $OVERLAYD_CONFIG'`). Which line is missing? `overlayd lab sh node2 ip addr` has all that it would say.",
    ],
};

pub(super) const SPOOF: Story = Story {
    title: "a pod hears from another one that has said nothing",
    told: "node1/pod1 gets UDP packets from node2/pod1, twice a second, and answers them. Whoever runs node2/pod1 swears \
           that it sends nothing, and is annoyed by the answers. There is a host on the underlay that is no node, \
           `intruder` (10.99.0.254), where anybody may log in. You cannot trust it, and you cannot choose what runs there; \
           the underlay, and the nodes, are yours.",
    predict: &[
        "Three kinds of forged datagrams arrive at node1: (a) from the intruder's own address; (b) with node2's address \
         as the outer source, and an inner source that is none of node2's; (c) with node2's address outside and \
         node2/pod1's inside. Which are dropped, under which reasons? Which are delivered?",
        "What would encryption without authentication help? What would a firewall rule on node1 that lets only the \
         nodes' addresses in?",
        "Where is the first place that can know a datagram is forged?",
    ],
    hints: &[
        "Look at the drop counters of node1 (`overlayd lab sh node1 overlayd status`), and wait a second, and look \
         again. Two kinds are counted. What comes in without being counted?",
        "Capture with the link layer (`overlayd lab sh node1 tcpdump -eni eth0 udp`), and compare the MAC address that \
         the datagrams from 10.99.0.2 have with node2's own.",
        "node1 sees an address, and believes it. The underlay sees which cable it comes from (`overlayd lab sh underlay \
         bridge link`). This is what RFC 2827 (BCP 38) asks of every network.",
        "Let nothing that calls itself a node in from the intruder's cable: with nft in the netdev or bridge family, \
         or tc at the port's ingress. Or build the overlay on something that authenticates. Then \
         `overlayd lab grade`; what the nodes really say must still arrive.",
    ],
};
