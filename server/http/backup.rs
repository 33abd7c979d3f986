//! A backup of this server, while it goes on: for admins.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::App;
use super::problem::{self, Document, Problem};
use super::query::NoQuery;
use crate::backup::Backup;

/// Answers with what can't be had again, as one archive: hashes of keys, what principals have used, and what was
/// promised and remembered of runs, as they are at one moment. `sandglass restore` takes it. Needs the scope `admin`.
///
/// Of several that are asked for at once, each waits for the one before.
#[utoipa::path(get, path = "/backup", operation_id = "backup", tag = "server",
    responses((status = 200, description = "A tar archive", body = Vec<u8>, content_type = "application/x-tar"),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json"),
              (status = 500, description = "Something can't be read", body = Document,
               content_type = "application/problem+json"),
              (status = 503, description = "Runs can't be written down, or there is no room for a copy of them",
               body = Document, content_type = "application/problem+json")))]
pub async fn backup(State(app): State<Arc<App>>, _: NoQuery) -> Result<Response, Problem> {
    let turn = Arc::clone(&app.backups).acquire_owned().await;
    let turn = turn.map_err(|_| problem::DRAINING.problem())?;
    app.ledger.write().await;
    let runs = app.engine.copy_runs().await.map_err(|error| {
        tracing::error!(cause = %error.source, "{error}");
        problem::RUN_STORE_FAILED.problem()
    })?;
    let data_dir = app.config.data_dir.clone();
    let backup = spawn_blocking(move || Backup::of(&data_dir, runs)).await;
    let backup = backup.map_err(anyhow::Error::from).flatten().map_err(|error| {
        tracing::error!(error = format!("{error:#}"), "could not make a backup");
        problem::INTERNAL_ERROR.detail("something of it can't be read; the server's log says what")
    })?;
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, backup.bytes().to_string()),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"sandglass.tar\"".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(pieces(backup, turn))).into_response())
}

/// Its turn ends with the answer, and so does the copy.
fn pieces(backup: Backup, turn: OwnedSemaphorePermit) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some((backup, turn)), async |state| {
        let (mut backup, turn) = state?;
        let (backup, piece) = spawn_blocking(move || {
            let piece = backup.next();
            (backup, piece)
        })
        .await
        .ok()?;
        let piece = piece?.map(Bytes::from);
        let rest = piece.is_ok().then_some((backup, turn));
        Some((piece, rest))
    })
}
