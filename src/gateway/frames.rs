//! The frames of a websocket connection (RFC 6455, 5.2), and the limits on them. Every frame costs
//! time, also one without an event: pings, pongs, empty continuations, packets for unknown
//! namespaces. Pure, except for the limits that it consults.

use std::sync::Arc;

use crate::{
    limits::{Limits, address::Source, bucket::Bucket},
    metrics::Limit,
};

/// The longest message before the socket has joined the namespace: room for a CONNECT packet with
/// the longest token.
pub const MAX_UNJOINED_BYTES: usize = 16 * 1024;

/// The longest head of a frame: two bytes, a length of eight, a mask of four.
const MAX_HEAD_BYTES: usize = 14;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const OPCODE: u8 = 0x0f;
/// Opcodes from this one on are of control frames, which may come between the frames of a message.
const FIRST_CONTROL: u8 = 0x8;

/// Follows the frames in a connection's bytes. Reads only their heads.
#[derive(Debug, Default)]
struct Walk {
    head: [u8; MAX_HEAD_BYTES],
    /// The number of bytes of the head so far.
    have: u8,
    /// The remaining bytes of the frame's payload.
    payload_left: u64,
    /// Whether that payload belongs to a message; else to a control frame.
    is_data: bool,
    /// The length of the message so far, as the heads of its frames say.
    message_bytes: u64,
    /// Whether the last frame of that message has begun.
    is_whole: bool,
}

/// The frames that some bytes began.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    frames: u32,
    /// The longest message, complete or not.
    longest_bytes: u64,
}

