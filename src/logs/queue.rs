//! The queue between the code that logs and the stream that the log goes to.
//!
//! A reader of that stream that stands still must not stop the node. So a line is put into a bounded queue,
//! and a thread of its own writes the queue out. A line that finds the queue full is dropped and counted;
//! once the stream takes lines again, the log says how many are missing.

use std::{
    io::{self, Write},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use crate::metrics;

/// Most bytes that wait. As many again may be in the hands of the thread that writes.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// Lines on their way to one stream. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something waits.
    filled: Condvar,
    /// The queue is empty and written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    /// How many lines were dropped that the log has not told of yet.
    dropped_lines: u64,
}

/// Takes the parts of one line, and puts the line into the queue as a whole when it is dropped.
pub struct Line<'a> {
    queue: &'a Queue,
    text: Vec<u8>,
}

impl Queue {
    /// Starts the thread that writes to this stream for as long as the process lives.
    pub fn write_to(&self, stream: impl Write + Send + 'static) -> io::Result<()> {
        let own = self.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || own.write_out(stream))?;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// Puts a line into the queue, or drops it. Never waits for the stream.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.waiting.len() + line.len() > MAX_WAITING_BYTES {
            state.dropped_lines += 1;
            return metrics::LOG_LINES_DROPPED.increment(1);
        }
        state.waiting.extend_from_slice(line);
        self.0.filled.notify_one();
    }

    /// Waits up to `time` until all queued lines are written.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.state();
        while state.is_writing || !state.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.0.emptied.wait_for(&mut state, left);
        }
    }

    fn write_out(&self, mut stream: impl Write) {
        let mut batch = Vec::new();
        loop {
            {
                let mut state = self.state();
                state.is_writing = false;
                self.0.emptied.notify_all();
                while state.waiting.is_empty() {
                    self.0.filled.wait(&mut state);
                }
                batch.clear();
                mem::swap(&mut batch, &mut state.waiting);
                state.is_writing = true;
            }
            // A stream that is closed takes nothing any more: there is nowhere to report that.
            if stream.write_all(&batch).and_then(|()| stream.flush()).is_ok() {
                self.tell_of_dropped();
            }
        }
    }

    fn tell_of_dropped(&self) {
        let lines = mem::take(&mut self.state().dropped_lines);
        if lines > 0 {
            warn!(lines, "log lines were dropped: the reader of the log did not keep up");
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, text: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.queue.push(&self.text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stream that blocks until it is released, and then keeps everything written to it.
    struct Stalled {
        go_on: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stalled {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            // The sender is dropped: from now on the writer accepts everything.
            let _ = self.go_on.recv();
            self.taken.lock().extend_from_slice(part);
            Ok(part.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_that_stands_still_holds_up_nobody_and_loses_only_what_has_no_room() {
        let (hold, go_on) = mpsc::channel();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let queue = Queue::default();
        queue.write_to(Stalled { go_on, taken: taken.clone() }).unwrap();
        let line = [b'x'; 1024];
        let lines = 4 * MAX_WAITING_BYTES / line.len();
        for _ in 0..lines {
            queue.push(&line);
        }
        queue.flush(Duration::ZERO);
        let dropped = usize::try_from(queue.state().dropped_lines).unwrap();
        assert!((lines / 2..=lines * 3 / 4).contains(&dropped), "{dropped} of {lines}");

        drop(hold);
        queue.flush(Duration::from_secs(10));
        assert_eq!(taken.lock().len(), (lines - dropped) * line.len());
        assert_eq!(queue.state().dropped_lines, 0);
    }
}
