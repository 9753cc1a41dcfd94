//! What is exposed, offered and mapped, and under which address.

mod offer;
mod settings;

pub use offer::{NamedCaller, OFFER_SERVICES_MAX, Offer, OfferedService};
pub use settings::{CallerSelector, Client, Exposure, Mapping, ServicePattern, Source, Target};
