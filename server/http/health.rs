//! How the server is and what it offers: for load balancers, for operators and for curious clients.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Json, http::StatusCode};
use run::{Limits, Maxima};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::problem::{self, Document, Problem};
use super::query::{NoQuery, PathText};
use crate::leaks::Disk;
use crate::log;
use crate::telemetry::Gauges;

/// Below this much room in the store, pulls would soon fail.
const DISK_ROOM_MIN_BYTES: u64 = 64 * 1024 * 1024;

/// What is asked by probes, which may add to the query what they like: it says nothing here.
pub const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Whether the process answers at all. A query is ignored.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "server",
    responses((status = 200, description = "The server answers", body = String, content_type = "text/plain", example = "ok\n")))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the server takes work. A query is ignored.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "server",
    responses(
        (status = 200, description = "The server takes work", body = String, content_type = "text/plain", example = "ready\n"),
        (status = 503, description = "It is stopping, has lost its launcher, or can't write to its disk", body = Document,
         content_type = "application/problem+json")))]
pub async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    let disk = Disk::below(&app.config.records_dir());
    not_ready(&app, disk).map_or(Ok("ready\n"), |kind| Err(kind.problem()))
}

/// Why the server takes no work, if it takes none.
fn not_ready(app: &App, disk: Option<Disk>) -> Option<&'static problem::Kind> {
    if app.engine.launcher_is_lost() {
        return Some(&problem::LAUNCHER_LOST);
    }
    if app.engine.is_draining() {
        return Some(&problem::DRAINING);
    }
    if disk.is_some_and(|disk| disk.free_bytes < DISK_ROOM_MIN_BYTES) {
        return Some(&problem::STORE_FULL);
    }
    app.engine.store_is_broken().is_some().then_some(&problem::RUN_STORE_FAILED)
}

/// What this server is, what it enforces and what it allows.
#[derive(Debug, Serialize, ToSchema)]
pub struct Info {
    version: &'static str,
    kernel: String,
    /// Which control groups there are: `v2`, `v1`, `hybrid` or `none`.
    cgroup: String,
    /// Every wall of a sandbox, and whether it stands on this host.
    walls: Vec<Wall>,
    /// Limits that this host can't enforce.
    not_enforced: Vec<String>,
    /// How many user and group ids each run has to itself.
    id_width: u32,
    /// Limits of a run whose request does not say.
    defaults: Limits,
    /// The most that a request may ask for.
    maxima: Maxima,
    budget: Budget,
    slots: Slots,
    queue: Queue,
    /// Whether `image: host` is offered.
    host_image: bool,
    /// The profiles that a request may ask for.
    profiles: &'static [&'static str],
    networks: [&'static str; 1],
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Wall {
    name: String,
    #[schema(value_type = WallState)]
    state: &'static str,
    /// What it is, or why it is weaker or missing and how to get it.
    detail: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WallState {
    Up,
    Weaker,
    Down,
}

/// What all runs together may ask for: a run waits until what it asks for is free.
#[derive(Debug, Serialize, ToSchema)]
pub struct Budget {
    cpus: f64,
    memory_bytes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Slots {
    total: usize,
    busy: usize,
    /// Whether each run has cores of its own.
    pinned: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Queue {
    capacity: usize,
    waiting: usize,
}

/// What this server is, what it enforces and what it allows.
#[utoipa::path(get, path = "/info", operation_id = "info", tag = "server",
    responses((status = 200, description = "What the server is", body = Info)))]
pub async fn info(State(app): State<Arc<App>>, _: NoQuery) -> Json<Info> {
    let hello = &app.hello;
    let counts = app.engine.counts();
    let allowed = &app.settings.now().allowed;
    let wall = |wall: &sandbox::protocol::Wall| Wall {
        name: wall.name.clone(),
        state: state_name(wall.state),
        detail: wall.detail.clone(),
    };
    Json(Info {
        version: env!("CARGO_PKG_VERSION"),
        kernel: hello.kernel.clone(),
        cgroup: hello.cgroup.clone(),
        walls: hello.walls.iter().map(wall).collect(),
        not_enforced: hello.not_enforced.clone(),
        id_width: hello.id_width,
        defaults: allowed.defaults.clone(),
        maxima: allowed.maxima.clone(),
        budget: Budget { cpus: app.config.budget_cpus, memory_bytes: app.config.budget_memory_bytes },
        slots: Slots { total: app.config.slots, busy: counts.busy, pinned: app.config.pin_cpus },
        queue: Queue { capacity: app.config.queue_capacity, waiting: counts.queued },
        host_image: hello.host_image && app.config.allow_host_image,
        profiles: if allowed.compat { &["strict", "compat"] } else { &["strict"] },
        networks: ["none"],
    })
}

pub fn state_name(state: sandbox::protocol::WallState) -> &'static str {
    use sandbox::protocol::WallState;
    match state {
        WallState::Up => "up",
        WallState::Weaker => "weaker",
        WallState::Down => "down",
    }
}

/// Everything that is counted and measured, in Prometheus' text format. A query is ignored.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "server",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain")))]
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    let disk = Disk::below(&app.config.records_dir());
    app.telemetry.set_gauges(&Gauges {
        counts: app.engine.counts(),
        draining: app.engine.is_draining(),
        images: app.images.list().len(),
        image_bytes: app.images.total_bytes(),
        image_limit_bytes: app.images.limit_bytes(),
        cgroups: app.groups.live(),
        mounts: app.mounts.live(),
        ready: not_ready(&app, disk).is_none(),
        log_lost: log::lost(),
        disk,
        files: app.files.counts(),
    });
    app.telemetry.set_queued(&app.keys.principals(), &app.engine.queued_by_principal());
    match app.telemetry.page() {
        Ok(page) => ([(header::CONTENT_TYPE, TEXT)], page).into_response(),
        Err(error) => problem::INTERNAL_ERROR.detail(error.to_string()).into_response(),
    }
}

/// What a kind of problem means, for whoever follows its `type`.
#[utoipa::path(get, path = "/problems/{name}", operation_id = "explain_problem", tag = "server",
    params(("name" = String, Path, description = "The last part of a problem's `type`", example = "queue-full")),
    responses((status = 200, description = "What it means", body = Explanation),
              (status = 404, description = "No problem has that name", body = Document,
               content_type = "application/problem+json")))]
pub async fn explain(PathText(name): PathText, _: NoQuery) -> Result<Json<Explanation>, Problem> {
    let kind =
        problem::Kind::named(&name).ok_or_else(|| problem::NOT_FOUND.detail("no problem has that name"))?;
    let status = StatusCode::from_u16(kind.status).unwrap_or_default().as_u16();
    Ok(Json(Explanation { problem_type: kind.path(), title: kind.title, status, detail: kind.about }))
}

/// One kind of problem.
#[derive(Debug, Serialize, ToSchema)]
pub struct Explanation {
    #[serde(rename = "type")]
    problem_type: String,
    title: &'static str,
    status: u16,
    /// What it means and what to do about it.
    detail: &'static str,
}
