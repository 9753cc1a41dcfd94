//! What the operator wants empty.

use super::Problem;
use crate::agent::{Agent, Refused};
use crate::state::Drained;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::net::IpAddr;
use std::sync::Arc;
use vp::node::Settings;
use vp_proto::api::{Done, DrainRequest};

pub async fn drain(
    State(agent): State<Arc<Agent>>,
    request: Result<Json<DrainRequest>, JsonRejection>,
) -> Result<Json<Done>, Problem> {
    let Json(DrainRequest { service, target, drained }) = request?;
    let target: Option<IpAddr> = match target.as_deref().map(str::parse) {
        Some(Ok(target)) => Some(target),
        Some(Err(_)) => return Err(Problem::refused("target: expected an address")),
        None => None,
    };
    let verb = if drained { "drain" } else { "undrain" };
    let what = format!("vp-ctl {verb} {}", service.as_deref().unwrap_or_default());
    let wanted = Drained { service, target };
    let change = agent.change(what.trim_end().to_owned(), |runtime, _, settings| {
        let known = runtime.drained.iter().position(|known| *known == wanted);
        match (known, drained) {
            (Some(_), true) => {}
            (Some(known), false) => drop(runtime.drained.remove(known)),
            (None, true) => {
                check(&wanted, settings)?;
                runtime.drained.push(wanted);
            }
            (None, false) => {
                return Err(Refused::Request("that is not drained; `vp-ctl status` shows what is".to_owned()));
            }
        }
        Ok(())
    });
    Ok(Json(Done { warnings: change.await? }))
}

fn check(Drained { service, target }: &Drained, settings: &Settings) -> Result<(), Refused> {
    let Some(service) = service else {
        return match target {
            Some(_) => Err(Refused::Request("a target without its service, expected both".to_owned())),
            None => Ok(()),
        };
    };
    let exposure = settings.exposures.iter().find(|exposure| exposure.name.as_str() == service);
    let exposure = exposure.ok_or_else(|| Refused::Request(format!("{service:?} is no service of this site")))?;
    match target {
        Some(target) if !exposure.target.addresses().contains(target) => {
            Err(Refused::Request(format!("{target} is no target of {service}")))
        }
        Some(_) | None => Ok(()),
    }
}
