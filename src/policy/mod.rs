//! May this flow exist? A decision uses the peer's authenticated identity, the service, protocol and port; never an
//! address that a peer claims.

mod port;
mod selector;

pub use port::{PortMap, PortRange, PortSpecError, Protocol};
pub use selector::{Identity, Selector, SelectorError};
