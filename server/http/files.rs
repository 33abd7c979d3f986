//! Files that runs read: uploaded once, named by their content, used by any number of runs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Json};
use bytes::Bytes;
use engine::files::{FileInfo, Upload};
use futures_util::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use run::{FileId, StoredFile};
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;

use super::App;
use super::auth::{About, Caller};
use super::content::StoredLength;
use super::problem::{self, Document, Problem};
use super::query::{NoQuery, PathText};
use super::reply;

/// How much of a file is read at once on its way out.
const PIECE_BYTES: usize = 64 * 1024;

/// An uploaded file.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UploadedFile)]
pub struct FileReply {
    /// Its id: the SHA-256 of its content.
    #[schema(value_type = String, pattern = "^sha256:[0-9a-f]{64}$",
             example = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")]
    file: FileId,
    size_bytes: u64,
    /// Until when it is kept; uploading it again begins anew. Where room is short, what was not used lately goes
    /// earlier.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "reply::time")]
    expires_at: Timestamp,
}

impl From<FileInfo> for FileReply {
    fn from(info: FileInfo) -> Self {
        Self { file: info.id, size_bytes: info.size_bytes, expires_at: info.expires_at }
    }
}

/// How long the client's file of that id is, for checks of requests that name it.
pub(super) fn lookup(app: &App, caller: &Caller) -> impl Fn(&FileId) -> Option<StoredLength> + use<> {
    let (files, caller) = (app.files.clone(), caller.clone());
    move |id| {
        let file = stored(*id, &caller);
        files.get(&file).map(|info| StoredLength { file, len: info.size_bytes })
    }
}

/// The caller's own file of that id: what others have uploaded does not exist.
fn stored(id: FileId, caller: &Caller) -> StoredFile {
    StoredFile { owner: caller.principal.name.as_str().into(), id }
}

/// Keeps a file under the hash of its content, for `files` and `stdin` of runs.
///
/// The body is the file as it is, of any type, or a form with one part (`curl -F file=@NAME`). It is written to
/// disk as it comes.
#[utoipa::path(post, path = "/files", operation_id = "upload_file", tag = "files",
    request_body(content(("application/octet-stream"), ("multipart/form-data"))),
    responses(
        (status = 201, description = "The file is kept", body = FileReply,
         headers(("Location" = String, description = "The file's path"))),
        (status = 500, description = "The file could not be written: our fault", body = Document,
         content_type = "application/problem+json"),
        (status = 503, description = "There is no room for the file", body = Document,
         content_type = "application/problem+json")))]
pub async fn upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    _: NoQuery,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers();
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(problem::UNSUPPORTED_MEDIA_TYPE.detail("send the file without `Content-Encoding`"));
    }
    let form = media_type(headers).is_some_and(|media| media == "multipart/form-data");
    let info =
        if form { of_form(&app, &caller, request).await? } else { of_body(&app, &caller, request).await? };
    let location = HeaderValue::try_from(format!("/files/{}", info.id));
    let mut reply = (StatusCode::CREATED, Json(FileReply::from(info))).into_response();
    reply.headers_mut().extend(location.ok().map(|path| (header::LOCATION, path)));
    reply.extensions_mut().insert(About::File(info.id));
    Ok(reply)
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

async fn of_body(app: &App, caller: &Caller, request: Request) -> Result<FileInfo, Problem> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
    let upload = app.files.begin(caller.principal.name.as_str(), announced)?;
    receive(app, upload, request.into_body().into_data_stream()).await
}

/// A form with exactly one part, whatever that is called.
async fn of_form(app: &App, caller: &Caller, mut request: Request) -> Result<FileInfo, Problem> {
    // The file's size is bounded by the store.
    DefaultBodyLimit::disable().apply(&mut request);
    let bad = |detail: String| problem::NOT_A_FORM.detail(detail);
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| bad(error.body_text()))?;
    let part =
        timeout(patience(app), form.next_field()).await.map_err(|_| problem::BODY_TIMEOUT.problem())?;
    let Some(part) = part.map_err(|error| bad(error.body_text()))? else {
        return Err(bad("the form has no part; send the file as one, as `curl -F file=@NAME` does".into()));
    };
    let info = receive(app, app.files.begin(caller.principal.name.as_str(), None)?, part).await?;
    match timeout(patience(app), form.next_field()).await {
        Err(_) => Err(problem::BODY_TIMEOUT.problem()),
        Ok(Ok(None)) => Ok(info),
        Ok(Ok(Some(_))) => Err(bad("the form has more than one part; send one file at a time".into())),
        Ok(Err(error)) => Err(bad(error.body_text())),
    }
}

