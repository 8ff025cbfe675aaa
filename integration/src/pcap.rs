//! Capture files whole in memory, as tests of recorded traffic want them. `overlayd dissect`'s reader reads them.

use anyhow::{Context, Result, ensure};
use overlayd::teach::capture::{self, Link};

/// Link type of Ethernet frames.
pub const ETHERNET: u32 = 1;
/// Link type of IP packets without a link header; the version nibble tells the family.
pub const RAW: u32 = 101;

const MICROSECONDS: u32 = 0xa1b2_c3d4;

/// A capture without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// What the frames begin with: [`ETHERNET`] or [`RAW`].
    pub link: u32,
    /// The frames, in order.
    pub frames: Vec<Vec<u8>>,
}

impl Capture {
    /// Reads a capture file.
    ///
    /// # Errors
    /// If it is none, holds no frame, ends within one, or holds one of another link type or of which only a part was
    /// captured: every user of it here wants whole ones of one kind.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut capture = capture::Capture::open(file)?;
        let mut link = None;
        let mut frames = Vec::new();
        while let Some(frame) = capture.next_frame()? {
            let number = frame.number;
            ensure!(
                frame.bytes.len() == frame.wire_len,
                "frame {number} was captured only in part"
            );
            ensure!(
                frame.link.is_some() && *link.get_or_insert(frame.link) == frame.link,
                "frame {number} is of another link type"
            );
            frames.push(frame.bytes.to_vec());
        }
        let link = match link.flatten().context("no frames")? {
            Link::Ethernet => ETHERNET,
            Link::Raw => RAW,
            other => anyhow::bail!("frames of {other}"),
        };
        Ok(Capture { link, frames })
    }

    /// The capture as a file, frame n at second n.
    ///
    /// # Errors
    /// If a frame or the number of frames does not fit its field.
    pub fn emit(&self) -> Result<Vec<u8>> {
        let mut file = Vec::new();
        let version = 2 | 4 << 16;
        for word in [MICROSECONDS, version, 0, 0, 0x0004_0000, self.link] {
            file.extend(word.to_le_bytes());
        }
        for (number, frame) in self.frames.iter().enumerate() {
            let len = u32::try_from(frame.len())?;
            for word in [u32::try_from(number)?, 0, len, len] {
                file.extend(word.to_le_bytes());
            }
            file.extend(frame);
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Capture {
        let frames = vec![vec![1, 2, 3], vec![], vec![0xff; 70_000]];
        Capture { link: RAW, frames }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(
            Capture::parse(&example().emit().unwrap()).unwrap(),
            example()
        );
    }

    #[test]
    fn what_is_no_whole_capture_is_refused() {
        let file = Capture {
            frames: vec![vec![7; 20]],
            ..example()
        };
        let mut file = file.emit().unwrap();
        for len in 0..file.len() {
            assert!(Capture::parse(&file[..len]).is_err());
        }
        file[24 + 12] += 1;
        let error = Capture::parse(&file).unwrap_err().to_string();
        assert_eq!(error, "frame 1 was captured only in part");
    }
}
