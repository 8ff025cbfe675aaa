//! IPsec: does the host encrypt what its sockets send? Whoever writes Ethernet frames himself has to ask, since his are
//! not encrypted.

use std::io;

use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_XFRM;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};

use super::{Error, Result};

// include/uapi/linux/xfrm.h
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRMA_SPD_INFO: u16 = 1;
/// The multicast group of policies (XFRMNLGRP_POLICY, 4), as a bit.
const POLICIES: u32 = 1 << 3;
/// Lengths of struct nlmsghdr with the four bytes of flags that follow it, and of struct nlattr.
const HEADER: usize = 16 + 4;
const ATTRIBUTE: usize = 4;

/// The IPsec policies of one namespace, where the kernel has IPsec.
pub struct Policies {
    sockets: Option<(Socket, TokioSocket)>,
}

impl Policies {
    /// Watches the policies of the calling thread's namespace. Needs a running tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the sockets.
    pub fn watch() -> Result<Self> {
        let error = |cause| Error::new("watch IPsec policies", cause);
        let ask = match Socket::new(NETLINK_XFRM) {
            Ok(socket) => socket,
            Err(cause) if cause.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
                return Ok(Policies { sockets: None });
            }
            Err(cause) => return Err(error(cause)),
        };
        let mut hear = <TokioSocket as AsyncSocket>::new(NETLINK_XFRM).map_err(error)?;
        let group = SocketAddr::new(0, POLICIES);
        hear.socket_mut().bind(&group).map_err(error)?;
        Ok(Policies {
            sockets: Some((ask, hear)),
        })
    }

    /// Are there policies for packets that leave this host?
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn outbound(&self) -> Result<bool> {
        let Some((ask, _)) = &self.sockets else {
            return Ok(false);
        };
        let count = outbound_count(ask).map_err(|e| Error::new("count IPsec policies", e))?;
        Ok(count > 0)
    }

    /// Waits until policies may have changed.
    pub async fn changed(&mut self) {
        match &mut self.sockets {
            // An error is a buffer that ran over: something changed, then.
            Some((_, hear)) => drop(hear.recv_from_full().await),
            None => std::future::pending().await,
        }
    }
}

fn outbound_count(socket: &Socket) -> io::Result<u32> {
    // struct nlmsghdr: length, type, NLM_F_REQUEST, sequence, port; then no flags.
    let mut question = [0; HEADER];
    question[..4].copy_from_slice(&20u32.to_ne_bytes());
    question[4..6].copy_from_slice(&XFRM_MSG_GETSPDINFO.to_ne_bytes());
    question[6..8].copy_from_slice(&1u16.to_ne_bytes());
    socket.send(&question, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    parse(&answer).ok_or_else(|| io::Error::other("the kernel's answer was not understood"))
}

/// The second number of struct `xfrmu_spdinfo`, which counts outbound policies.
fn parse(answer: &[u8]) -> Option<u32> {
    let mut rest = answer.get(HEADER..)?;
    loop {
        let (head, _) = rest.split_first_chunk::<ATTRIBUTE>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        if len < ATTRIBUTE {
            return None;
        }
        if kind == XFRMA_SPD_INFO {
            let count = rest.get(ATTRIBUTE + 4..len)?.first_chunk()?;
            return Some(u32::from_ne_bytes(*count));
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_behind_other_attributes() {
        let attribute = |kind: u16, data: &[u32]| {
            let len = u16::try_from(ATTRIBUTE + 4 * data.len()).unwrap();
            let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(data.iter().flat_map(|word| word.to_ne_bytes()));
            bytes
        };
        let head = vec![0; HEADER];
        let info = attribute(XFRMA_SPD_INFO, &[1, 7, 3, 4, 5, 6]);
        let other = attribute(2, &[9, 9]);
        assert_eq!(parse(&[&*head, &*other, &*info].concat()), Some(7));
        assert_eq!(parse(&[&*head, &*other].concat()), None);
        assert_eq!(parse(&[&*head, &info[..8]].concat()), None);
        assert_eq!(parse(&[&*head, &[0; 4]].concat()), None);
        assert_eq!(parse(&[]), None);
    }
}
