//! One direction between two nodes: messages are numbered, gaps are detected, and missing messages
//! are requested again. Pure: no I/O and no clock.
//!
//! Publishing is at most once, and a reply that it had a receiver is no proof: a frozen server, or
//! a connection that is being replaced, loses messages. Therefore the sender keeps the last ones.
//! When it has sent nothing for a while and some are unconfirmed, it repeatedly reports its
//! progress and asks for a receipt. A receipt confirms messages, and the sender drops them and is
//! silent. A receiver sends no receipt unasked, because builds that do not know receipts must not
//! get one.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Message, outgoing::CLOSE_AFTER};
use crate::{metrics::Publish, time::Timestamp};

/// An unconfirmed message is kept for this long, to be sent again.
pub const KEEP: Duration = Duration::from_secs(30);
/// The same for a message whose publish had no receiver according to Redis' replies.
const KEEP_UNHEARD: Duration = Duration::from_mins(5);
/// The receiver drops a link on which nothing arrived for this long while the node received its
/// channel. By then the sender has closed the link, or dropped everything that the receiver had:
/// nothing can arrive twice.
pub const DROP_AFTER: Duration = Duration::from_mins(10);
const _: () = assert!(
    DROP_AFTER.as_secs() > KEEP_UNHEARD.as_secs() + KEEP.as_secs()
        && DROP_AFTER.as_secs() > CLOSE_AFTER.as_secs() + KEEP.as_secs()
);
/// The most messages that are kept, and the most that wait for a missing one.
pub const MAX_KEPT: usize = 8_192;
/// The most bytes of these messages, approximately.
pub const MAX_KEPT_BYTES: usize = 16 * 1024 * 1024;
/// The most bytes of a frame, approximately: Redis disconnects a subscriber whose output buffer
/// grows much larger.
pub const BATCH_BYTES: usize = 1024 * 1024;

/// The messages of one publish. Without messages it reports the sender's progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frame<M = Message> {
    /// The link that it belongs to: a restarted sender begins another link and counts from 0.
    pub link: u64,
    /// The number of the first message, or of the next one if there is none.
    pub first: u64,
    /// The oldest number that the sender can still repeat. Older messages are lost for good.
    pub oldest: u64,
    pub messages: Vec<M>,
    /// Asks the receiver for a [`Receipt`], which it sends if it lacks nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wants_receipt: bool,
}

/// Confirms all messages of a link before number `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub link: u64,
    pub next: u64,
}

/// The content of a publish from one node to another.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content<M = Message> {
    Frame(Frame<M>),
    /// Requests the messages from this number on.
    Again(u64),
    /// The reply to a frame that asked for a receipt.
    Receipt(Receipt),
    /// Sent by a node to itself, to check its channel.
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
    /// `None` before the first frame.
    link: Option<u64>,
    expected: u64,
    /// The time without a frame while the node received its channel.
    quiet: Duration,
    /// Messages that arrived before a missing one.
    early: BTreeMap<u64, Message>,
    early_bytes: usize,
}

/// The result of receiving a frame.
#[derive(Debug, Default, PartialEq)]
pub struct Delivery {
    /// The messages that are in order now.
    pub messages: Vec<Message>,
    /// Request the messages from this number on.
    pub ask_from: Option<u64>,
    /// The number of messages that are lost for good.
    pub lost: u64,
    /// The link is unknown and does not start at its beginning: messages may be lost, or were
    /// processed before the link was dropped.
    pub starts_midway: bool,
    /// The receipt that the frame asked for.
    pub receipt: Option<Receipt>,
}

impl Content {
    /// The label of the content in metrics.
    pub fn kind(&self) -> Publish {
        match self {
            Self::Frame(frame) if frame.messages.is_empty() => Publish::Progress,
            Self::Frame(_) => Publish::Messages,
            Self::Again(_) => Publish::Ask,
            Self::Receipt(_) => Publish::Receipt,
            Self::Canary => Publish::Canary,
        }
    }
}

impl Sender {
    /// A link that begins at this time, which identifies it.
    pub fn new(now: Timestamp) -> Self {
        Self { link: now.as_millis(), kept: VecDeque::new(), kept_bytes: 0, oldest: 0 }
    }

    /// Numbers messages and keeps them.
    pub fn send(&mut self, messages: Vec<Message>, now: Timestamp) -> Frame {
        let first = self.next();
        self.kept_bytes += messages.iter().map(Message::about_bytes).sum::<usize>();
        self.kept.extend(messages.iter().map(|message| (now, message.clone())));
        self.forget(now, u64::MAX);
        self.frame(first, messages)
    }

