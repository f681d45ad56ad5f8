//! A bounded buffer of messages for a device.

use std::collections::VecDeque;

use crate::{
    call::Signal,
    limits::buffers::Charge,
    metrics::{self, Limit},
    payload::Payload,
    time::Timestamp,
};

/// The most messages in the buffer of a lost device.
pub const MAX_WAITING_MESSAGES: usize = 64;
/// The most bytes in the buffer of a lost device.
pub const MAX_WAITING_BYTES: usize = 256 * 1024;
/// The most messages of a caller that are kept for devices that join while the call rings, and the
/// most of ringing devices that are buffered until an answer.
pub const MAX_REPLAY_MESSAGES: usize = 1_024;
/// The most bytes of these messages.
pub const MAX_REPLAY_BYTES: usize = 1024 * 1024;

/// Buffered messages, within a bound and the node's byte budget.
pub struct Buffer {
    pub messages: VecDeque<(Signal, Payload)>,
    charge: Charge,
    /// The number of messages at the front that another node has returned: they were sent first.
    returned: usize,
}

/// There is no room for another message.
pub enum Full {
    /// The buffer's own bound is reached, until this time.
    Until(Timestamp),
    /// The node's byte budget is exhausted.
    Budget,
}

impl Buffer {
    /// An empty buffer, whose messages are counted by `charge`.
    pub fn new(charge: Charge) -> Self {
        Self { messages: VecDeque::new(), charge, returned: 0 }
    }

    /// An empty buffer in the same budget.
    pub fn sibling(&self) -> Self {
        Self::new(self.charge.sibling())
    }

    /// Takes all messages out.
    pub fn take(&mut self) -> Self {
        let empty = self.sibling();
        std::mem::replace(self, empty)
    }

    pub fn size_bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Whether the node's byte budget has room for this message.
    pub fn fits_budget(&self, payload: &Payload) -> Result<(), Full> {
        if self.charge.has_room(payload.len_bytes()) {
            return Ok(());
        }
        metrics::LIMITS.of(Limit::Buffers).increment(1);
        Err(Full::Budget)
    }

    pub fn keep_for_replay(
        &mut self,
        signal: Signal,
        payload: &Payload,
        until: Timestamp,
    ) -> Result<(), Full> {
        self.keep(signal, payload, MAX_REPLAY_MESSAGES, MAX_REPLAY_BYTES, until)
    }

    pub fn keep_for_lost(
        &mut self,
        signal: Signal,
        payload: &Payload,
        until: Timestamp,
    ) -> Result<(), Full> {
        self.keep(signal, payload, MAX_WAITING_MESSAGES, MAX_WAITING_BYTES, until)
    }

    fn keep(
        &mut self,
        signal: Signal,
        payload: &Payload,
        max_messages: usize,
        max_bytes: usize,
        until: Timestamp,
    ) -> Result<(), Full> {
        let size_bytes = self.size_bytes() + payload.len_bytes();
        if self.messages.len() >= max_messages || size_bytes > max_bytes {
            return Err(Full::Until(until));
        }
        self.fits_budget(payload)?;
        self.push(signal, payload);
        Ok(())
    }

    /// Puts a returned message before the unsent ones, which precede all later messages. There is
    /// always room: the message was counted on the node that returns it.
    pub fn put_returned(&mut self, signal: Signal, payload: Payload) {
        self.put(self.returned, signal, payload);
        self.returned += 1;
    }

    /// Puts unsent messages before all later ones. Messages that are recalled last were sent before
    /// those that were recalled earlier.
    pub fn put_recalled(&mut self, messages: impl Iterator<Item = (Signal, Payload)>) {
        for (place, (signal, payload)) in (self.returned..).zip(messages) {
            self.put(place, signal, payload);
        }
    }

    fn put(&mut self, place: usize, signal: Signal, payload: Payload) {
        self.charge.add(payload.len_bytes());
        self.messages.insert(place, (signal, payload));
    }

    pub fn push(&mut self, signal: Signal, payload: &Payload) {
        self.messages.push_back((signal, payload.clone()));
        self.charge.add(payload.len_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::buffers::Buffers;

    #[test]
    fn buffered_messages_are_in_the_order_in_which_they_were_sent() {
        let buffers = Buffers::default();
        let mut buffer = Buffer::new(buffers.holder(metrics::Buffer::Calls));
        let payload = |text| -> Payload { serde_json::from_str(&format!("{text:?}")).unwrap() };
        buffer.push(Signal::Candidate, &payload("later"));
        let [not_left, was_leaving] =
            [["not left", "not left either"], ["was leaving", "was leaving too"]];
        let all = |payloads: [Payload; 2]| payloads.map(|payload| (Signal::Candidate, payload));
        buffer.put_recalled(all(not_left.map(payload)).into_iter());
        buffer.put_returned(Signal::Candidate, payload("first"));
        buffer.put_recalled(all(was_leaving.map(payload)).into_iter());
        buffer.put_returned(Signal::Candidate, payload("second"));
        buffer.push(Signal::Candidate, &payload("last"));
        let size_bytes = buffer.size_bytes();
        let order: Vec<_> = buffer.messages.into_iter().map(|(_, payload)| payload).collect();
        let texts = [["first", "second"], was_leaving, not_left, ["later", "last"]].concat();
        assert_eq!(order, texts.into_iter().map(payload).collect::<Vec<_>>());
        assert_eq!(size_bytes, order.iter().map(Payload::len_bytes).sum::<usize>());
    }
}
