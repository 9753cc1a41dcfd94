//! What is exposed, offered and mapped, and under which address. Knows names, leases and ports; no packets, no flows.

mod callers;
mod clients;
mod exposed;
mod offer;
mod presences;
mod settings;

pub use callers::{Caller, Callers};
pub use clients::Clients;
pub use exposed::{Exposed, ExposedServices, Resting};
pub use offer::{NamedCaller, NamedHost, OFFER_SERVICES_MAX, Offer, OfferedService};
pub use presences::{LeaseChanges, PeerOffer, Presence, Presences};
pub use settings::{CallerSelector, Client, Exposure, Mapping, ServicePattern, Source, Target};
