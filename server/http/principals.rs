//! Who has what: for admins.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::query::NoQuery;
use crate::keys::ledger::Totals;

/// Everybody who can have runs here.
#[derive(Debug, Serialize, ToSchema)]
pub struct PrincipalList {
    principals: Vec<PrincipalReply>,
}

/// One principal, and what it has used.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Principal)]
pub struct PrincipalReply {
    #[schema(example = "alice")]
    name: String,
    /// Runs that wait for a slot, and batches none of whose runs has a place or a slot.
    queued: usize,
    usage: Totals,
}

/// Lists the principals and what each has used since its first run. Needs the scope `admin`.
#[utoipa::path(get, path = "/principals", operation_id = "list_principals", tag = "server",
    responses((status = 200, description = "Every principal", body = PrincipalList),
              (status = 422, description = "A parameter is bad", body = super::problem::Document,
               content_type = "application/problem+json")))]
pub async fn list(State(app): State<Arc<App>>, _: NoQuery) -> Json<PrincipalList> {
    let queued = app.engine.queued_by_principal();
    let shown = |name: run::PrincipalName| {
        let usage = app.ledger.totals(&name);
        let queued = queued.iter().find(|(who, _)| *who == name).map_or(0, |(_, number)| *number);
        PrincipalReply { name: name.into(), queued, usage }
    };
    Json(PrincipalList { principals: app.keys.principals().into_iter().map(shown).collect() })
}
