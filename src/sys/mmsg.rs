//! Many datagrams per system call: sendmmsg(2) and recvmmsg(2) on connected UDP sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Buffers for up to a fixed number of datagrams, and the headers that describe them to the kernel.
///
/// The headers point into the buffers. Both live on the heap, are never resized, and go together.
#[derive(Debug)]
pub struct Batch {
    size: usize,
    buffers: Box<[u8]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Batch {
    /// Room for `count` datagrams of `size` bytes each. Longer ones are cut on receipt.
    pub fn new(count: usize, size: usize) -> Self {
        let mut buffers = vec![0; count * size].into_boxed_slice();
        let base = buffers.as_mut_ptr();
        let mut vectors: Box<[libc::iovec]> = (0..count)
            .map(|i| libc::iovec {
                // Stays inside the allocation: i < count.
                iov_base: base.wrapping_add(i * size).cast(),
                iov_len: size,
            })
            .collect();
        let first = vectors.as_mut_ptr();
        let headers = (0..count)
            .map(|i| libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: ptr::null_mut(),
                    msg_namelen: 0,
                    msg_iov: first.wrapping_add(i),
                    msg_iovlen: 1,
                    msg_control: ptr::null_mut(),
                    msg_controllen: 0,
                    msg_flags: 0,
                },
                msg_len: 0,
            })
            .collect();
        Self {
            size,
            buffers,
            vectors,
            headers,
        }
    }

    /// How many datagrams it has room for.
    pub fn capacity(&self) -> usize {
        self.vectors.len()
    }

    /// The bytes of datagram `i`, all of its room.
    ///
    /// # Panics
    /// When `i` is not below [`Batch::capacity`].
    pub fn buffer(&mut self, i: usize) -> &mut [u8] {
        &mut self.buffers[i * self.size..][..self.size]
    }

    /// The bytes of datagram `i` that the last [`Batch::receive`] put there.
    ///
    /// # Panics
    /// When `i` is not below what it returned.
    pub fn received(&self, i: usize) -> &[u8] {
        let len = self.headers[i].msg_len as usize;
        &self.buffers[i * self.size..][..len.min(self.size)]
    }

    /// Sends the first `count` datagrams, full length each. How many the kernel took: it stops at the first that fails,
    /// and tells the error only if that is the very first.
    ///
    /// # Errors
    /// As sendmmsg(2).
    ///
    /// # Panics
    /// When `count` is above [`Batch::capacity`].
    pub fn send(&mut self, socket: &impl AsFd, count: usize) -> io::Result<usize> {
        let headers = &mut self.headers[..count];
        let len = libc::c_uint::try_from(count).map_err(io::Error::other)?;
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: `headers` is valid for `len` elements; each names one iovec of ours, which names a part of `buffers`
        // that nothing else refers to while we are borrowed. The call only reads the bytes.
        let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), len, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what is there, as many as there is room for: at least one. Waits for the first as the socket is set to.
    ///
    /// # Errors
    /// As recvmmsg(2).
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let len = libc::c_uint::try_from(self.headers.len()).map_err(io::Error::other)?;
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: as for sending; the call writes into `buffers`, at most `size` bytes each, and into `headers`, both of
        // which we borrow mutably.
        let received = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                len,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_is_sent_in_a_batch_arrives_as_it_was() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new(5, 40);
        for i in 0..5u8 {
            batch.buffer(i.into()).fill(i);
        }
        assert_eq!(batch.send(&from, 5).unwrap(), 5);
        // Shorter than what comes: cut, not overrun.
        let mut into = Batch::new(8, 33);
        let mut seen = 0;
        while seen < 5 {
            let count = into.receive(&to).unwrap();
            for i in 0..count {
                assert_eq!(into.received(i), vec![seen; 33]);
                seen += 1;
            }
        }
    }

    #[test]
    fn an_error_of_the_first_is_told() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = Batch::new(1, 1).send(&socket, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ));
    }
}
