//! What is exposed, offered and mapped, and under which address.

mod offer;

pub use offer::{NamedCaller, OFFER_SERVICES_MAX, Offer, OfferedService};
