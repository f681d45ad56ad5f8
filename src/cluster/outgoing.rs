//! The messages for one node: queued, in publication, and kept for repetition. Pure: no I/O and no
//! clock.

use std::{collections::VecDeque, ops::Range, time::Duration};

use super::{
    Message, Relay,
    link::{BATCH_BYTES, Content, Frame, MAX_KEPT_BYTES, Receipt, Sender},
};
use crate::{call::Role, ids::CallId, time::Timestamp};

/// The most messages in the queue of one node.
const QUEUE_MESSAGES: usize = 10_000;
/// The most bytes in it, approximately.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// The most bytes of one call in the queue, approximately, while more than half of the room is
/// used: the largest calls must leave room for others.
const CALL_BYTES: usize = 128 * 1024;
/// The most messages of a frame.
const BATCH_MESSAGES: usize = 256;

/// The interval at which a link reports its progress while messages are unconfirmed.
pub const PROGRESS: Duration = Duration::from_millis(500);
/// The sender closes a link after this long without unsent or unconfirmed messages.
pub const CLOSE_AFTER: Duration = Duration::from_mins(2);

/// Messages without a receiver are kept for this long.
pub const FORGET_AFTER: Duration = Duration::from_secs(20);
/// A node assumes a loss this much earlier, because it notices late that its subscription is gone.
const FORGET_MARGIN: Duration = Duration::from_secs(5);

/// Whether other nodes may have dropped their messages for a node whose subscription was gone for
/// this long.
pub fn may_be_forgotten(away: Duration) -> bool {
    away + FORGET_MARGIN >= FORGET_AFTER
}

/// The messages for one node.
pub struct Outgoing {
    queue: VecDeque<Message>,
    queued_bytes: usize,
    /// The most bytes to queue and keep, by the node's byte budget.
    allowance_bytes: usize,
    link: Sender,
    /// The number of the first message without a receiver so far.
    unheard: u64,
    /// The number of the first message that the node has not confirmed.
    unconfirmed: u64,
    /// The numbers in publication: whether they have a receiver is not known yet.
    flying: Range<u64>,
    /// The number after the last published message, received or not.
    published: u64,
    /// The number of messages that were dropped since the queue last had room.
    dropped: u64,
    /// The node has requested the messages from this number on.
    asked: Option<u64>,
    /// This node requests the messages from this number on.
    asks: Option<u64>,
    /// The receipt that the node asked for.
    receipt: Option<Receipt>,
    /// The node was evicted, and no message was queued since.
    is_forgotten: bool,
}

