//! One direction between two nodes: messages are numbered, gaps are noticed, and what is missing
//! is asked for again. Pure: no I/O and no clock.
//!
//! Publishing is at most once, and an answer that somebody heard it is no proof: a server that is
//! frozen, or a connection that is being replaced, swallows messages. So the sender keeps the last
//! ones and says now and then how far it has come.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Message;
use crate::{metrics::Publish, time::Timestamp};

/// For how long a sent message is kept to be sent again.
pub const KEEP: Duration = Duration::from_secs(30);
/// Most messages that are kept, and most that wait for a missing one.
pub const MAX_KEPT: usize = 8_192;
/// About how many bytes of them.
pub const MAX_KEPT_BYTES: usize = 16 * 1024 * 1024;
/// About how many bytes travel together at the most: Redis cuts a subscriber off that has much more to read.
pub const BATCH_BYTES: usize = 1024 * 1024;

/// What is published at once. Without messages it says how far the sender has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frame<M = Message> {
    /// Which link it belongs to: a sender that begins anew counts from 0 again.
    pub link: u64,
    /// The number of the first message; of the next one to come if there is none.
    pub first: u64,
    /// The oldest number that the sender could still send. What is older is lost for good.
    pub oldest: u64,
    pub messages: Vec<M>,
}

/// What goes from one node to another.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content<M = Message> {
    Frame(Frame<M>),
    /// Send again from this number on.
    Again(u64),
    /// From this very node: its channel works.
    Canary,
}

/// The sending end.
#[derive(Debug)]
pub struct Sender {
    link: u64,
    kept: VecDeque<(Timestamp, Message)>,
    kept_bytes: usize,
    /// The number of the first message in `kept`.
    oldest: u64,
}

/// The receiving end.
#[derive(Debug, Default)]
pub struct Receiver {
    link: u64,
    expected: u64,
    /// Messages that came before one that is missing.
    early: BTreeMap<u64, Message>,
    early_bytes: usize,
}

/// What a frame brings.
#[derive(Debug, Default, PartialEq)]
pub struct Delivery {
    /// The messages whose turn it is, in order.
    pub messages: Vec<Message>,
    /// Ask for the messages from this number on.
    pub ask_from: Option<u64>,
    /// How many messages are lost for good.
    pub lost: u64,
}

impl Content {
    /// What it is counted as.
    pub fn kind(&self) -> Publish {
        match self {
            Self::Frame(frame) if frame.messages.is_empty() => Publish::Progress,
            Self::Frame(_) => Publish::Messages,
            Self::Again(_) => Publish::Ask,
            Self::Canary => Publish::Canary,
        }
    }
}

impl Sender {
    /// A link that begins at this time, which names it.
    pub fn new(now: Timestamp) -> Self {
        Self { link: now.as_millis(), kept: VecDeque::new(), kept_bytes: 0, oldest: 0 }
    }

    /// Numbers messages and keeps them.
    pub fn send(&mut self, messages: Vec<Message>, now: Timestamp) -> Frame {
        let first = self.next();
        self.kept_bytes += messages.iter().map(Message::about_bytes).sum::<usize>();
        self.kept.extend(messages.iter().map(|message| (now, message.clone())));
        self.forget(now);
        Frame { link: self.link, first, oldest: self.oldest, messages }
    }

    /// Takes the messages out that have these numbers and that `takes` says so of.
    pub fn recall(
        &mut self,
        numbers: Range<u64>,
        takes: impl Fn(&Message) -> bool,
    ) -> Vec<Message> {
        let kept = (self.oldest..).zip(&mut self.kept);
        let of_these =
            kept.filter(|(number, (_, message))| numbers.contains(number) && takes(message));
        let void = |message: &mut Message| std::mem::replace(message, Message::Void);
        let recalled: Vec<_> = of_these.map(|(_, (_, message))| void(message)).collect();
        let freed = |message: &Message| message.about_bytes() - Message::Void.about_bytes();
        self.kept_bytes -= recalled.iter().map(freed).sum::<usize>();
        recalled
    }