    fn frame(&self, first: u64, messages: Vec<Message>) -> Frame {
        Frame { link: self.link, first, oldest: self.oldest, messages, wants_receipt: false }
    }

    /// Takes out the messages with these numbers for which `takes` returns true.
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

    /// The messages with these numbers were received: settles their receipts.
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

    /// Keeps at most about `bytes`, by dropping messages before `unheard`, which were received.
    pub fn trim(&mut self, bytes: usize, unheard: u64) {
        while self.kept_bytes > bytes && self.oldest < unheard && self.drop_oldest() {}
    }

    /// The receiver has the messages before this number.
    pub fn confirm(&mut self, next: u64) {
        while self.oldest < next && self.drop_oldest() {}
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((_, message)) = self.kept.pop_front() else { return false };
        self.kept_bytes -= message.about_bytes();
        self.oldest += 1;
        true
    }

    /// The progress of this end, asking for a receipt; `None` if the receiver cannot lack anything.
    pub fn progress(&mut self, now: Timestamp) -> Option<Frame> {
        self.forget(now, u64::MAX);
        let progress = Frame { wants_receipt: true, ..self.frame(self.next(), Vec::new()) };
        (!self.is_idle()).then_some(progress)
    }

    /// Whether there is nothing to repeat.
    pub fn is_idle(&self) -> bool {
        self.kept.is_empty()
    }

    /// The kept messages from this number on, at most `limit`, as many as fit into a frame.
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
        self.frame(first, messages.map(|(_, message)| message.clone()).collect())
    }

    /// The id of the link.
    pub fn link(&self) -> u64 {
        self.link
    }

    /// The number of the next message.
    pub fn next(&self) -> u64 {
        self.oldest + self.kept.len() as u64
    }

    /// Drops messages that are too old to be repeated. Those from number `unheard` on are kept for
    /// longer.
    pub fn forget(&mut self, now: Timestamp, unheard: u64) {
        let is_old = |sent: Timestamp, number: u64| {
            sent + if number < unheard { KEEP } else { KEEP_UNHEARD } <= now
        };
        while self.kept.front().is_some_and(|(sent, _)| is_old(*sent, self.oldest))
            || self.kept.len() > MAX_KEPT
        {
            self.drop_oldest();
        }
    }
}

impl Receiver {
    /// The bytes that wait for a missing message.
    pub fn early_bytes(&self) -> usize {
        self.early_bytes
    }

    /// Drops the messages that wait for a missing one: they are requested again together with it.
    pub fn forget_early(&mut self) {
        self.early.clear();
        self.early_bytes = 0;
    }

    /// Counts time in which the node received its channel. Returns whether nothing has arrived on
    /// this link for [`DROP_AFTER`]: then the receiver may be dropped.
    pub fn is_over_after(&mut self, span: Duration) -> bool {
        self.quiet += span;
        self.quiet >= DROP_AFTER
    }

