//! `vp-ctl peer`: stock WireGuard peers, added with all that they need, and taken away.

use super::key::{new_private, warn_if_others_can_read};
use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use qrcode::{EcLevel, QrCode};
use serde_json::json;
use std::fmt::Write;
use std::io::IsTerminal;
use vp_proto::api::{AddPeerRequest, AddPeerResponse, Done, RemovePeerRequest};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// The peer's own address inside its tunnel, where it is alone; the first that is not an agent's.
const ADDRESSES: &str = "198.19.0.2/32, fd76:7000:0:2::2/128";
/// Where services are inside a tunnel.
const SERVICES: &str = "198.18.0.0/16, fd76:7000:0:1::/64";
const KEEPALIVE_SECONDS: u16 = 25;

/// Let a laptop or phone in that runs WireGuard and nothing of ours, or take it away
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl peer add laptop --stock --endpoint office.example.com:51820
  vp-ctl expose wiki --target 10.0.0.5 --port tcp/80 --allow site:laptop
  vp-ctl peer remove laptop")]
pub struct Peer {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Add(Add),
    Remove(Remove),
}

/// Add a peer, and print its configuration for wg-quick and, on a terminal, that as a QR code for a phone
///
/// The peer's private key is made here, printed in the configuration and kept nowhere. The peer uses the services whose `allow`
/// says so, by their addresses inside the tunnel, which are in the configuration as comments, and reaches nothing else.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl peer add laptop --stock --endpoint office.example.com:51820
  (umask 077; vp-ctl peer add laptop --stock --group staff > laptop.conf)
  vp-ctl peer add phone --stock --public-key \"$(cat phone.pub)\"")]
struct Add {
    /// What the peer is called here: `allow` knows it as site:NAME
    name: String,
    /// It runs plain WireGuard. Sites with an agent are in the configuration file, or come by certificate
    #[arg(long, required = true)]
    stock: bool,
    /// Where the peer reaches this gateway
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Groups that it is of, for `allow: [group:NAME]`
    #[arg(long = "group", short, value_name = "NAME", value_delimiter = ',')]
    groups: Vec<String>,
    /// The peer's own public key, if it made its key itself
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// Print the QR code also where the output is no terminal
    #[arg(long)]
    qr: bool,
}

/// Take away a peer that was added
///
/// Its flows end, and it gets silence.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vp-ctl peer remove laptop")]
struct Remove {
    /// What it is called here
    name: String,
}

impl Peer {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        match self.what {
            What::Add(add) => add.run(client, screen),
            What::Remove(Remove { name }) => {
                let answer = client.post("/v1/remove-peer", &RemovePeerRequest { site: name.clone() })?;
                let done: Done = screen.show(&answer, |_, page| page.line(format!("{name} is no peer any more")))?;
                screen.warn(&done.warnings);
                Ok(Outcome::Done)
            }
        }
    }
}

impl Add {
    fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { name, stock: _, endpoint, groups, public_key, qr } = self;
        let private = public_key.is_none().then(new_private);
        if private.is_some() {
            warn_if_others_can_read(screen);
        }
        let made = private.as_ref().map(|private| STANDARD.encode(PublicKey::from(&StaticSecret::from(**private))));
        let public_key = public_key.or(made).unwrap_or_default();
        let request = AddPeerRequest { site: name, public_key, groups, endpoint };
        let answer: AddPeerResponse = crate::json::decode(&client.post("/v1/add-peer", &request)?)?;
        let private = private.map(|private| Zeroizing::new(STANDARD.encode(*private)));
        let file = Zeroizing::new(configuration(&answer, private.as_ref().map(|private| private.as_str())));
        if screen.is_json() {
            let whole = json!({"site": request.site, "configuration": *file, "agent": answer});
            return screen.print(&Zeroizing::new(format!("{whole:#}\n"))).map(|()| Outcome::Done);
        }
        screen.print(&file)?;
        if private.is_some() && (qr || std::io::stdout().is_terminal()) {
            match code(&file) {
                Ok(code) => screen.print(&Zeroizing::new(format!("\n{code}")))?,
                Err(why) => screen.note(&why),
            }
        }
        screen.warn(&answer.warnings);
        Ok(Outcome::Done)
    }
}

/// For wg-quick(8) and the WireGuard apps.
fn configuration(answer: &AddPeerResponse, private: Option<&str>) -> String {
    let AddPeerResponse { public_key, endpoint, mtu, services, .. } = answer;
    let private = private.map_or("# PrivateKey = the peer's own".to_owned(), |key| format!("PrivateKey = {key}"));
    let mut file = format!(
        "[Interface]\n{private}\nAddress = {ADDRESSES}\nMTU = {mtu}\n\n\
         [Peer]\nPublicKey = {public_key}\nEndpoint = {endpoint}\nAllowedIPs = {SERVICES}\n\
         PersistentKeepalive = {KEEPALIVE_SECONDS}\n"
    );
    for service in services {
        let (addresses, ports) = (service.addresses.join(" or "), service.ports.join(", "));
        // Writing to a string does not fail.
        let _ = writeln!(file, "# {}: {addresses}, {ports}", service.name);
    }
    file
}

/// As characters, two rows in one; black on white whatever the terminal's colours.
fn code(text: &str) -> Result<String, String> {
    // Comments are for people.
    let text: Zeroizing<String> =
        Zeroizing::new(text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect());
    let code = QrCode::with_error_correction_level(&*text, EcLevel::L);
    let code = code.map_err(|error| format!("no QR code holds this configuration: {error}"))?;
    let drawn = code.render::<qrcode::render::unicode::Dense1x2>().build();
    Ok(drawn.lines().map(|line| format!("\u{1b}[30;107m{line}\u{1b}[0m\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp_proto::api::PeerService;

    #[test]
    fn the_configuration_is_what_wg_quick_reads_with_services_as_comments() {
        let service = PeerService {
            name: "wiki".to_owned(),
            addresses: vec!["198.18.0.2".to_owned(), "fd76:7000:0:1::2".to_owned()],
            ports: vec!["tcp/80".to_owned(), "icmp".to_owned()],
        };
        let answer = AddPeerResponse {
            public_key: "KEY=".to_owned(),
            endpoint: "office.example.com:51820".to_owned(),
            mtu: 1420,
            services: vec![service],
            warnings: Vec::new(),
        };
        let expected = "\
[Interface]
PrivateKey = SECRET=
Address = 198.19.0.2/32, fd76:7000:0:2::2/128
MTU = 1420

[Peer]
PublicKey = KEY=
Endpoint = office.example.com:51820
AllowedIPs = 198.18.0.0/16, fd76:7000:0:1::/64
PersistentKeepalive = 25
# wiki: 198.18.0.2 or fd76:7000:0:1::2, tcp/80, icmp
";
        assert_eq!(configuration(&answer, Some("SECRET=")), expected);
        assert!(configuration(&answer, None).contains("\n# PrivateKey = the peer's own\n"));
        assert!(code(expected).expect("a code").lines().count() > 20);
    }
}
