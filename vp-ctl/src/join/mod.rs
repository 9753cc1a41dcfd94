//! What `vp-ctl join` puts on a new gateway, and what an issuer's `vp-ctl invite` prepares for it.

pub mod configuration;
pub mod host;
pub mod offer;
