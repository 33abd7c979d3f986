//! The images that the server has, and can be told to fetch or to forget.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use image::{ImageError, ImageInfo, Progress, Whose};
use jiff::Timestamp;
use run::{PrincipalName, Pull, Scope};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::JsonBody;
use super::checks::check_image_is_allowed;
use super::events::{ServerSentEvent, WantsEvents};
use super::fields::Fields;
use super::layers::RequestId;
use super::problem::{self, Document, Problem};
use super::query::{NoQuery, Parameters, PathText};
use super::{App, image_events};

/// One image of the store.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Image)]
pub struct ImageReply {
    #[schema(example = "docker.io/library/alpine:latest")]
    reference: String,
    /// The principal who alone may use it: it was fetched with that one's own login, or brought by it. Absent: everybody's.
    #[schema(value_type = Option<String>, example = "alice")]
    principal: Option<PrincipalName>,
    #[schema(example = "sha256:…")]
    digest: String,
    #[schema(example = "linux/amd64")]
    platform: String,
    layers: usize,
    /// Of the layers as they were downloaded.
    compressed_bytes: u64,
    /// Of the files of all layers, shared ones included.
    bytes: u64,
    /// Of the files of those layers that no other image has. They go when the image does.
    own_bytes: u64,
    /// Of the files of those layers that other images have too.
    shared_bytes: u64,
    /// What all its layers take of the disk.
    disk_bytes: u64,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "super::reply::time")]
    pulled_at: Timestamp,
    /// When a registry last said that the reference means this image; absent for what came from a file.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "super::reply::maybe_time")]
    resolved_at: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "super::reply::time")]
    last_used_at: Timestamp,
    /// Whether a run is using it.
    in_use: bool,
    /// Whether it is never collected.
    pinned: bool,
}

impl From<ImageInfo> for ImageReply {
    fn from(info: ImageInfo) -> Self {
        Self {
            reference: info.reference,
            principal: info.owner,
            digest: info.digest,
            platform: info.platform,
            layers: info.layers,
            compressed_bytes: info.compressed_bytes,
            bytes: info.bytes,
            own_bytes: info.own_bytes,
            shared_bytes: info.bytes.saturating_sub(info.own_bytes),
            disk_bytes: info.disk_bytes,
            pulled_at: info.pulled_at,
            resolved_at: info.resolved_at,
            last_used_at: info.last_used_at,
            in_use: info.in_use,
            pinned: info.pinned,
        }
    }
}

/// Images of the store.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageList {
    images: Vec<ImageReply>,
    /// What the layers of these images take of the disk, each counted once; for an admin, what all layers take.
    disk_bytes: u64,
    /// Above this, images are collected, those used longest ago first.
    limit_bytes: u64,
}

/// Which image to fetch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// An OCI reference as Docker users write it.
    #[schema(min_length = 1, max_length = 512)]
    image: String,
    /// `always` (the default here) asks the registry whether the image has changed.
    pull: Option<Pull>,
    /// Whether the image is never collected from now on. Absent: as before.
    pinned: Option<bool>,
}

impl PullImage {
    fn read(body: Value) -> Result<Self, Problem> {
        let mut bad = Vec::new();
        let mut request = None;
        if let Some(mut fields) = Fields::open("", body, &mut bad) {
            let before = fields.complaints();
            let image = fields.text("image");
            if image.is_none() && fields.complaints() == before {
                fields.refuse("image", "is required");
            }
            let choices = [("always", Pull::Always), ("missing", Pull::Missing), ("never", Pull::Never)];
            let pull = fields.choice("pull", &choices);
            let pinned = fields.boolean("pinned");
            request = image.map(|image| Self { image, pull, pinned });
            fields.finish();
        }
        if let Some(request) = &request {
            super::checks::check_image(&request.image, &mut bad);
        }
        request.filter(|_| bad.is_empty()).ok_or_else(|| Problem::invalid(bad))
    }
}

