//! The filter on the injection device, an eBPF program of two dozen instructions at its ingress (tcx).
//!
//! It redirects to the underlay device what our own socket could have sent: UDP from our public IP to the
//! tunnel port. Everything else is dropped, so that nothing that might appear on the device ever reaches the
//! host's stack or the wire.
//!
//! ```text
//!  queue_mapping = 0                  which of the underlay's queues: by flow, as for the sockets' packets
//!  load the first 58 bytes            Ethernet, IPv6 and UDP ports (an IPv4 superpacket is longer as well)
//!  EtherType?   0x0800: IHL 5? UDP? source ours? port ours? ─▶ redirect
//!               0x86dd:        UDP? source ours? port ours? ─▶ redirect
//!  drop
//! ```

use fdb::Endpoint;

use crate::sys::inject::Instruction;

// include/uapi/linux/bpf_common.h and bpf.h: class | size or operation | mode or operand.
const LOAD: u8 = 0x61; // BPF_LDX | BPF_MEM, BPF_W; + 0x08 BPF_H, + 0x10 BPF_B
const STORE_WORD: u8 = 0x63; // BPF_STX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const ADD: u8 = 0x07; // BPF_ALU64 | BPF_ADD | BPF_K
const JUMP_IF_NOT: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const CALL: u8 = 0x85; // BPF_JMP | BPF_CALL
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;

const REDIRECT: i32 = 23; // bpf_redirect(ifindex, flags)
const SKB_LOAD_BYTES: i32 = 26; // bpf_skb_load_bytes(skb, offset, to, len)
const QUEUE_MAPPING: i16 = 12; // its offset in struct __sk_buff
const TCX_DROP: i32 = 2;
const UDP: i32 = 17;

/// Where on the stack the frame is copied to, from the frame pointer down: so that every field that is
/// compared lies aligned, as the verifier wants it.
const FRAME: i16 = -62;
/// Ethernet, IPv6, UDP ports.
const LOADED: i32 = 14 + 40 + 4;

/// The filter for frames from one of `sources` to UDP port `port`, out through the device `underlay`.
pub fn program(underlay: u32, sources: Endpoint, port: u16) -> Vec<Instruction> {
    let mut code = Code::default();
    code.push(op(MOVE, 2, 0, 0, 0));
    code.push(op(STORE_WORD, 1, 2, QUEUE_MAPPING, 0));
    code.push(op(MOVE_REGISTER, 3, 10, 0, 0));
    code.push(op(ADD, 3, 0, 0, FRAME.into()));
    code.push(op(MOVE, 4, 0, 0, LOADED));
    code.push(op(CALL, 0, 0, 0, SKB_LOAD_BYTES));
    code.jump(op(JUMP_IF_NOT, 0, 0, 0, 0), Target::Drop);
    if let Some(source) = sources.v4 {
        code.must_be(HALF, 12, wire16(0x0800), Target::NextFamily);
        code.must_be(BYTE, 14, 0x45, Target::Drop);
        code.must_be(BYTE, 14 + 9, UDP, Target::Drop);
        code.must_be(
            WORD,
            14 + 12,
            i32::from_ne_bytes(source.octets()),
            Target::Drop,
        );
        code.must_be(HALF, 14 + 20 + 2, wire16(port), Target::Drop);
        code.jump(op(JUMP, 0, 0, 0, 0), Target::Redirect);
        code.land(Target::NextFamily);
    }
    if let Some(source) = sources.v6 {
        code.must_be(HALF, 12, wire16(0x86dd), Target::Drop);
        code.must_be(BYTE, 14 + 6, UDP, Target::Drop);
        for (offset, word) in (14 + 8..).step_by(4).zip(source.octets().chunks_exact(4)) {
            let word = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            code.must_be(WORD, offset, word, Target::Drop);
        }
        code.must_be(HALF, 14 + 40 + 2, wire16(port), Target::Drop);
        code.jump(op(JUMP, 0, 0, 0, 0), Target::Redirect);
    }
    code.land(Target::Drop);
    code.push(op(MOVE, 0, 0, 0, TCX_DROP));
    code.push(op(EXIT, 0, 0, 0, 0));
    code.land(Target::Redirect);
    code.push(op(
        MOVE,
        1,
        0,
        0,
        i32::from_ne_bytes(underlay.to_ne_bytes()),
    ));
    code.push(op(MOVE, 2, 0, 0, 0));
    code.push(op(CALL, 0, 0, 0, REDIRECT));
    code.push(op(EXIT, 0, 0, 0, 0));
    code.instructions
}

/// Where a jump leads, always forward.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    NextFamily,
    Drop,
    Redirect,
}

/// Instructions, and the jumps whose distance is not known yet.
#[derive(Default)]
struct Code {
    instructions: Vec<Instruction>,
    open: Vec<(usize, Target)>,
}

impl Code {
    fn push(&mut self, instruction: Instruction) {
        self.instructions.push(instruction);
    }

    fn jump(&mut self, instruction: Instruction, target: Target) {
        self.open.push((self.instructions.len(), target));
        self.push(instruction);
    }

    /// Goes on if the field at `offset` of the frame is `value` (as it lies in memory), to `target` otherwise.
    fn must_be(&mut self, size: u8, offset: i16, value: i32, target: Target) {
        self.push(op(LOAD + size, 1, 10, FRAME + offset, 0));
        self.jump(op(JUMP_IF_NOT, 1, 0, 0, value), target);
    }

    /// The jumps to `target` lead here.
    fn land(&mut self, target: Target) {
        let here = self.instructions.len();
        for (at, wanted) in &self.open {
            if *wanted == target {
                // Counted from the instruction after the jump; the program has some fifty of them.
                self.instructions[*at].offset = i16::try_from(here - at - 1).unwrap_or(i16::MAX);
            }
        }
        self.open.retain(|(_, wanted)| *wanted != target);
    }
}

fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction::new(code, dst, src, offset, immediate)
}

/// A 16-bit field as a load of it in host order sees it.
fn wire16(value: u16) -> i32 {
    u16::from_ne_bytes(value.to_be_bytes()).into()
}