/// A client may take its time, as long as something comes.
async fn receive<E: Into<BoxError>>(
    app: &App,
    mut upload: Upload,
    pieces: impl Stream<Item = Result<Bytes, E>>,
) -> Result<FileInfo, Problem> {
    let mut pieces = std::pin::pin!(pieces.map_err(Into::into));
    loop {
        let next = timeout(patience(app), pieces.next()).await;
        match next.map_err(|_| problem::BODY_TIMEOUT.problem())? {
            Some(Ok(bytes)) => upload.write(&bytes).await?,
            Some(Err(error)) => {
                return Err(problem::NOT_A_FORM.detail(format!("the body broke off: {error}")));
            }
            None => return Ok(upload.finish().await?),
        }
    }
}

fn patience(app: &App) -> Duration {
    app.bodies.time_max
}

/// Gives a file back, as it was uploaded.
#[utoipa::path(get, path = "/files/{id}", operation_id = "get_file", tag = "files",
    params(("id" = String, Path, description = "The file's id", example = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
              (status = 404, description = "You have uploaded no such file", body = Document,
               content_type = "application/problem+json")))]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    _: NoQuery,
) -> Result<Response, Problem> {
    let file = named(&id, &caller)?;
    let lease = app.files.lease(&file).ok_or_else(not_found)?;
    let opened = lease.open().map_err(|error| {
        tracing::error!(%error, "a stored file can't be opened");
        problem::FILES_FAILED.problem()
    })?;
    let reader = ReaderStream::with_capacity(tokio::fs::File::from_std(opened), PIECE_BYTES);
    let len = lease.len();
    // The lease goes with the stream.
    let pieces = reader.map(move |piece| {
        let _held = &lease;
        piece
    });
    Ok((entity(file.id, len), Body::from_stream(pieces)).into_response())
}

/// Says whether a file is there and how long it is.
#[utoipa::path(head, path = "/files/{id}", operation_id = "head_file", tag = "files",
    params(("id" = String, Path, description = "The file's id", example = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")),
    responses((status = 200, description = "The file is there"),
              (status = 404, description = "You have uploaded no such file")))]
pub async fn head(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    _: NoQuery,
) -> Result<Response, Problem> {
    let info = app.files.get(&named(&id, &caller)?).ok_or_else(not_found)?;
    Ok((entity(info.id, info.size_bytes), ()).into_response())
}

/// Forgets a file. Runs that were taken before still read it.
#[utoipa::path(delete, path = "/files/{id}", operation_id = "delete_file", tag = "files",
    params(("id" = String, Path, description = "The file's id", example = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")),
    responses((status = 204, description = "The file is forgotten"),
              (status = 404, description = "You have uploaded no such file", body = Document,
               content_type = "application/problem+json")))]
pub async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    _: NoQuery,
) -> Result<StatusCode, Problem> {
    if app.files.remove(&named(&id, &caller)?) { Ok(StatusCode::NO_CONTENT) } else { Err(not_found()) }
}

/// What is no id names no file.
fn named(id: &str, caller: &Caller) -> Result<StoredFile, Problem> {
    id.parse().map(|id| stored(id, caller)).map_err(|_| not_found())
}

fn not_found() -> Problem {
    problem::FILE_NOT_FOUND.problem()
}

/// A browser must not take what somebody has uploaded for a page of ours.
fn entity(id: FileId, len: u64) -> [(header::HeaderName, String); 5] {
    [
        (header::CONTENT_TYPE, "application/octet-stream".into()),
        (header::CONTENT_LENGTH, len.to_string()),
        (header::ETAG, format!("\"{id}\"")),
        (header::CONTENT_DISPOSITION, "attachment".into()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".into()),
    ]
}
