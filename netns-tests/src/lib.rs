//! A lab of network namespaces for Virtual Presence: sites with hosts, NATs, an internet, captures, bad weather, small
//! servers and hostile peers, and the real binaries started as a user would start them.
//!
//! Never touches the machine's own network, never needs more than root and a few Debian packages, and always cleans up.

mod internet;
mod lab;
mod namespace;
mod nat;
mod plan;
mod process;
mod site;
mod wait;

pub use internet::{Internet, Uplink};
pub use lab::{Lab, story};
pub use namespace::Namespace;
pub use nat::{Access, AccessBox, Filtering, Mapping};
pub use plan::{Families, Plan};
pub use process::Process;
pub use site::{Family, Host, Site, nth};
pub use wait::{DEADLINE, wait_for, wait_until, wait_within};
