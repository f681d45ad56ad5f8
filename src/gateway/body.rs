//! The body of a request that has to come in time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::metrics::{self, Slow};

/// A body that fails when it is not there within its time: the library would wait for ever.
pub struct Timed {
    body: Body,
    time_out: Pin<Box<Sleep>>,
}

impl Timed {
    pub fn new(body: Body, time: Duration) -> Self {
        Self { body, time_out: Box::pin(tokio::time::sleep(time)) }
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // First: one that trickles in has always something to read.
        if self.time_out.as_mut().poll(cx).is_ready() {
            metrics::SLOW_CLIENTS.of(Slow::Body).increment(1);
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