    pub fn receive(&mut self, frame: Frame) -> Delivery {
        let mut delivery = Delivery::default();
        self.quiet = Duration::ZERO;
        if self.link != Some(frame.link) {
            // After a known link, everything on the next one is new.
            delivery.starts_midway = self.link.is_none() && frame.oldest > 0;
            let expected = if delivery.starts_midway { frame.oldest } else { 0 };
            *self = Self { link: Some(frame.link), expected, ..Self::default() };
        }
        let sent_up_to = frame.first.saturating_add(frame.messages.len() as u64);
        for (number, message) in (frame.first..sent_up_to).zip(frame.messages) {
            // A message without room is requested again later. The next one in order always has
            // room.
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
            // In one step, because a distant number must not be counted up to.
            let next =
                self.early.keys().next().map_or(frame.oldest, |next| frame.oldest.min(*next));
            delivery.lost = delivery.lost.saturating_add(next - self.expected);
            self.expected = next;
        }
        if self.expected < sent_up_to || !self.early.is_empty() {
            delivery.ask_from = Some(self.expected);
        } else if frame.wants_receipt {
            delivery.receipt = Some(Receipt { link: frame.link, next: self.expected });
        }
        delivery
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        cluster::outgoing::{Outgoing, end_of},
        ids::CallId,
    };

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
        receiver.receive(sender.send(vec![message(1)], at(0)));
        sender.send(vec![message(2)], at(0));
        let late = message(3);
        let delivery = receiver.receive(sender.send(vec![late.clone()], at(60)));
        assert_eq!(delivery, Delivery { messages: vec![late], lost: 1, ..Delivery::default() });
    }

    #[test]
    fn a_receipt_is_given_on_request_when_nothing_is_missing() {
        let (mut sender, mut receiver) = (Sender::new(at(0)), Receiver::default());
        let first = sender.send(vec![message(1)], at(0));
        let progress = sender.progress(at(0)).unwrap();
        let early = receiver.receive(progress.clone());
        assert_eq!((early.receipt, early.ask_from), (None, Some(0)));
        assert_eq!(receiver.receive(first).receipt, None, "it was not asked for");
        let older_build = Frame { wants_receipt: false, ..progress.clone() };
        assert_eq!(receiver.receive(older_build).receipt, None);
        let receipt = receiver.receive(progress).receipt.unwrap();
        assert_eq!(receipt, Receipt { link: sender.link(), next: 1 });
        sender.confirm(receipt.next);
        assert_eq!((sender.progress(at(0)), sender.kept_bytes()), (None, 0));
        let next = receiver.receive(sender.send(vec![message(2)], at(1)));
        assert_eq!((next.messages.len(), next.lost), (1, 0));
    }

    #[test]
    fn a_receiver_from_whose_sender_nothing_comes_is_over() {
        let (mut sender, mut receiver) = (Sender::new(at(0)), Receiver::default());
        let half = DROP_AFTER / 2;
        receiver.receive(sender.send(vec![message(1)], at(0)));
        assert!(!receiver.is_over_after(half));
        receiver.receive(sender.send(vec![message(2)], at(1)));
        assert!(!receiver.is_over_after(half));
        assert!(receiver.is_over_after(half));
    }

    #[test]
    fn an_unknown_link_that_starts_midway_is_reported_once_and_not_as_lost_messages() {
        let mut sender = Sender::new(at(0));
        sender.send(vec![message(1); 5_000], at(0));
        let late = [message(2), message(3)];
        let mut receiver = Receiver::default();
        let delivery = receiver.receive(sender.send(vec![late[0].clone()], at(60)));
        let messages = vec![late[0].clone()];
        let expected = Delivery { messages, starts_midway: true, ..Delivery::default() };
        assert_eq!(delivery, expected);
        let delivery = receiver.receive(sender.send(vec![late[1].clone()], at(61)));
        assert_eq!(delivery, Delivery { messages: vec![late[1].clone()], ..Delivery::default() });
        // After a known link, everything on the next one is new.
        let mut sender = Sender::new(at(100));
        sender.send(vec![message(4)], at(100));
        let delivery = receiver.receive(sender.send(vec![message(5)], at(160)));
        assert_eq!((delivery.lost, delivery.starts_midway), (1, false));
    }

    #[test]
    fn numbers_at_the_end_of_all_numbers_are_taken_at_once() {
        let mut receiver = Receiver::default();
        let messages = vec![message(1)];
        let frame = |first, oldest| Frame {
            link: 1,
            first,
            oldest,
            messages: messages.clone(),
            wants_receipt: false,
        };
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
        /// Whatever is lost, duplicated or reordered: all messages arrive once and in order.
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
            prop_assert_eq!(&got, &sent);
            let receipt = sender.progress(at(2)).and_then(|frame| receiver.receive(frame).receipt);
            let next = sent.len() as u64;
            prop_assert_eq!(receipt, Some(Receipt { link: sender.link(), next }));
            sender.confirm(next);
            prop_assert!(sender.is_idle());
        }

        /// Whatever happens to frames, Redis' replies, requests and receipts, and whenever either
        /// end drops the link: nothing arrives twice or out of order, and no loss is unnoticed.
        #[test]
        fn nothing_is_doubled_and_no_loss_is_hidden(
            steps in prop::collection::vec((0_u8..7, 0_usize..8), 1..120),
        ) {
            let mut link = Link::new();
            for (step, choice) in steps {
                link.step(step, choice);
            }
            link.put();
            for _ in 0..2_000 {
                link.step(1, 0);
                while !link.replies.is_empty() {
                    link.step(3, 0);
                }
            }
            prop_assert!(link.outgoing.is_done() && link.outgoing.next(link.now).is_empty());
            prop_assert!(link.got.is_sorted_by(|one, next| one < next), "{:?}", link.got);
            prop_assert_eq!(link.got.last(), Some(&link.sent));
            let missing = link.sent - link.got.len() as u64;
            prop_assert!(missing == link.lost || link.was_midway, "{missing}, {}", link.lost);
        }
    }

    /// Both ends of a link, and the frames in flight.
    struct Link {
        now: Timestamp,
        outgoing: Outgoing,
        /// The time for which the sender has been idle.
        done: Duration,
        receiver: Option<Receiver>,
        late_frames: Vec<Content>,
        replies: Vec<Content>,
        late_replies: Vec<Content>,
        /// Messages are represented by their numbers, from 1 on.
        sent: u64,
        got: Vec<u64>,
        lost: u64,
        was_midway: bool,
    }

    impl Link {
        fn new() -> Self {
            Self {
                now: at(0),
                outgoing: Outgoing::new(at(0)),
                done: Duration::ZERO,
                receiver: None,
                late_frames: Vec::new(),
                replies: Vec::new(),
                late_replies: Vec::new(),
                sent: 0,
                got: Vec::new(),
                lost: 0,
                was_midway: false,
            }
        }

        fn put(&mut self) {
            self.sent += 1;
            self.outgoing.put(Message::Dropped { count: self.sent });
            self.done = Duration::ZERO;
        }

        fn step(&mut self, step: u8, choice: usize) {
            match step {
                0 => (0..=choice).for_each(|_| self.put()),
                1 => self.publish(choice),
                2 if !self.late_frames.is_empty() => {
                    let late = self.late_frames.remove(choice % self.late_frames.len());
                    self.arrives(late);
                }
                3 if !self.replies.is_empty() => {
                    let reply = self.replies.remove(0);
                    match choice {
                        0..5 => self.is_replied(&reply),
                        5 => self.late_replies.push(reply),
                        _ => {}
                    }
                }
                4 if !self.late_replies.is_empty() => {
                    let late = self.late_replies.remove(choice % self.late_replies.len());
                    self.is_replied(&late);
                }
                5 => self.passes(Duration::from_millis(500), true),
                6 => self.passes(
                    Duration::from_secs([3, 20, 31, 100, 121, 301, 601, 601][choice]),
                    choice != 6,
                ),
                _ => {}
            }
        }

        fn publish(&mut self, fate: usize) {
            for content in self.outgoing.next(self.now) {
                let heard = end_of(&content);
                let copy = || match &content {
                    Content::Frame(frame) => Content::Frame(frame.clone()),
                    other => panic!("{other:?}"),
                };
                match fate {
                    0..3 => self.arrives(copy()),
                    3 => {
                        self.arrives(copy());
                        self.arrives(copy());
                    }
                    4 => self.late_frames.push(copy()),
                    // Lost, although Redis reported a receiver.
                    5 => {}
                    // Received although Redis did not reply, or reported no receiver.
                    6 => return self.arrives(copy()),
                    _ => continue,
                }
                self.outgoing.heard(heard);
            }
            self.outgoing.landed();
        }

        fn arrives(&mut self, content: Content) {
            let Content::Frame(frame) = content else { return };
            let delivery = self.receiver.get_or_insert_default().receive(frame);
            let numbers = delivery.messages.iter().map(|message| match message {
                Message::Dropped { count } => *count,
                other => panic!("{other:?}"),
            });
            self.got.extend(numbers);
            self.lost += delivery.lost;
            self.was_midway |= delivery.starts_midway;
            self.replies.extend(delivery.ask_from.map(Content::Again));
            self.replies.extend(delivery.receipt.map(Content::Receipt));
        }

        fn is_replied(&mut self, reply: &Content) {
            match reply {
                Content::Again(number) => self.outgoing.send_again(*number),
                Content::Receipt(receipt) => self.outgoing.confirmed(*receipt),
                other => panic!("{other:?}"),
            }
        }

        /// No frame is in flight for longer than a second.
        fn passes(&mut self, span: Duration, is_channel_heard: bool) {
            self.now = self.now + span;
            if span > Duration::from_secs(1) {
                self.late_frames.clear();
                self.replies.clear();
                self.late_replies.clear();
            }
            if is_channel_heard {
                self.receiver.take_if(|receiver| receiver.is_over_after(span));
            }
            if self.outgoing.is_done() {
                self.done += span;
                if self.done >= CLOSE_AFTER {
                    self.outgoing = Outgoing::new(self.now);
                    self.done = Duration::ZERO;
                }
            }
        }
    }
}