    /// The messages with these numbers have been heard: whoever sent them may know.
    pub fn settle(&self, numbers: Range<u64>) {
        let index = |number: u64| {
            let index = number.saturating_sub(self.oldest);
            usize::try_from(index).unwrap_or(usize::MAX).min(self.kept.len())
        };
        for (_, message) in self.kept.range(index(numbers.start)..index(numbers.end)) {
            if let Message::Relay(relay) = message {
                relay.payload.settle();
            }
        }
    }

    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Keeps no more than about `bytes`, of the messages before `unheard` alone: those have been heard.
    pub fn trim(&mut self, bytes: usize, unheard: u64) {
        while self.kept_bytes > bytes && self.oldest < unheard && self.drop_oldest() {}
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((_, message)) = self.kept.pop_front() else { return false };
        self.kept_bytes -= message.about_bytes();
        self.oldest += 1;
        true
    }

    /// How far this end has come; None if there is nothing that could have been missed.
    pub fn progress(&mut self, now: Timestamp) -> Option<Frame> {
        self.forget(now);
        let progress = self.again(u64::MAX, 0);
        (!self.is_idle()).then_some(progress)
    }

    /// Whether nothing is left that could be sent again.
    pub fn is_idle(&self) -> bool {
        self.kept.is_empty()
    }

    /// What is kept from this number on, at most `limit` messages, as far as they travel together.
    pub fn again(&self, from: u64, limit: usize) -> Frame {
        let first = from.clamp(self.oldest, self.next());
        let skip = usize::try_from(first - self.oldest).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |(_, message): &&(Timestamp, Message)| {
            let has_room = bytes < BATCH_BYTES;
            bytes += message.about_bytes();
            has_room
        };
        let messages = self.kept.iter().skip(skip).take(limit).take_while(fits);
        let messages = messages.map(|(_, message)| message.clone()).collect();
        Frame { link: self.link, first, oldest: self.oldest, messages }
    }

    /// The number of the next message to come.
    pub fn next(&self) -> u64 {
        self.oldest + self.kept.len() as u64
    }

    fn forget(&mut self, now: Timestamp) {
        let is_old = |sent: Timestamp| sent + KEEP <= now;
        while self.kept.front().is_some_and(|(sent, _)| is_old(*sent)) || self.kept.len() > MAX_KEPT
        {
            self.drop_oldest();
        }
    }
}

impl Receiver {
    /// What waits for a missing message.
    pub fn early_bytes(&self) -> usize {
        self.early_bytes
    }

    /// Drops what waits for a missing message: it is asked for again, from the missing one on.
    pub fn forget_early(&mut self) {
        self.early.clear();
        self.early_bytes = 0;
    }

