//! Request bodies with a time-out, whose data is checked as it arrives.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::{
    limits::buffers::Charge,
    metrics::{self, Limit, Slow},
};

/// A body that fails if it is not complete within its time (the library has no time-out), if the
/// node's byte budget has no room for the data so far, or if `check` rejects the data.
pub struct Timed<F> {
    body: Body,
    time_out: Pin<Box<Sleep>>,
    come: Charge,
    check: F,
}

impl<F: FnMut(&[u8]) -> bool> Timed<F> {
    pub fn new(body: Body, time: Duration, come: Charge, check: F) -> Self {
        Self { body, time_out: Box::pin(tokio::time::sleep(time)), come, check }
    }
}

impl<F: FnMut(&[u8]) -> bool + Unpin> HttpBody for Timed<F> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // First, because a body that trickles in always has something to read.
        if self.time_out.as_mut().poll(cx).is_ready() {
            metrics::SLOW_CLIENTS.of(Slow::Body).increment(1);
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        if data.is_some_and(|data| !(self.check)(data)) {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::QuotaExceeded).into())));
        }
        if !self.come.try_add(data.map_or(0, Bytes::len)) {
            metrics::LIMITS.of(Limit::Buffers).increment(1);
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::OutOfMemory).into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