/// Lists the images that the caller could use, the most recently used first; to an admin, all of the store.
#[utoipa::path(get, path = "/images", operation_id = "list_images", tag = "images",
    responses((status = 200, description = "The images", body = ImageList)))]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, _: NoQuery) -> Json<ImageList> {
    let (all, asker) = (caller.principal.may(Scope::Admin), caller.image_owner());
    let may_use = |image: &ImageInfo| {
        caller.principal.may_use_image(&image.reference) && (all || app.images.is_open_to(image, asker))
    };
    let images: Vec<_> = app.images.list().into_iter().filter(may_use).collect();
    Json(ImageList {
        // What images of others alone take is not for everybody: who loads a layer would see whether it was here.
        disk_bytes: if all { app.images.total_bytes() } else { app.images.bytes_of(&images) },
        images: images.into_iter().map(Into::into).collect(),
        limit_bytes: app.images.limit_bytes(),
    })
}

/// Fetches an image ahead of its first run and answers when it is here.
///
/// With `Accept: text/event-stream` the answer is events, as it goes: `progress` for each step (which layer has
/// how many bytes, and whether it waits for its registry or its unpacker), then `result` with the image, or
/// `problem`.
#[utoipa::path(post, path = "/images", operation_id = "pull_image", tag = "images", request_body = PullImage,
    responses(
        (status = 200, description = "The image is here",
         content((ImageReply = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = 422, description = "A value is bad, or the image does not exist or is not allowed", body = Document,
         content_type = "application/problem+json"),
        (status = 502, description = "The registry failed", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "The server is stopping, or its disk is full", body = Document,
         content_type = "application/problem+json"),
        (status = 504, description = "The pull took too long", body = Document,
         content_type = "application/problem+json")))]
pub async fn pull(
    State(app): State<Arc<App>>,
    caller: Caller,
    WantsEvents(as_events): WantsEvents,
    Extension(RequestId(request_id)): Extension<RequestId>,
    body: JsonBody,
) -> Result<Response, Problem> {
    let request = PullImage::read(body.value)?;
    check_image_is_allowed(&request.image, &caller.principal)?;
    if app.engine.is_draining() {
        return Err(problem::DRAINING.problem());
    }
    if as_events {
        return Ok(image_events::follow(app, caller, request, request_id));
    }
    Ok(Json(fetch(&app, &caller, &request, &mut |_| {}).await?).into_response())
}

/// Pulls, and says what is there then.
pub(super) async fn fetch(
    app: &App,
    caller: &Caller,
    request: &PullImage,
    on: &mut (dyn FnMut(Progress) + Send),
) -> Result<ImageReply, Problem> {
    let mut pull = request.pull.unwrap_or(Pull::Always);
    loop {
        let asker = caller.image_owner();
        let lease = app.images.acquire_with_progress(asker, &request.image, pull, on).await?;
        if lease.reference == "host" {
            return Err(problem::INVALID_REQUEST.detail("`host` is this machine; there is nothing to fetch"));
        }
        let (owner, reference) = (lease.owner.clone(), lease.reference.clone());
        let whose = owner.as_ref().map_or(Whose::Everybodys, Whose::Own);
        match here(app, whose, &reference, request.pinned).await {
            // Somebody has removed it in the moment between; its layers are held, so it is soon back.
            Err(ImageError::NotPresent { .. }) if pull != Pull::Never => pull = Pull::Missing,
            found => {
                let found = found?;
                // Or it would be in use by us.
                drop(lease);
                // Removed since, it was here all the same.
                let gone = ImageInfo { in_use: false, ..found };
                return Ok(app.images.get_of(whose, &reference).unwrap_or(gone).into());
            }
        }
    }
}

/// What is there under that name, kept from collection from now on or not, if somebody wants either.
async fn here(
    app: &App,
    whose: Whose<'_>,
    reference: &str,
    pinned: Option<bool>,
) -> Result<ImageInfo, ImageError> {
    if let Some(pinned) = pinned {
        app.images.pin_of(whose, reference, pinned).await?;
    }
    app.images.get_of(whose, reference)
}

