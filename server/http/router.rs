//! The table of contents: every call of the API, and where it is handled.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::docs::ApiDoc;
use super::{
    App, backup, batch_events, batches, docs, events, files, health, image_upload, images, layers,
    principals, problem, raw, runs,
};

/// Every documented call.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .routes(routes!(runs::create, runs::list))
        .routes(routes!(runs::get, runs::cancel))
        .routes(routes!(events::watch))
        .routes(routes!(raw::stdout))
        .routes(routes!(raw::stderr))
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::get, batches::cancel))
        .routes(routes!(batch_events::watch))
        .routes(routes!(files::upload))
        .routes(routes!(files::get, files::head, files::remove))
        .routes(routes!(images::list, images::pull))
        .routes(routes!(images::get, images::remove, image_upload::load))
        .routes(routes!(principals::list))
        .routes(routes!(backup::backup))
        .routes(routes!(health::info))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(health::explain))
}

/// The whole service.
pub fn service(app: &Arc<App>) -> Router {
    let (calls, _) = routes().split_for_parts();
    let router = calls
        .route("/openapi.json", get(docs::openapi))
        .merge(docs::page())
        .fallback(async || problem::NOT_FOUND.problem())
        .method_not_allowed_fallback(async || problem::METHOD_NOT_ALLOWED.problem())
        .with_state(Arc::clone(app));
    layers::apply(router, app)
}

/// What is served apart with `metrics_listen`: nothing that could change anything, so no layer asks who it is.
pub fn watching(app: &Arc<App>) -> Router {
    let router = Router::new().route("/metrics", get(health::metrics)).route("/info", get(health::info));
    // Clients that hold every connection of the other address don't keep a probe from its answer.
    let ready = get(async |app: State<Arc<App>>| health::readyz(app).await.map_err(|why| why.into_reply("")));
    let router = router.route("/healthz", get(health::healthz)).route("/readyz", ready);
    router.with_state(Arc::clone(app))
}
