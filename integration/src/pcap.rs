//! Capture files in the classic pcap format, as far as the recorded fixtures need it: read whole, written whole.
//!
//! ```text
//!  file   | magic u32 | version 2 x u16 | time zone u32 | accuracy u32 | snap length u32 | link type u32 |
//!  record | seconds u32 | fraction u32 | captured length u32 | length on the wire u32 | captured bytes ... |
//! ```
//!
//! Integers are in the byte order of the machine that wrote the file; the magic number tells which
//! (draft-ietf-opsawg-pcap section 4).

use anyhow::{Context, Result, bail, ensure};

/// Link type of Ethernet frames.
pub const ETHERNET: u32 = 1;
/// Link type of IP packets without a link header; the version nibble tells the family.
pub const RAW: u32 = 101;

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// A capture without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// What the frames begin with: [`ETHERNET`] or [`RAW`], among others.
    pub link: u32,
    /// The frames, in order.
    pub frames: Vec<Vec<u8>>,
}

impl Capture {
    /// Reads a capture file of either byte order.
    ///
    /// # Errors
    /// If it is no pcap file (pcapng is another format), ends within a record, or holds a frame of which only
    /// a part was captured: every user of it here wants whole ones.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let magic = file.first_chunk::<4>().context("no magic number")?;
        let word: fn([u8; 4]) -> u32 = match u32::from_le_bytes(*magic) {
            MICROSECONDS | NANOSECONDS => u32::from_le_bytes,
            _ => u32::from_be_bytes,
        };
        if !matches!(word(*magic), MICROSECONDS | NANOSECONDS) {
            bail!("{magic:02x?} is not the magic number of a pcap file");
        }
        let word_at = |bytes: &[u8], at: usize| -> Result<u32> {
            let four = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
            Ok(word(*four.context("the file ends within a header")?))
        };
        // The upper bits of the field may state the length of a frame check sequence.
        let link = word_at(file, 20)? & 0xffff;
        let mut rest = &file[FILE_HEADER..];
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let number = frames.len() + 1;
            let captured = word_at(rest, 8)?;
            ensure!(
                captured == word_at(rest, 12)?,
                "frame {number} was captured only in part"
            );
            let end = RECORD_HEADER + usize::try_from(captured)?;
            let frame = rest.get(RECORD_HEADER..end);
            let frame = frame.with_context(|| format!("the file ends within frame {number}"))?;
            frames.push(frame.to_vec());
            rest = &rest[end..];
        }
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
    fn the_other_byte_order_is_read_as_well() {
        let big_endian = [
            &[0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4][..],
            &[0; 8],
            &[0, 4, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2, 0xab, 0xcd],
        ];
        let capture = Capture::parse(&big_endian.concat()).unwrap();
        let frames = vec![vec![0xab, 0xcd]];
        assert_eq!(
            capture,
            Capture {
                link: ETHERNET,
                frames
            }
        );
    }

    #[test]
    fn what_is_no_whole_capture_is_refused() {
        let mut file = Capture {
            frames: vec![vec![7; 20]],
            ..example()
        }
        .emit()
        .unwrap();
        for len in 0..file.len() {
            // Only a file of no frames at all is whole in itself.
            assert_eq!(Capture::parse(&file[..len]).is_ok(), len == FILE_HEADER);
        }
        file[FILE_HEADER + 12] += 1;
        let error = Capture::parse(&file).unwrap_err().to_string();
        assert_eq!(error, "frame 1 was captured only in part");
        file[0] = 0x0a;
        assert!(Capture::parse(&file).is_err());
    }
}
