//! What the queues of devices have dropped (tc(8)): packets that left the IP layer and never came to the device, or came
//! from the device and never to the IP layer, so that no other counter knows of them.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage, TcStats2};

use super::{Error, Netlink, Result};

/// A queueing discipline of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The index of the device it stands at.
    pub ifindex: u32,
    /// `fq_codel`, `netem`, ...; `clsact` and `ingress` queue nothing, but hold filters.
    pub kind: String,
    /// How many packets it has dropped, or its filters.
    pub drops: u64,
}

impl Queue {
    fn from_message(message: TcMessage) -> Option<Self> {
        let mut queue = Self {
            ifindex: u32::try_from(message.header.index).ok()?,
            kind: String::new(),
            drops: 0,
        };
        for attribute in message.attributes {
            match attribute {
                TcAttribute::Kind(kind) => queue.kind = kind,
                TcAttribute::Stats2(all) => {
                    for stats in all {
                        if let TcStats2::Queue(stats) = stats {
                            queue.drops = stats.drops.into();
                        }
                    }
                }
                _ => {}
            }
        }
        Some(queue)
    }
}

impl Netlink {
    /// The queueing disciplines of all devices.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn queues(&self) -> Result<Vec<Queue>> {
        let all: Vec<TcMessage> = self
            .handle
            .qdisc()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::netlink("list queueing disciplines", e))?;
        Ok(all.into_iter().filter_map(Queue::from_message).collect())
    }
}
