//! May this flow exist? A decision uses the peer's authenticated identity, the service, protocol and port; never an
//! address that a peer claims.