impl Outgoing {
    pub fn new(now: Timestamp) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            allowance_bytes: usize::MAX,
            link: Sender::new(now),
            unheard: 0,
            unconfirmed: 0,
            flying: 0..0,
            published: 0,
            dropped: 0,
            asked: None,
            asks: None,
            receipt: None,
            is_forgotten: false,
        }
    }

    /// Queues a message, or drops and counts it. Returns false for the first dropped one.
    pub fn put(&mut self, message: Message) -> bool {
        self.is_forgotten = false;
        if self.has_room(message.about_bytes()) {
            self.push(message);
            return true;
        }
        self.dropped += 1;
        self.dropped > 1
    }

    fn push(&mut self, message: Message) {
        self.queued_bytes += message.about_bytes();
        self.queue.push_back(message);
    }

    /// The room of the queue. Kept messages give way to it.
    fn room_bytes(&self) -> usize {
        self.allowance_bytes.min(QUEUE_BYTES)
    }

    /// Whether there is room for a message of this size.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.queue.len() < QUEUE_MESSAGES && self.queued_bytes + bytes <= self.room_bytes()
    }

    /// Whether so much is queued that each call is limited to its share.
    pub fn is_crowded(&self) -> bool {
        2 * self.queued_bytes > self.room_bytes() || 2 * self.queue.len() > QUEUE_MESSAGES
    }

    /// Whether there is room for a message of this size in a call.
    pub fn has_room_for(&self, call: CallId, bytes: usize) -> bool {
        self.has_room(bytes) && (!self.is_crowded() || self.queued_of(call) + bytes <= CALL_BYTES)
    }

    fn queued_of(&self, call: CallId) -> usize {
        let is_its =
            |message: &&Message| matches!(message, Message::Relay(relay) if relay.call == call);
        self.queue.iter().filter(is_its).map(Message::about_bytes).sum()
    }

    /// Sets the most bytes to queue and keep. Received messages beyond it are dropped, and can no
    /// longer be repeated.
    pub fn allow(&mut self, bytes: usize) {
        self.allowance_bytes = bytes;
        let for_kept = bytes.saturating_sub(self.queued_bytes).min(MAX_KEPT_BYTES);
        self.link.trim(for_kept, self.unheard.min(self.flying_from()));
    }

    /// The bytes that are queued or kept.
    pub fn held_bytes(&self) -> usize {
        self.queued_bytes + self.link.kept_bytes()
    }

    /// The number of the first message in publication, or the number after all others if there is
    /// none.
    fn flying_from(&self) -> u64 {
        if self.flying.is_empty() { u64::MAX } else { self.flying.start }
    }

    pub fn send_again(&mut self, from: u64) {
        self.asked = Some(self.asked.map_or(from, |asked| asked.min(from)));
    }

    pub fn ask(&mut self, from: u64) {
        self.asks = Some(from);
    }

    /// Queues a receipt for the node.
    pub fn give(&mut self, receipt: Receipt) {
        self.receipt = Some(receipt);
    }

    /// Processes a receipt: the confirmed messages were received, and will not be requested again.
    pub fn confirmed(&mut self, receipt: Receipt) {
        // A receipt for another link of this node does not concern this one.
        if receipt.link == self.link.link() && receipt.next <= self.link.next() {
            self.heard(receipt.next);
            self.link.confirm(receipt.next);
            self.unconfirmed = self.unconfirmed.max(receipt.next);
        }
    }

    /// The node was evicted. Its unreceived messages stay for now, because it may only be cut off.
    pub fn forget(&mut self) {
        self.is_forgotten = true;
    }

    /// Whether nothing is left for an evicted node.
    pub fn is_over(&self) -> bool {
        self.is_forgotten && !self.has_more() && self.link.is_idle()
    }

    /// Whether all messages are sent and confirmed, so that the next message may begin another
    /// link. After an unconfirmed message was dropped it may not: the gap in the numbers reports
    /// the loss to the node.
    pub fn is_done(&self) -> bool {
        !self.has_more() && self.unconfirmed == self.link.next()
    }

    /// Whether something is to be published.
    pub fn has_more(&self) -> bool {
        !self.queue.is_empty()
            || self.asked.is_some()
            || self.asks.is_some()
            || self.receipt.is_some()
    }

    /// The next contents to publish: messages, or the progress if there are only unconfirmed ones,
    /// also together with a receipt, which must not delay it. New messages wait until earlier ones
    /// were received: otherwise they would push those out of the kept ones.
    pub fn next(&mut self, now: Timestamp) -> Vec<Content> {
        self.link.forget(now, self.unheard);
        let mut contents: Vec<_> = self.asks.take().map(Content::Again).into_iter().collect();
        contents.extend(self.receipt.take().map(Content::Receipt));
        let asked = self.asked.take().map(|from| self.link.again(from, BATCH_MESSAGES));
        contents.extend(asked.map(Content::Frame));
        let unheard = self.link.again(self.unheard, BATCH_MESSAGES);
        if !unheard.messages.is_empty() {
            contents.push(self.flies(unheard));
        } else if !self.queue.is_empty() {
            let batch = self.batch();
            let frame = self.link.send(batch, now);
            contents.push(self.flies(frame));
        } else if contents.iter().all(|content| matches!(content, Content::Receipt(_))) {
            contents.extend(self.link.progress(now).map(Content::Frame));
        }
        contents
    }

    fn flies(&mut self, frame: Frame) -> Content {
        self.flying = frame.first..frame.first + frame.messages.len() as u64;
        Content::Frame(frame)
    }

    /// The result of publishing [`Outgoing::next`] is known.
    pub fn landed(&mut self) {
        self.flying = 0..0;
    }

    /// The number of messages of this content that were published before. Must be called once for
    /// each content.
    pub fn repeated(&mut self, content: &Content) -> u64 {
        let Content::Frame(frame) = content else { return 0 };
        let end = end_of(content);
        let repeated = self.published.min(end).saturating_sub(frame.first);
        self.published = self.published.max(end);
        repeated
    }

    /// The number of messages that were never published.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether a message is unpublished or unreceived.
    pub fn is_busy(&self) -> bool {
        let is_unheard = !self.link.again(self.unheard, 1).messages.is_empty();
        self.has_more() || !self.flying.is_empty() || is_unheard
    }

    /// Takes the messages of the next frame. A placeholder reports dropped messages to the
    /// receiver.
    fn batch(&mut self) -> Vec<Message> {
        let mut bytes = 0;
        let fits = |message: &&Message| {
            let has_room = bytes < BATCH_BYTES;
            bytes += message.about_bytes();
            has_room
        };
        let length = self.queue.iter().take(BATCH_MESSAGES).take_while(fits).count();
        let batch: Vec<_> = self.queue.drain(..length).collect();
        self.queued_bytes -= batch.iter().map(Message::about_bytes).sum::<usize>();
        let count = std::mem::take(&mut self.dropped);
        if count > 0 {
            self.push(Message::Dropped { count });
        }
        batch
    }

    /// The messages before this number were received.
    pub fn heard(&mut self, up_to: u64) {
        if up_to > self.unheard {
            self.link.settle(self.unheard..up_to);
            self.unheard = up_to;
        }
    }

    /// Takes back the messages for this party of a call that are known to be unreceived, in order.
    pub fn recall(&mut self, call: CallId, to: Role) -> Vec<Relay> {
        let is_its = |message: &Message| matches!(message, Message::Relay(relay) if relay.call == call && relay.from.other() == to);
        let after = self.unheard.max(self.flying.end);
        let mut recalled = self.link.recall(self.unheard..self.flying.start, is_its);
        recalled.extend(self.link.recall(after..u64::MAX, is_its));
        for message in self.queue.iter_mut().filter(|message| is_its(message)) {
            self.queued_bytes -= message.about_bytes() - Message::Void.about_bytes();
            recalled.push(std::mem::replace(message, Message::Void));
        }
        let relay = |message| match message {
            Message::Relay(relay) => Some(relay),
            _ => None,
        };
        recalled.into_iter().filter_map(relay).collect()
    }
}

