//! `vp-ctl expose`: lets other sites use a service of this one.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::{Args, ValueEnum};
use vp_proto::api::{Done, ExposeRequest};

/// Let other sites use a service of this site
///
/// Nothing else of this site becomes reachable. The change is kept when the agent restarts, and shown by `vp-ctl
/// status` as added at run time.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl expose web --target 10.0.0.5 --port tcp/8080 --allow site:factory
  vp-ctl expose web --target 10.0.0.5,10.0.0.6 --port tcp/443,icmp --allow client:plc.factory --source presence")]
pub struct Expose {
    /// The service's name; other sites know it as NAME.SITE
    name: String,
    /// Its address; several are backends that share new flows; a prefix is exposed address by address
    #[arg(long = "target", short, value_name = "ADDRESS", required = true, value_delimiter = ',')]
    target: Vec<String>,
    /// Such as tcp/443, udp/5000-5010 or icmp
    #[arg(long = "port", short, value_name = "PORT", required = true, value_delimiter = ',')]
    ports: Vec<String>,
    /// Who may use it: site:NAME, client:NAME.SITE, group:NAME, tenant:NAME or any
    #[arg(long = "allow", short = 'A', value_name = "SELECTOR", required = true, value_delimiter = ',')]
    allow: Vec<String>,
    /// Whom the server sees: the gateway (masquerade), or an address of the pool for each caller (presence)
    #[arg(long, short, value_enum, value_name = "SOURCE")]
    source: Option<Source>,
    /// How its targets are checked: tcp/PORT, or http/PORT/PATH
    #[arg(long, value_name = "CHECK")]
    health: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Source {
    Masquerade,
    Presence,
}

impl Expose {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { name, target, ports, allow, source, health } = self;
        let source = source.map(|source| match source {
            Source::Masquerade => "masquerade".to_owned(),
            Source::Presence => "presence".to_owned(),
        });
        let request = ExposeRequest { name, target, ports, allow, source, health };
        let answer = client.post("/v1/expose", &request)?;
        let ExposeRequest { name, target, ports, allow, .. } = request;
        let done: Done = screen.show(&answer, |_, page| {
            let [target, ports, allow] = [target, ports, allow].map(|list| list.join(", "));
            page.line(format!("{name} exposed: {ports} of {target}, to {allow}"));
        })?;
        screen.warn(&done.warnings);
        Ok(Outcome::Done)
    }
}
