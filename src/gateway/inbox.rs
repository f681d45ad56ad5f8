//! The inbox of a socket: received events that are not processed yet, in order. Bounded; holds no
//! task and does no I/O.

use std::collections::VecDeque;

use crate::{
    limits::buffers::{Buffers, Charge},
    metrics::Buffer,
};

/// The most events in the inbox of a socket.
pub const MAX_EVENTS: usize = 1_024;
/// The most bytes in it.
pub const MAX_BYTES: usize = 2 * 1024 * 1024;

/// A bounded queue with at most one draining task, which lives only while the queue is non-empty:
/// an idle socket has no task. The queue starts paused, and is drained after `release` or once it
/// contains the end.
#[derive(Debug)]
pub struct Inbox<T> {
    waiting: VecDeque<(T, usize)>,
    held: Charge,
    drain: Drain,
    closed: bool,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    Held,
    Idle,
    Running,
}

/// The action that a push requires of its caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Start a task that drains the queue.
    Drain,
    /// None: a task drains already, the queue is paused, or it accepts nothing any more.
    Nothing,
    /// Close the socket, because it exceeds its bound. The queue is dropped and accepts nothing any
    /// more.
    Overflow,
}

impl<T> Inbox<T> {
    pub fn new(buffers: &Buffers) -> Self {
        Self {
            waiting: VecDeque::new(),
            held: buffers.holder(Buffer::Inboxes),
            drain: Drain::Held,
            closed: false,
            ended: false,
        }
    }

    pub fn held_bytes(&self) -> usize {
        self.held.bytes()
    }

    /// Appends an event of `size_bytes`.
    pub fn push(&mut self, event: T, size_bytes: usize) -> Pushed {
        if self.closed {
            return Pushed::Nothing;
        }
        if self.waiting.len() >= MAX_EVENTS || self.held.bytes() + size_bytes > MAX_BYTES {
            self.close();
            return Pushed::Overflow;
        }
        self.waiting.push_back((event, size_bytes));
        self.held.add(size_bytes);
        if self.drain == Drain::Held { Pushed::Nothing } else { self.start() }
    }

    /// Drops the queue and accepts only the end from now on: a socket that is closed for sending
    /// too much gets no more processing time.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.waiting = VecDeque::new();
            self.held.set(0);
        }
    }

    /// Appends the end, for which there is always room. Only the first one counts.
    pub fn push_end(&mut self, end: T) -> Pushed {
        self.closed = true;
        if std::mem::replace(&mut self.ended, true) {
            return Pushed::Nothing;
        }
        self.waiting.push_back((end, 0));
        self.start()
    }

    /// Lets the queue be drained from now on.
    pub fn release(&mut self) -> Pushed {
        if self.drain == Drain::Held { self.start() } else { Pushed::Nothing }
    }

    /// Whether the end is in the queue or was taken from it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn start(&mut self) -> Pushed {
        match std::mem::replace(&mut self.drain, Drain::Running) {
            Drain::Running => Pushed::Nothing,
            Drain::Held | Drain::Idle => Pushed::Drain,
        }
    }

    /// The next event; `None` ends the draining task.
    pub fn pop(&mut self) -> Option<T> {
        let Some((event, size_bytes)) = self.waiting.pop_front() else {
            self.drain = Drain::Idle;
            self.waiting = VecDeque::new();
            return None;
        };
        self.held.sub(size_bytes);
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held<T>() -> Inbox<T> {
        Inbox::new(&Buffers::default())
    }

    fn released<T>() -> Inbox<T> {
        let mut inbox = held();
        assert_eq!(inbox.release(), Pushed::Drain);
        assert!(inbox.pop().is_none());
        inbox
    }

    #[test]
    fn keeps_order_and_asks_for_one_drainer_at_a_time() {
        let mut inbox = released();
        assert_eq!(inbox.push(1, 1), Pushed::Drain);
        assert_eq!(inbox.push(2, 1), Pushed::Nothing);
        assert_eq!((inbox.pop(), inbox.pop(), inbox.pop()), (Some(1), Some(2), None));
        assert_eq!(inbox.push(3, 1), Pushed::Drain);
    }

    #[test]
    fn is_held_until_it_is_released_or_ends() {
        let mut inbox = held();
        assert_eq!(inbox.push(1, 1), Pushed::Nothing);
        assert_eq!(inbox.release(), Pushed::Drain);
        assert_eq!(inbox.release(), Pushed::Nothing);
        assert_eq!(inbox.pop(), Some(1));

        let mut ended = held();
        ended.push(1, 1);
        assert!(!ended.has_ended());
        assert_eq!(ended.push_end(2), Pushed::Drain);
        assert!(ended.has_ended(), "while it waits");
        assert_eq!(ended.release(), Pushed::Nothing);
        assert_eq!(std::iter::from_fn(|| ended.pop()).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn overflows_by_number_and_by_bytes() {
        let mut many = released();
        for event in 0..MAX_EVENTS {
            assert_ne!(many.push(event, 1), Pushed::Overflow);
        }
        assert_eq!(many.push(0, 1), Pushed::Overflow);
        assert_eq!(many.push(0, 1), Pushed::Nothing, "closed: says so once");
        assert_eq!(many.push_end(7), Pushed::Nothing, "a task drains already");
        assert_eq!(many.push_end(8), Pushed::Nothing, "there is one end");
        assert_eq!(std::iter::from_fn(|| many.pop()).collect::<Vec<_>>(), [7]);

        let mut large = released();
        assert_eq!(large.push((), MAX_BYTES), Pushed::Drain);
        assert_eq!(large.push((), 1), Pushed::Overflow);
    }

    #[test]
    fn closed_it_drops_what_waits_but_for_the_end() {
        let mut inbox = released();
        inbox.push(1, 1);
        inbox.push(2, 1);
        assert_eq!(inbox.pop(), Some(1));
        inbox.close();
        assert_eq!(inbox.push(3, 1), Pushed::Nothing);
        assert_eq!(inbox.pop(), None);
        assert_eq!(inbox.push_end(4), Pushed::Drain);
        inbox.close();
        assert_eq!(inbox.pop(), Some(4));
    }

    #[test]
    fn room_comes_back_as_it_drains() {
        let mut inbox = released();
        inbox.push((), MAX_BYTES);
        inbox.pop();
        assert_eq!(inbox.push((), MAX_BYTES), Pushed::Nothing);
    }
}
