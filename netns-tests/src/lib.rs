//! A lab of network namespaces for Virtual Presence: sites with hosts, NATs, an internet, captures, bad weather, small
//! servers and hostile peers, and the real binaries started as a user would start them.
//!
//! Never touches the machine's own network, never needs more than root and a few Debian packages, and always cleans up.

pub mod agent;
pub mod authority;
pub mod browser;
pub mod capture;
pub mod craft;
mod download;
mod etcd;
pub mod hostile;
mod hub;
mod internet;
mod lab;
pub mod names;
mod namespace;
mod nat;
mod plan;
mod process;
pub mod resolved;
mod scan;
pub mod server;
pub mod shim;
mod site;
mod wait;
pub mod world;

pub use agent::{Agent, Config, Key, Peer};
pub use capture::{Capture, Captured};
pub use download::Download;
pub use etcd::Etcd;
pub use hub::{HubSetup, HubWorld, TLS_PORT, path};
pub use internet::{Internet, Uplink};
pub use lab::{Lab, story};
pub use namespace::Namespace;
pub use nat::{Access, AccessBox, Filtering, Mapping};
pub use plan::{Families, Plan};
pub use process::Process;
pub use server::{TcpServer, UdpEcho};
pub use shim::{Shim, Weather};
pub use site::{Family, Host, Site, nth};
pub use wait::{DEADLINE, wait_for, wait_until, wait_within};
pub use world::{Setup, Station, World};