impl Walk {
    fn see(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[skipped..];
            self.payload_left -= skipped as u64;
            while self.payload_left == 0
                && let Some((byte, rest)) = bytes.split_first()
            {
                bytes = rest;
                self.head[usize::from(self.have)] = *byte;
                self.have += 1;
                if usize::from(self.have) == self.head_bytes() {
                    self.begin(&mut seen);
                }
            }
        }
        seen
    }

    /// The length of the head, as far as it is known.
    fn head_bytes(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let length = match self.head[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & MASKED == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// Processes a complete head.
    fn begin(&mut self, seen: &mut Seen) {
        let length = match self.head[1] & !MASKED {
            126 => u64::from(u16::from_be_bytes([self.head[2], self.head[3]])),
            127 => {
                let length = self.head[2..].first_chunk().expect("a head has room for it");
                u64::from_be_bytes(*length)
            }
            length => u64::from(length),
        };
        self.have = 0;
        self.payload_left = length;
        seen.frames += 1;
        self.is_data = self.head[0] & OPCODE < FIRST_CONTROL;
        if self.is_data {
            let earlier = if self.is_whole { 0 } else { self.message_bytes };
            self.message_bytes = earlier.saturating_add(length);
            seen.longest_bytes = seen.longest_bytes.max(self.message_bytes);
            self.is_whole = self.head[0] & FIN != 0;
        }
    }

    /// The bytes of an incomplete message, which the library keeps until it is complete.
    fn unfinished_bytes(&self) -> u64 {
        let left = if self.is_data { self.payload_left } else { 0 };
        if self.is_whole && left == 0 { 0 } else { self.message_bytes.saturating_sub(left) }
    }
}

/// Counts the frames of one websocket connection against its limits.
pub struct Meter {
    walk: Walk,
    frames: Bucket,
    bytes: Bucket,
    source: Source,
    limits: Arc<Limits>,
}

impl Meter {
    pub fn new(source: Source, limits: Arc<Limits>) -> Self {
        let (walk, frames, bytes) = (Walk::default(), Bucket::default(), Bucket::default());
        Self { walk, frames, bytes, source, limits }
    }

    /// Counts received bytes. Returns false if the connection must be closed, which has been
    /// reported then.
    pub fn take(&mut self, bytes: &[u8], has_joined: impl FnOnce() -> bool) -> bool {
        let Seen { frames, longest_bytes } = self.walk.see(bytes);
        let reached = if longest_bytes > MAX_UNJOINED_BYTES as u64 && !has_joined() {
            Limit::Unjoined
        } else if !self.limits.frames(&mut self.frames, frames) {
            Limit::Frames
        } else if !self.limits.bytes(&mut self.bytes, bytes.len()) {
            Limit::Bytes
        } else {
            return true;
        };
        self.limits.flooded(reached, self.source);
        false
    }

    /// The bytes of an incomplete message.
    pub fn unfinished_bytes(&self) -> usize {
        usize::try_from(self.walk.unfinished_bytes()).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, is_last: bool, payload_bytes: usize) -> Vec<u8> {
        let mut frame = vec![opcode | if is_last { FIN } else { 0x00 }];
        match payload_bytes {
            0..126 => frame.push(MASKED | u8::try_from(payload_bytes).unwrap()),
            126..0x1_0000 => {
                frame.push(MASKED | 0x7e);
                frame.extend(u16::try_from(payload_bytes).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(MASKED | 0x7f);
                frame.extend((payload_bytes as u64).to_be_bytes());
            }
        }
        frame.extend([0xff; 4]);
        frame.resize(frame.len() + payload_bytes, 0xff);
        frame
    }

    #[test]
    fn a_message_is_as_long_as_its_frames_and_control_frames_are_not_its() {
        let mut walk = Walk::default();
        let frames = [frame(1, false, 100), frame(9, true, 125), frame(0, true, 50)].concat();
        assert_eq!(walk.see(&frames), Seen { frames: 3, longest_bytes: 150 });
        assert_eq!(walk.see(&frame(1, true, 10)), Seen { frames: 1, longest_bytes: 10 });
    }

    #[test]
    fn a_length_is_known_before_its_payload_and_the_longest_does_not_overflow() {
        let mut walk = Walk::default();
        let head = &frame(2, true, 70_000)[..14];
        assert_eq!(walk.see(head), Seen { frames: 1, longest_bytes: 70_000 });
        let mut endless = vec![1, MASKED | 0x7f];
        endless.extend([0xff; 12]);
        let mut walk = Walk::default();
        assert_eq!(walk.see(&endless).longest_bytes, u64::MAX);
        assert_eq!(walk.see(&[0xff; 1_000]), Seen::default());
    }

    #[test]
    fn bytes_of_a_message_are_unfinished_until_its_last_frame_is_whole() {
        let mut walk = Walk::default();
        let begun = frame(1, false, 1_000);
        walk.see(&begun[..begun.len() - 400]);
        assert_eq!(walk.unfinished_bytes(), 600);
        walk.see(&begun[begun.len() - 400..]);
        let ping = frame(9, true, 100);
        walk.see(&ping[..50]);
        assert_eq!(walk.unfinished_bytes(), 1_000, "those of a control frame are not counted");
        walk.see(&ping[50..]);
        let last = frame(0, true, 200);
        walk.see(&last[..last.len() - 1]);
        assert_eq!(walk.unfinished_bytes(), 1_199);
        walk.see(&last[last.len() - 1..]);
        assert_eq!(walk.unfinished_bytes(), 0);
        walk.see(&ping[..50]);
        assert_eq!(walk.unfinished_bytes(), 0);
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_the_bytes_are_cut(
            sizes in prop::collection::vec((0..3_usize, any::<bool>(), 0..70_000_usize), 1..20),
            cuts in prop::collection::vec(1..5_000_usize, 1..50),
        ) {
            let kinds = [1, 9, 0];
            let stream: Vec<u8> = sizes.iter()
                .flat_map(|(kind, is_last, bytes)| frame(kinds[*kind], *is_last, *bytes))
                .collect();
            let whole = Walk::default().see(&stream);
            let (mut walk, mut rest, mut cuts) = (Walk::default(), stream.as_slice(), cuts.iter().cycle());
            let mut sum = Seen::default();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                let seen = walk.see(now);
                sum.frames += seen.frames;
                sum.longest_bytes = sum.longest_bytes.max(seen.longest_bytes);
                rest = later;
            }
            prop_assert_eq!(whole.frames as usize, sizes.len());
            prop_assert_eq!(sum, whole);
        }

        /// Any bytes end without an overflow.
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            Walk::default().see(&bytes);
        }
    }
}
