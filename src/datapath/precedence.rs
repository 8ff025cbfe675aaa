//! Going before other programs while a stream comes in.
//!
//! A thread that writes superpackets to the device wakes their reader with each of them. Where both share a processor, the
//! reader, which waited, takes it at once, finds one superpacket, answers it, and sleeps again: two changes of program
//! and an answer for each. A little more weight than the reader's lets the thread finish its batch first; the reader then
//! finds all of it, and answers once.
//!
//! Only for streams: before a program that *sends*, the same weight makes every packet a batch of its own.

use std::io;
use std::thread;

use crate::sys::sched;

/// Turns in a row that must be of the other kind before the nice value is changed: it is a system call.
const TURNS: u8 = 8;

/// The nice value of one forwarding thread.
#[derive(Debug)]
pub struct Precedence {
    usual: i32,
    streaming: i32,
    /// Is it `streaming` now?
    raised: bool,
    /// Turns of the other kind since the last one that fits.
    against: u8,
}

impl Precedence {
    /// For the calling thread: its own nice value changed by `by`, which is zero or less, while streams come in.
    pub fn new(by: i32) -> Self {
        let usual = sched::nice().unwrap_or(0);
        Precedence {
            usual,
            streaming: changed(usual, by),
            raised: false,
            against: 0,
        }
    }

    /// The thread took its turn: with superpackets of streams that came in, or with nothing but what goes out, single packets
    /// and answers.
    pub fn turned(&mut self, stream: bool) {
        if stream == self.raised {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against == TURNS {
            self.set(stream);
        }
    }

    /// Do streams come in?
    pub fn streaming(&self) -> bool {
        self.raised
    }

    /// Nothing came.
    pub fn idle(&mut self) {
        if self.raised {
            self.set(false);
        }
    }

    fn set(&mut self, raised: bool) {
        self.against = 0;
        self.raised = raised;
        if self.streaming != self.usual {
            let nice = if raised { self.streaming } else { self.usual };
            // Whether the kernel allows it was asked at start; without, it is as before.
            let _ = sched::set_nice(nice);
        }
    }
}

fn changed(usual: i32, by: i32) -> i32 {
    (usual + by).clamp(-20, 19)
}

/// Does the kernel let a thread of this process change its nice value by so much? Tried by one that does nothing else.
/// Returns its usual value and the changed one.
///
/// # Errors
/// EACCES without CAP_SYS_NICE; EAGAIN if there can be no more threads.
pub fn probe(by: i32) -> io::Result<(i32, i32)> {
    let tried = thread::Builder::new().spawn(move || {
        let usual = sched::nice()?;
        let streaming = changed(usual, by);
        sched::set_nice(streaming)?;
        Ok((usual, streaming))
    })?;
    tried
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that tried panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, whose nice value may change: towards 19, for which nobody needs a privilege.
    fn alone(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_nice_value_is_that_of_one_thread() {
        let before = sched::nice().unwrap();
        alone(move || {
            sched::set_nice(19).unwrap();
            assert_eq!(sched::nice().unwrap(), 19);
        });
        assert_eq!(sched::nice().unwrap(), before);
    }

    #[test]
    fn changes_after_some_turns_of_the_other_kind_in_a_row() {
        alone(|| {
            let base = sched::nice().unwrap();
            let mut precedence = Precedence {
                usual: base,
                streaming: 19,
                raised: false,
                against: 0,
            };
            let mut raised_after = |turns: &[bool]| {
                for stream in turns {
                    precedence.turned(*stream);
                }
                precedence.raised
            };
            assert!(!raised_after(&[true; 7]));
            assert!(!raised_after(&[false]), "not in a row");
            assert!(!raised_after(&[true; 7]));
            assert_eq!(sched::nice().unwrap(), base);
            assert!(raised_after(&[true]));
            assert_eq!(sched::nice().unwrap(), 19);
            assert!(raised_after(&[true; 100]));
            assert!(raised_after(&[false; 7]));
            assert!(raised_after(&[true]));
            // Back needs the privilege, so only what was wanted is looked at.
            assert!(!raised_after(&[false; 8]));
            precedence.idle();
            (0..8).for_each(|_| precedence.turned(true));
            assert!(precedence.streaming());
            precedence.idle();
            assert!(!precedence.streaming(), "a stream that stops ends at once");
        });
    }

    #[test]
    fn it_is_a_change_to_what_the_thread_has_within_what_there_is() {
        assert_eq!(changed(0, -5), -5);
        assert_eq!(changed(10, -5), 5);
        assert_eq!(changed(-18, -5), -20);
        alone(|| {
            let base = sched::nice().unwrap();
            assert_eq!(probe(0).unwrap(), (base, base));
            let mut precedence = Precedence::new(0);
            (0..20).for_each(|_| precedence.turned(true));
            assert_eq!(sched::nice().unwrap(), base);
        });
    }
}
