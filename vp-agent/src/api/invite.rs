//! Invitations, as an issuer's operator gives them, sees them and takes them back.

use super::Problem;
use crate::agent::Agent;
use crate::clock::unix_seconds;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::sync::Arc;
use tokio::task::spawn_blocking;
use vp_proto::api;

type Request<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<Json<T>, Problem>;

pub async fn invite(
    State(agent): State<Arc<Agent>>,
    request: Request<api::InviteRequest>,
) -> Answer<api::InviteResponse> {
    let Json(request) = request?;
    Ok(Json(agent.invite(request).await?))
}

pub async fn bundle(
    State(agent): State<Arc<Agent>>,
    request: Request<api::BundleRequest>,
) -> Answer<api::BundleResponse> {
    let Json(request) = request?;
    let bundle = agent.issuing.bundle(request, unix_seconds()).map_err(Problem::refused)?;
    Ok(Json(api::BundleResponse { bundle: bundle.to_string() }))
}

pub async fn invitations(State(agent): State<Arc<Agent>>) -> Json<Vec<api::Invitation>> {
    Json(agent.issuing.invitations())
}

pub async fn take_back(
    State(agent): State<Arc<Agent>>,
    request: Request<api::TakeBackRequest>,
) -> Answer<api::Invitation> {
    let Json(api::TakeBackRequest { id }) = request?;
    let issuing = agent.issuing.clone();
    let taken = spawn_blocking(move || issuing.take_back(&id, unix_seconds())).await;
    taken.map_err(|error| Problem::refused(error.to_string()))?.map(Json).map_err(Problem::refused)
}