/// Shows one image of the store.
#[utoipa::path(get, path = "/images/{*reference}", operation_id = "get_image", tag = "images",
    params(("reference" = String, Path, description = "The rest of the path; slashes may be written as `%2F`",
            example = "alpine"),
           ("principal" = Option<String>, Query, description = "That principal's own image, rather than what the name \
            means to the caller; another's for admins only", example = "alice")),
    responses((status = 200, description = "The image", body = ImageReply),
              (status = 404, description = "The store has no such image for the caller", body = Document,
               content_type = "application/problem+json"),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json")))]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(reference): PathText,
    query: Parameters,
) -> Result<Json<ImageReply>, Problem> {
    let meant = Meant::read(&reference, &caller, query)?;
    let found = app.images.get_of(meant.whose(), &reference);
    Ok(Json(found.map_err(|error| not_stored(&reference, error))?.into()))
}

/// Forgets one image; what runs still use stays until they have ended.
#[utoipa::path(delete, path = "/images/{*reference}", operation_id = "delete_image", tag = "images",
    params(("reference" = String, Path, description = "The rest of the path; slashes may be written as `%2F`",
            example = "alpine"),
           ("principal" = Option<String>, Query, description = "That principal's own image, rather than what the name \
            means to the caller; another's for admins only", example = "alice")),
    responses((status = 204, description = "The image is forgotten"),
              (status = 404, description = "The store has no such image for the caller", body = Document,
               content_type = "application/problem+json"),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json")))]
pub async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(reference): PathText,
    query: Parameters,
) -> Result<StatusCode, Problem> {
    let meant = Meant::read(&reference, &caller, query)?;
    let removed = app.images.remove_of(meant.whose(), &reference).await;
    removed.map_err(|error| not_stored(&reference, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which image a call about one means.
struct Meant {
    /// Asked for by name.
    own: Option<PrincipalName>,
    caller: Option<PrincipalName>,
}

impl Meant {
    fn read(reference: &str, caller: &Caller, mut query: Parameters) -> Result<Self, Problem> {
        let own = query.take("principal");
        let own = own.map(|name| {
            PrincipalName::parse(&name).inspect_err(|error| query.refuse("principal", &error.to_string()))
        });
        query.finish()?;
        must_see(reference, caller)?;
        let own = own.and_then(Result::ok);
        if own.as_ref().is_some_and(|owner| !caller.principal.sees(owner)) {
            return Err(not_stored(reference, ImageError::NotPresent { reference: String::new() }));
        }
        Ok(Self { own, caller: caller.image_owner().cloned() })
    }

    fn whose(&self) -> Whose<'_> {
        match (&self.own, &self.caller) {
            (Some(owner), _) => Whose::Own(owner),
            (None, Some(caller)) => Whose::SeenBy(caller),
            (None, None) => Whose::Everybodys,
        }
    }
}

/// What is not on the list of the caller's key is not there for that caller.
pub(super) fn must_see(reference: &str, caller: &Caller) -> Result<(), Problem> {
    let full = image::Images::full_name(reference).map_err(|error| not_stored(reference, error))?;
    let hidden = ImageError::NotPresent { reference: String::new() };
    if caller.principal.may_use_image(&full) { Ok(()) } else { Err(not_stored(reference, hidden)) }
}

/// A name that can't be an image's is in no store either.
fn not_stored(reference: &str, error: ImageError) -> Problem {
    match error {
        ImageError::NotPresent { .. } | ImageError::NotFound { .. } | ImageError::BadReference { .. } => {
            let shown: String = reference.chars().filter(|c| !c.is_control()).take(200).collect();
            problem::IMAGE_NOT_STORED.detail(format!("the store has no image {shown}"))
        }
        other => other.into(),
    }
}
