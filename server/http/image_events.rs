//! A pull as server-sent events: `progress` for each step, and in the end `result` with the image or
//! `problem` with what went wrong. A client that hangs up leaves the pull to the others who wait for it.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use image::Progress;
use tokio::sync::mpsc;

use super::auth::Caller;
use super::images::{self, PullImage};
use super::{App, sse};

/// Steps that a reader may be behind; of one who is further behind, steps are left out.
const MOST_UNREAD: usize = 256;

/// Pulls while the client reads, and tells it how far that is.
pub fn follow(app: Arc<App>, caller: Caller, request: PullImage, request_id: String) -> Response {
    let (tell, told) = mpsc::channel::<Bytes>(MOST_UNREAD);
    let pulling = tokio::spawn(async move {
        let mut on = |progress: Progress| {
            let _ = tell.try_send(sse::event("progress", &progress));
        };
        let last = match images::fetch(&app, &caller, &request, &mut on).await {
            Ok(image) => sse::event("result", &image),
            Err(problem) => sse::event("problem", &problem.document(&request_id)),
        };
        let _ = tell.send(last).await;
    });
    // Dropped with the answer: whoever hangs up waits no more.
    let leaving = AbortOnDrop(pulling);
    sse::reply(stream::unfold((told, leaving), async |(mut told, leaving)| {
        let event = told.recv().await?;
        Some((event, (told, leaving)))
    }))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