    pub fn receive(&mut self, frame: Frame) -> Delivery {
        let mut delivery = Delivery::default();
        if frame.link != self.link {
            *self = Self { link: frame.link, ..Self::default() };
        }
        let sent_up_to = frame.first.saturating_add(frame.messages.len() as u64);
        for (number, message) in (frame.first..sent_up_to).zip(frame.messages) {
            // What has no room here comes again when it is asked for. The one whose turn it is has.
            let bytes = self.early_bytes + message.about_bytes();
            let has_room = self.early.len() < MAX_KEPT && bytes <= MAX_KEPT_BYTES;
            if number >= self.expected
                && (has_room || number == self.expected)
                && !self.early.contains_key(&number)
            {
                self.early_bytes = bytes;
                self.early.insert(number, message);
            }
        }
        loop {
            while let Some(message) = self.early.remove(&self.expected) {
                self.early_bytes -= message.about_bytes();
                delivery.messages.push(message);
                self.expected += 1;
            }
            if self.expected >= frame.oldest {
                break;
            }
            // In one step: a number that is far off must not be counted up to.
            let next =
                self.early.keys().next().map_or(frame.oldest, |next| frame.oldest.min(*next));
            delivery.lost = delivery.lost.saturating_add(next - self.expected);
            self.expected = next;
        }
        if self.expected < sent_up_to || !self.early.is_empty() {
            delivery.ask_from = Some(self.expected);
        }
        delivery
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::CallId;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000) + Duration::from_secs(seconds)
    }

    fn message(number: u64) -> Message {
        Message::Rings { call: CallId::generate(at(number)), have: 0 }
    }

    fn deliver(receiver: &mut Receiver, frame: Frame, got: &mut Vec<Message>) -> Option<u64> {
        let delivery = receiver.receive(frame);
        got.extend(delivery.messages);
        assert_eq!(delivery.lost, 0);
        delivery.ask_from
    }

    #[test]
    fn what_is_too_old_is_lost_loudly_and_the_rest_goes_on() {
        let (mut sender, mut receiver) = (Sender::new(at(0)), Receiver::default());
        sender.send(vec![message(1)], at(0));
        let late = message(2);
        let delivery = receiver.receive(sender.send(vec![late.clone()], at(60)));
        assert_eq!(delivery, Delivery { messages: vec![late], ask_from: None, lost: 1 });
    }

    #[test]
    fn numbers_at_the_end_of_all_numbers_are_taken_at_once() {
        let mut receiver = Receiver::default();
        let messages = vec![message(1)];
        let frame = |first, oldest| Frame { link: 1, first, oldest, messages: messages.clone() };
        assert_eq!(receiver.receive(frame(u64::MAX, 0)).messages, []);
        let delivery = receiver.receive(frame(7, u64::MAX));
        assert_eq!((delivery.messages, delivery.lost), (messages, u64::MAX - 1));
    }

    #[test]
    fn what_is_recalled_leaves_no_gap() {
        let (mut sender, mut receiver) = (Sender::new(at(0)), Receiver::default());
        let messages: Vec<_> = (0..4).map(message).collect();
        let heard = sender.send(messages[..1].to_vec(), at(0));
        receiver.receive(heard);
        sender.send(messages[1..].to_vec(), at(0));
        let recalled = sender.recall(1..u64::MAX, |message| *message != messages[2]);
        assert_eq!(recalled, [messages[1].clone(), messages[3].clone()]);
        let delivery = receiver.receive(sender.again(1, 10));
        assert_eq!(delivery.messages, [Message::Void, messages[2].clone(), Message::Void]);
        assert_eq!(delivery.ask_from, None);
    }

    #[test]
    fn what_may_be_heard_yet_is_not_recalled() {
        let mut sender = Sender::new(at(0));
        let messages: Vec<_> = (0..4).map(message).collect();
        sender.send(messages.clone(), at(0));
        assert_eq!(sender.recall(1..3, |_| true), messages[1..3]);
        assert_eq!(sender.recall(3..4, |_| true), messages[3..]);
    }

    #[test]
    fn a_sender_that_begins_anew_is_heard_from_its_first_message() {
        let mut receiver = Receiver::default();
        for start in [0, 100] {
            let mut sender = Sender::new(at(start));
            let message = message(start);
            let delivery = receiver.receive(sender.send(vec![message.clone()], at(start)));
            assert_eq!(delivery.messages, [message]);
        }
    }

    proptest! {
        /// Whatever is lost, doubled or put out of order on the way: all arrives once, in order.
        #[test]
        fn all_arrives_once_and_in_order(
            batches in prop::collection::vec((1_usize..5, 0_u8..4), 1..40),
        ) {
            let (mut sender, mut receiver) = (Sender::new(at(0)), Receiver::default());
            let (mut sent, mut got, mut held_back) = (Vec::new(), Vec::new(), Vec::new());
            for (size, fate) in batches {
                let messages: Vec<_> = (0..size).map(|_| message(1)).collect();
                sent.extend(messages.clone());
                let frame = sender.send(messages, at(1));
                match fate {
                    0 => {}
                    1 => held_back.push(frame),
                    2 => {
                        deliver(&mut receiver, frame.clone(), &mut got);
                        deliver(&mut receiver, frame, &mut got);
                    }
                    _ => {
                        deliver(&mut receiver, frame, &mut got);
                    }
                }
            }
            for frame in held_back {
                deliver(&mut receiver, frame, &mut got);
            }
            let mut ask = sender.progress(at(2)).and_then(|frame| {
                deliver(&mut receiver, frame, &mut got)
            });
            while let Some(from) = ask {
                ask = deliver(&mut receiver, sender.again(from, 3), &mut got);
                if ask.is_none() {
                    ask = sender.progress(at(2)).and_then(|frame| {
                        deliver(&mut receiver, frame, &mut got)
                    });
                }
            }
            prop_assert_eq!(got, sent);
        }
    }
}
