//! An answer of HTTP/2, cut into pieces: what hyper was handed it keeps until the client takes it, however
//! much that is, so it gets no more than a piece at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::streams::Taking;

const PIECE_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Pieces {
    body: Body,
    /// What of the last frame has not been handed over.
    rest: Bytes,
    taking: Arc<Taking>,
    /// The right to be a request.
    _place: OwnedSemaphorePermit,
}

impl Pieces {
    pub(super) fn new(body: Body, taking: Arc<Taking>, place: OwnedSemaphorePermit) -> Self {
        taking.given();
        Self { body, rest: Bytes::new(), taking, _place: place }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let end = self.rest.len().min(PIECE_BYTES);
        Frame::data(self.rest.split_to(end))
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    /// Called when the client has room for more.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.taking.taken();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                None => return Poll::Ready(None),
                Some(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                Some(Ok(data)) => self.rest = data,
            }
        }
        self.taking.given();
        Poll::Ready(Some(Ok(self.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        body.upper().into_iter().for_each(|upper| hint.set_upper(upper + rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn an_answer_of_any_length_comes_whole_and_in_pieces() {
        let room = Arc::new(Semaphore::new(1));
        for length in [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 1] {
            let place = Arc::clone(&room).acquire_owned().await.unwrap();
            let mut body = Pieces::new(Body::from(vec![7; length]), Arc::default(), place);
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            let mut got = 0;
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(data.len() <= PIECE_BYTES);
                got += data.len();
                assert_eq!(body.size_hint().exact(), Some((length - got) as u64));
            }
            assert_eq!(got, length);
        }
    }
}
