//! A pull as server-sent events: `progress` for each step, and in the end `result` with the image or
//! `problem` with what went wrong. A client that hangs up leaves the pull to the others who wait for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use image::Progress;
use serde::Serialize;
use tokio::sync::mpsc;

use super::App;
use super::auth::Caller;
use super::images::{self, PullImage};

/// Steps that a reader may be behind; of one who is further behind, steps are left out.
const MOST_UNREAD: usize = 256;
/// A connection on which nothing is said for longer looks dead to whatever stands in between.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Pulls while the client reads, and tells it how far that is.
pub fn follow(app: Arc<App>, caller: Caller, request: PullImage, request_id: String) -> Response {
    let (tell, told) = mpsc::channel::<Event>(MOST_UNREAD);
    let pulling = tokio::spawn(async move {
        let mut on = |progress: Progress| {
            let _ = tell.try_send(event("progress", &progress));
        };
        let last = match images::fetch(&app, &caller, &request, &mut on).await {
            Ok(image) => event("result", &image),
            Err(problem) => event("problem", &problem.document(&request_id)),
        };
        let _ = tell.send(last).await;
    });
    // Dropped with the answer: whoever hangs up waits no more.
    let leaving = AbortOnDrop(pulling);
    let events = stream::unfold((told, leaving), |(mut told, leaving)| async move {
        let event = told.recv().await?;
        Some((Ok::<_, Infallible>(event), (told, leaving)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    event.json_data(data).unwrap_or_else(|_| Event::default().event(name).data("null"))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