/// Redis is trusted to deliver if it has replied within this time: a node without a reply for
/// somewhat longer drops its connection, and a frozen Redis loses what it sends there.
const STOOD_STILL: Duration = Duration::from_secs(1);
/// The most repetitions of the same messages because a reply is distrusted.
const MAX_DOUBTED: u32 = 5;

/// Decides which replies to publishes prove that a node has received the messages.
///
/// A Redis that was frozen counts connections that their nodes have dropped. Therefore a reply
/// counts only if Redis had replied to something shortly before the publish, and to the publish in
/// time. Otherwise the messages are published again; their receiver drops duplicates. A healthy
/// Redis gets no additional message.
#[derive(Debug, Default)]
pub struct Hearing {
    doubted: u32,
}

impl Hearing {
    /// Whether a reply is a proof. The publish was `asked` when Redis' last reply had come at
    /// `before`.
    pub fn proves(&mut self, before: Timestamp, asked: Timestamp, answered: Timestamp) -> bool {
        let is_prompt = asked - before < STOOD_STILL && answered - asked < STOOD_STILL;
        // A Redis that is always so slow must not block the messages forever.
        self.doubted = if is_prompt || self.doubted >= MAX_DOUBTED { 0 } else { self.doubted + 1 };
        self.doubted == 0
    }
}

