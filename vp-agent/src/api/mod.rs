//! The local interface: JSON over HTTP on the agent's Unix socket, for root and the group `vp`. The routes are those
//! of `vp_proto::api`.

mod ask;
mod change;
mod drain;
mod explain;
mod peers;
mod show;
mod socket;
#[cfg(test)]
mod tests;

pub use socket::{bind, give_to_group};

use crate::agent::{Agent, Refused};
use axum::Json;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use vp_proto::api;

/// The largest list of revocations; any other request names a few hundred addresses.
const REQUEST_BYTES_MAX: usize = 512 << 10;

/// The figures alone, for the loopback port that the operator may open.
pub fn metrics_routes(agent: Arc<Agent>) -> Router {
    Router::new().route("/metrics", get(show::metrics)).with_state(agent)
}

pub fn routes(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/status", get(show::status))
        .route("/v1/services", get(show::services))
        .route("/v1/flows", get(show::flows))
        .route("/v1/whois", get(show::whois))
        .route("/v1/map", post(change::map))
        .route("/v1/unmap", post(change::unmap))
        .route("/v1/expose", post(change::expose))
        .route("/v1/unexpose", post(change::unexpose))
        .route("/v1/add-peer", post(peers::add))
        .route("/v1/remove-peer", post(peers::remove))
        .route("/v1/drain", post(drain::drain))
        .route("/v1/reload", post(change::reload))
        .route("/v1/revocations", post(change::revocations))
        .route("/v1/ping", post(ask::ping))
        .route("/v1/explain", post(explain::explain))
        .route("/v1/doctor", get(show::doctor))
        .route("/v1/audit", get(show::audit_lines))
        .route("/metrics", get(show::metrics))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "no such request; is vp-ctl newer than the agent?") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "GET where POST is expected, or the other way round")
        })
        .with_state(agent)
}

/// A refusal, as one line.
pub struct Problem {
    status: StatusCode,
    error: String,
}

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    fn refused(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(api::Error { error: self.error })).into_response()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::Config(_) | Refused::Field(_) | Refused::Settings(_) | Refused::Request(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Refused::State(_) | Refused::Host(_) | Refused::Gone(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, refused.to_string())
    }
}

impl From<crate::dataplane::Gone> for Problem {
    fn from(gone: crate::dataplane::Gone) -> Self {
        Refused::from(gone).into()
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}
