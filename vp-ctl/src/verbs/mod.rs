//! The verbs: one file each, with its arguments, its question to the agent and what it shows.

mod audit;
mod authority;
mod certificate;
mod check;
mod completions;
mod doctor;
mod drain;
mod explain;
mod expose;
mod flows;
mod gather;
mod key;
mod man;
mod map;
mod peer;
mod ping;
mod reload;
mod revocations;
mod services;
mod status;
mod unexpose;
mod unmap;
mod whois;

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::{Command, Subcommand};

#[derive(Subcommand, Debug)]
pub enum Verb {
    Map(map::Map),
    Unmap(unmap::Unmap),
    Expose(expose::Expose),
    Unexpose(unexpose::Unexpose),
    Drain(drain::Drain),
    Undrain(drain::Undrain),
    Peer(peer::Peer),
    Services(services::Services),
    Status(status::Status),
    Flows(flows::Flows),
    Whois(whois::Whois),
    Ping(ping::Ping),
    Explain(explain::Explain),
    Audit(audit::Audit),
    Doctor(doctor::Doctor),
    Gather(gather::Gather),
    Key(key::Key),
    Authority(authority::Authority),
    Certificate(certificate::Certificate),
    Revocations(revocations::Revocations),
    Check(check::Check),
    Reload(reload::Reload),
    Completions(completions::Completions),
    #[command(hide = true)]
    Man(man::Man),
}

impl Verb {
    /// `whole` builds the description of the whole command line, for the verbs that print it.
    pub fn run(self, client: &Client, screen: &Screen, whole: fn() -> Command) -> Result<Outcome, Failure> {
        match self {
            Self::Map(verb) => verb.run(client, screen),
            Self::Unmap(verb) => verb.run(client, screen),
            Self::Expose(verb) => verb.run(client, screen),
            Self::Unexpose(verb) => verb.run(client, screen),
            Self::Drain(verb) => verb.run(client, screen),
            Self::Undrain(verb) => verb.run(client, screen),
            Self::Peer(verb) => verb.run(client, screen),
            Self::Services(verb) => verb.run(client, screen),
            Self::Status(verb) => verb.run(client, screen),
            Self::Flows(verb) => verb.run(client, screen),
            Self::Whois(verb) => verb.run(client, screen),
            Self::Ping(verb) => verb.run(client, screen),
            Self::Explain(verb) => verb.run(client, screen),
            Self::Audit(verb) => verb.run(client, screen),
            Self::Doctor(verb) => verb.run(client, screen),
            Self::Gather(verb) => verb.run(client, screen),
            Self::Key(verb) => verb.run(screen),
            Self::Authority(verb) => verb.run(screen),
            Self::Certificate(verb) => verb.run(screen),
            Self::Revocations(verb) => verb.run(client, screen),
            Self::Check(verb) => verb.run(screen),
            Self::Reload(verb) => verb.run(client, screen),
            Self::Completions(verb) => verb.run(screen, whole()),
            Self::Man(verb) => verb.run(whole()),
        }
    }
}
