//! Images that come with the request: an archive as `docker save` writes it, or an OCI layout.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use bytes::Bytes;
use futures_util::StreamExt;
use image::{Archive, ImageError, Images, Whose};
use run::Scope;
use tokio::time::timeout;

use super::App;
use super::auth::Caller;
use super::images::{ImageReply, must_see};
use super::problem::{self, BadValue, Document, Problem};
use super::query::{NoQuery, PathText};

/// Loads an image from an archive, without any registry.
///
/// The body is what `docker save` or `podman save` writes, or an OCI layout as a tar, compressed with gzip or zstd
/// or not. Where it holds several images, the one of that name is taken. What an admin loads is everybody's; what
/// another key loads is its principal's own.
#[utoipa::path(put, path = "/images/{*reference}", operation_id = "load_image", tag = "images",
    params(("reference" = String, Path, description = "What the image is called from then on; slashes may be written as `%2F`",
            example = "localhost/mine:1")),
    request_body(content(("application/x-tar"), ("application/octet-stream"))),
    responses((status = 200, description = "The image is here", body = ImageReply),
              (status = 413, description = "The archive is larger than an image may be", body = Document,
               content_type = "application/problem+json"),
              (status = 422, description = "The name is none, or the archive holds no image for this machine",
               body = Document, content_type = "application/problem+json"),
              (status = 503, description = "The server is stopping, or its disk is full", body = Document,
               content_type = "application/problem+json")))]
pub async fn load(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(reference): PathText,
    _: NoQuery,
    request: Request,
) -> Result<Json<ImageReply>, Problem> {
    Images::full_name(&reference)
        .map_err(|error| Problem::invalid(vec![BadValue::parameter("reference", error.to_string())]))?;
    must_see(&reference, &caller)?;
    if app.engine.is_draining() {
        return Err(problem::DRAINING.problem());
    }
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(problem::UNSUPPORTED_MEDIA_TYPE.detail("send the archive without `Content-Encoding`"));
    }
    let archive = receive(&app, &reference, request).await?;
    let owner = caller.image_owner().filter(|_| !caller.principal.may(Scope::Admin));
    let loaded = app.images.load_for(owner, Archive::File(archive), Some(&reference), &mut |_| {}).await?;
    drop(loaded);
    let whose = owner.map_or(Whose::Everybodys, Whose::Own);
    Ok(Json(app.images.get_of(whose, &reference)?.into()))
}

/// A client may take its time, as long as something comes.
async fn receive(app: &App, reference: &str, request: Request) -> Result<File, Problem> {
    let most = app.images.archive_bytes_max();
    let too_large = || problem::BODY_TOO_LARGE.detail(format!("the archive may have at most {most} bytes"));
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > most) {
        return Err(too_large());
    }
    let mut file = app.images.incoming()?;
    let mut received = 0;
    let mut pieces = request.into_body().into_data_stream();
    loop {
        let next = timeout(app.bodies.time_max, pieces.next()).await;
        let piece = match next.map_err(|_| problem::BODY_TIMEOUT.problem())? {
            None => return Ok(file),
            Some(Err(error)) => {
                return Err(problem::NOT_A_FORM.detail(format!("the body broke off: {error}")));
            }
            Some(Ok(piece)) => piece,
        };
        received += piece.len() as u64;
        if received > most {
            return Err(too_large());
        }
        file = write(file, piece, reference).await?;
    }
}

async fn write(mut file: File, piece: Bytes, reference: &str) -> Result<File, Problem> {
    let written = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file)).await;
    match written {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
            Err(ImageError::NoSpace { reference: reference.into() }.into())
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "an archive can't be written down");
            Err(problem::STORE_FAILED.problem())
        }
        Err(_) => Err(problem::INTERNAL_ERROR.problem()),
    }
}