/// The number after the last message of a content.
pub fn end_of(content: &Content) -> u64 {
    match content {
        Content::Frame(Frame { first, messages, .. }) => first + messages.len() as u64,
        Content::Again(_) | Content::Receipt(_) | Content::Canary => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Signal, cluster::link::KEEP};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn rings() -> Message {
        Message::Rings { call: CallId::generate(NOW), have: 0 }
    }

    /// Publishes the next contents, successfully.
    fn publish(outgoing: &mut Outgoing) -> Vec<Message> {
        let mut published = Vec::new();
        for content in outgoing.next(NOW) {
            outgoing.heard(end_of(&content));
            outgoing.landed();
            if let Content::Frame(frame) = content {
                published.extend(frame.messages);
            }
        }
        published
    }

    #[test]
    fn a_full_queue_drops_what_comes_and_says_so_to_both_ends() {
        let mut outgoing = Outgoing::new(NOW);
        for _ in 0..QUEUE_MESSAGES {
            assert!(outgoing.put(rings()));
        }
        let told = (0..3).filter(|_| !outgoing.put(rings())).count();
        assert_eq!(told, 1, "the log is told once");
        let mut published = publish(&mut outgoing);
        assert!(outgoing.put(Message::Void), "there is room again");
        while outgoing.has_more() {
            published.extend(publish(&mut outgoing));
        }
        let where_they_would_stand = [Message::Dropped { count: 3 }, Message::Void];
        assert_eq!(published[QUEUE_MESSAGES..], where_they_would_stand);
    }

    #[test]
    fn what_nobody_heard_is_sent_again_before_anything_new() {
        let mut outgoing = Outgoing::new(NOW);
        let messages: Vec<_> = std::iter::repeat_with(rings).take(2 * BATCH_MESSAGES).collect();
        for message in &messages {
            outgoing.put(message.clone());
        }
        for _ in 0..3 {
            let unheard = outgoing.next(NOW);
            assert!(matches!(&unheard[..], [Content::Frame(frame)] if frame.first == 0));
        }
        assert_eq!(publish(&mut outgoing), messages[..BATCH_MESSAGES]);
        assert_eq!(publish(&mut outgoing), messages[BATCH_MESSAGES..]);
    }

    /// The node's reply to a frame that asks for a receipt.
    fn receipt_for(contents: &[Content]) -> Receipt {
        match contents {
            [Content::Frame(Frame { link, first, messages, wants_receipt: true, .. })] => {
                assert_eq!(*messages, []);
                Receipt { link: *link, next: *first }
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_whose_messages_are_confirmed_keeps_nothing_and_is_silent() {
        let mut outgoing = Outgoing::new(NOW);
        assert!(outgoing.is_done());
        for number in 1..=2 {
            outgoing.put(rings());
            assert_eq!(publish(&mut outgoing).len(), 1);
            assert!(!outgoing.is_done() && outgoing.held_bytes() > 0);
            let receipt = receipt_for(&outgoing.next(NOW));
            assert_eq!(receipt.next, number);
            outgoing.confirmed(receipt);
            assert_eq!(outgoing.next(NOW), []);
            assert!(outgoing.is_done() && !outgoing.is_busy() && outgoing.held_bytes() == 0);
        }
    }

    #[test]
    fn the_progress_is_reported_until_a_receipt_arrives_or_the_messages_are_too_old() {
        let mut outgoing = Outgoing::new(NOW);
        outgoing.put(rings());
        publish(&mut outgoing);
        let receipt = receipt_for(&outgoing.next(NOW));
        for other in [
            Receipt { link: receipt.link + 1, ..receipt },
            Receipt { next: 2, ..receipt },
            Receipt { next: 0, ..receipt },
        ] {
            outgoing.confirmed(other);
            assert_eq!(receipt_for(&outgoing.next(NOW + PROGRESS)), receipt);
        }
        assert_eq!(outgoing.next(NOW + KEEP), []);
        assert!(!outgoing.is_done(), "the node learns of the loss by the next number");
    }

    #[test]
    fn receipts_for_the_other_direction_do_not_put_the_progress_off() {
        let mut outgoing = Outgoing::new(NOW);
        let given = Receipt { link: 7, next: 3 };
        outgoing.give(given);
        assert_eq!(outgoing.next(NOW), [Content::Receipt(given)]);
        outgoing.put(rings());
        publish(&mut outgoing);
        outgoing.give(given);
        let contents = outgoing.next(NOW);
        assert_eq!(contents[0], Content::Receipt(given));
        assert_eq!(receipt_for(&contents[1..]).next, 1);
    }

    #[test]
    fn a_receipt_says_that_the_messages_before_it_were_heard() {
        let call = CallId::generate(NOW);
        let mut outgoing = Outgoing::new(NOW);
        let mut deliveries = [(); 3].map(|()| {
            let Message::Relay(relay) = relay(call, 1) else { panic!("it is one") };
            let (payload, delivered) = relay.payload.tracked();
            outgoing.put(Message::Relay(Relay { payload, ..relay }));
            delivered
        });
        // Redis has not replied.
        let contents = outgoing.next(NOW);
        let [Content::Frame(Frame { link, .. })] = &contents[..] else { panic!("{contents:?}") };
        outgoing.confirmed(Receipt { link: *link, next: 2 });
        drop(contents);
        let settled = deliveries.each_mut().map(|delivered| delivered.try_recv().is_ok());
        assert_eq!(settled, [true, true, false]);
        // Only the last message is repeated, and can be recalled.
        let again = outgoing.next(NOW);
        assert!(matches!(&again[..], [Content::Frame(frame)] if frame.first == 2));
        outgoing.heard(2);
        outgoing.landed();
        assert_eq!(outgoing.recall(call, Role::Callee).len(), 1);
    }

    #[test]
    fn what_nobody_heard_is_kept_for_longer() {
        let mut outgoing = Outgoing::new(NOW);
        outgoing.put(rings());
        for seconds in [0, 30, 299] {
            let unheard = outgoing.next(NOW + Duration::from_secs(seconds));
            assert_eq!(end_of(&unheard[0]), 1);
        }
        assert_eq!(outgoing.next(NOW + Duration::from_mins(5)), []);
        outgoing.put(rings());
        let next = outgoing.next(NOW + Duration::from_mins(5));
        assert!(matches!(&next[..], [Content::Frame(Frame { first: 1, oldest: 1, .. })]));
    }

    #[test]
    fn what_is_being_published_is_not_taken_back() {
        let call = CallId::generate(NOW);
        let relay = |text: &str| Relay {
            call,
            version: 2,
            from: Role::Caller,
            signal: Signal::Candidate,
            payload: serde_json::from_str(&format!("{text:?}")).unwrap(),
            given_back: false,
            to_ringing: false,
            received_us: None,
            traceparent: None,
        };
        let mut outgoing = Outgoing::new(NOW);
        outgoing.put(Message::Relay(relay("flies")));
        outgoing.next(NOW);
        outgoing.put(Message::Relay(relay("waits")));
        let to = Role::Callee;
        assert_eq!(outgoing.recall(call, Role::Caller), [], "they are for the other party");
        assert_eq!(outgoing.recall(call, to), [relay("waits")]);
        outgoing.landed();
        assert_eq!(outgoing.recall(call, to), [relay("flies")], "nobody has heard it");
        outgoing.put(Message::Relay(relay("is heard")));
        while outgoing.has_more() {
            publish(&mut outgoing);
        }
        assert_eq!(outgoing.recall(call, to), []);
    }

    #[test]
    fn what_a_node_that_was_taken_for_dead_did_not_hear_waits_for_it() {
        let mut outgoing = Outgoing::new(NOW);
        outgoing.put(rings());
        publish(&mut outgoing);
        outgoing.forget();
        assert!(!outgoing.is_over(), "it may ask for it again");
        outgoing.send_again(0);
        assert_eq!(publish(&mut outgoing).len(), 1);
        outgoing.next(NOW + KEEP);
        assert!(outgoing.is_over());
        outgoing.put(rings());
        assert!(!outgoing.is_over(), "it is back");
    }

    fn relay(call: CallId, bytes: usize) -> Message {
        Message::Relay(Relay {
            call,
            version: 2,
            from: Role::Caller,
            signal: Signal::Offer,
            payload: serde_json::from_str(&format!("{:?}", "x".repeat(bytes))).unwrap(),
            given_back: false,
            to_ringing: false,
            received_us: None,
            traceparent: None,
        })
    }

    #[test]
    fn what_is_queued_and_what_is_kept_are_bounded_in_bytes() {
        const LARGE: usize = 64 * 1024;
        let call = CallId::generate(NOW);
        let mut outgoing = Outgoing::new(NOW);
        while outgoing.has_room(LARGE + 300) {
            assert!(outgoing.put(relay(call, LARGE)));
        }
        assert!(outgoing.held_bytes() > QUEUE_BYTES - 2 * LARGE);
        assert!(!outgoing.put(relay(call, LARGE)) && outgoing.held_bytes() <= QUEUE_BYTES);
        let (mut published, mut largest) = (0, 0);
        for _ in 0..1_000 {
            let batch = publish(&mut outgoing);
            largest = largest.max(batch.iter().map(Message::about_bytes).sum::<usize>());
            published += batch.len();
            outgoing.put(relay(call, LARGE));
            outgoing.allow(usize::MAX);
            assert!(outgoing.held_bytes() <= QUEUE_BYTES + MAX_KEPT_BYTES);
        }
        assert!(published > 1_000 && largest < BATCH_BYTES + 2 * LARGE, "{published}, {largest}");
        // Repetitions are split into frames, too.
        outgoing.send_again(0);
        let again = outgoing.next(NOW);
        let bytes = again.iter().map(|content| match content {
            Content::Frame(frame) => frame.messages.iter().map(Message::about_bytes).sum(),
            _ => 0,
        });
        assert!(bytes.max() < Some(BATCH_BYTES + 2 * LARGE));
        outgoing.allow(1024 * 1024);
        assert!(outgoing.held_bytes() <= 2 * 1024 * 1024, "{}", outgoing.held_bytes());
    }

    #[test]
    fn a_call_that_sends_little_has_room_where_others_send_much() {
        let [large, small] = [(); 2].map(|()| CallId::generate(NOW));
        let mut outgoing = Outgoing::new(NOW);
        while outgoing.has_room_for(large, 60_000) {
            outgoing.put(relay(large, 60_000));
        }
        assert!(outgoing.is_crowded() && outgoing.has_room(60_000));
        assert!(outgoing.has_room_for(small, 60_000));
        outgoing.recall(large, Role::Callee);
        assert!(!outgoing.is_crowded() && outgoing.has_room_for(large, 60_000));
    }

    #[test]
    fn only_a_redis_that_has_answered_all_along_proves_that_somebody_heard() {
        let mut hearing = Hearing::default();
        let at = |ms| NOW + Duration::from_millis(ms);
        assert!(hearing.proves(at(0), at(900), at(1_800)));
        assert!(!hearing.proves(at(0), at(1_000), at(1_001)), "it may have stood still before");
        assert!(!hearing.proves(at(0), at(1), at(1_001)), "it has stood still");
        assert!(hearing.proves(at(1_000), at(1_001), at(1_002)));
        let slow = (0..20).filter(|_| hearing.proves(at(0), at(1), at(2_000))).count();
        assert_eq!(slow, 3, "one that is always slow is believed after a while");
    }

    #[test]
    fn the_sender_of_a_message_knows_when_it_has_been_heard() {
        let call = CallId::generate(NOW);
        let mut outgoing = Outgoing::new(NOW);
        let tracked = |outgoing: &mut Outgoing| {
            let Message::Relay(relay) = relay(call, 1) else { panic!("it is one") };
            let (payload, delivered) = relay.payload.tracked();
            outgoing.put(Message::Relay(Relay { payload, ..relay }));
            delivered
        };
        let (mut first, mut second) = (tracked(&mut outgoing), tracked(&mut outgoing));
        let contents = outgoing.next(NOW);
        assert!(first.try_recv().is_err(), "it is on its way");
        outgoing.heard(end_of(&contents[0]) - 1);
        assert!(first.try_recv().is_ok() && second.try_recv().is_err());
        outgoing.landed();
        let recalled = outgoing.recall(call, Role::Callee);
        assert_eq!(recalled.len(), 1);
        publish(&mut outgoing);
        assert_eq!(second.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty));
        drop((contents, recalled));
        assert_eq!(second.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn what_was_asked_for_several_times_is_sent_again_once_from_the_lowest_number_on() {
        let mut outgoing = Outgoing::new(NOW);
        let messages = [rings(), rings(), rings()];
        for message in &messages {
            outgoing.put(message.clone());
        }
        for content in outgoing.next(NOW) {
            assert_eq!(outgoing.repeated(&content), 0, "it is new");
            outgoing.heard(end_of(&content));
        }
        for number in [2, 1, 2] {
            outgoing.send_again(number);
        }
        let again = outgoing.next(NOW);
        assert_eq!(again.iter().map(|content| outgoing.repeated(content)).sum::<u64>(), 2);
        outgoing.send_again(1);
        assert_eq!(publish(&mut outgoing), messages[1..]);
        assert!(!outgoing.has_more());
    }
}
