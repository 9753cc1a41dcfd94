//! What other programs' nftables rules do to a packet, as far as their listing (`nft -j list ruleset`) tells. Where a rule
//! cannot be read, nothing is said of what it decides: a finding is to be true.

use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// nft itself has a limit of 16 jumps.
const DEPTH_MAX: usize = 16;
/// Rules looked at for one packet: a host with more has sets.
const RULES_MAX: usize = 20_000;

/// The first packet of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub input: Option<&'a str>,
    pub output: Option<&'a str>,
    /// Of some host in this prefix.
    pub source: Option<IpNet>,
    pub destination: Option<IpNet>,
    pub protocol: &'a str,
    pub port: Option<u16>,
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    Drop,
    Masquerade,
}

/// Where it is done: `ip filter` and `FORWARD`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub table: String,
    pub chain: String,
}

pub(super) struct Ruleset<'a> {
    chains: Vec<&'a Value>,
    rules: Vec<&'a Value>,
}

/// Whether a rule is for the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fits {
    Yes,
    No,
    Unknown,
}

/// How a chain ends for the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Accepted,
    Done,
    Passed,
    Unknown,
}

impl<'a> Ruleset<'a> {
    pub(super) fn new(listing: &'a Value) -> Self {
        let entries = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of = |kind: &str| entries.iter().map(|entry| &entry[kind]).filter(|value| value.is_object()).collect();
        Self { chains: of("chain"), rules: of("rule") }
    }

    /// The base chains at this hook that surely do this to the packet, but for those of `own`, a table.
    pub(super) fn doers(&self, deed: Deed, hook: &str, packet: &Packet, own: &str) -> Vec<Place> {
        let kind = match deed {
            Deed::Drop => "filter",
            Deed::Masquerade => "nat",
        };
        let chains = self.chains.iter().filter(|chain| chain["hook"] == hook && chain["type"] == kind);
        let chains = chains.filter(|chain| chain["table"] != own && is_of_family(&chain["family"], packet));
        let does = |chain: &&&Value| {
            let mut left = RULES_MAX;
            let end = self.walk(chain, deed, packet, DEPTH_MAX, &mut left);
            let by_policy = deed == Deed::Drop && end == End::Passed && chain["policy"] == "drop";
            end == End::Done || by_policy
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let place = |chain: &&Value| Place {
            table: format!("{} {}", text(&chain["family"]), text(&chain["table"])),
            chain: text(&chain["name"]),
        };
        chains.filter(does).map(place).collect()
    }

    fn walk(&self, chain: &Value, deed: Deed, packet: &Packet, depth: usize, left: &mut usize) -> End {
        let rules = self.rules.iter().filter(|rule| {
            rule["family"] == chain["family"] && rule["table"] == chain["table"] && rule["chain"] == chain["name"]
        });
        let mut is_sure = true;
        for rule in rules {
            let parts = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            let fits = fit(parts, packet);
            if fits == Fits::No {
                continue;
            }
            if *left == 0 || depth == 0 {
                return End::Unknown;
            }
            *left -= 1;
            let sure = is_sure && fits == Fits::Yes;
            let end = match parts.iter().find_map(|part| verdict(part, deed)) {
                None => continue,
                Some(Verdict::Accept) => End::Accepted,
                Some(Verdict::Deed) => End::Done,
                Some(Verdict::Return) if sure => return End::Passed,
                Some(Verdict::Return) => End::Unknown,
                Some(Verdict::Jump(to)) => self.walk_named(chain, to, deed, packet, depth - 1, left),
                Some(Verdict::Goto(to)) => match self.walk_named(chain, to, deed, packet, depth - 1, left) {
                    End::Passed if sure => return End::Passed,
                    end => end,
                },
            };
            match end {
                End::Passed => {}
                End::Accepted | End::Done if sure => return end,
                // Of what may be done nothing is said, whatever follows.
                End::Accepted | End::Unknown => is_sure = false,
                End::Done => {}
            }
        }
        if is_sure { End::Passed } else { End::Unknown }
    }

    fn walk_named(&self, of: &Value, name: &str, deed: Deed, packet: &Packet, depth: usize, left: &mut usize) -> End {
        let is_it =
            |chain: &&&Value| chain["family"] == of["family"] && chain["table"] == of["table"] && chain["name"] == name;
        self.chains.iter().find(is_it).map_or(End::Unknown, |chain| self.walk(chain, deed, packet, depth, left))
    }
}

enum Verdict<'a> {
    Accept,
    Deed,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

fn verdict(part: &Value, deed: Deed) -> Option<Verdict<'_>> {
    let has = |key: &str| part.get(key).is_some();
    let target = |key: &str| part[key]["target"].as_str();
    // As iptables-nft writes what nft has no words for.
    let foreign = part["xt"]["name"].as_str().filter(|_| part["xt"]["type"] == "target");
    let is_deed = match deed {
        Deed::Drop => has("drop") || has("reject") || foreign == Some("REJECT"),
        Deed::Masquerade => has("masquerade") || has("snat") || matches!(foreign, Some("MASQUERADE" | "SNAT")),
    };
    if is_deed {
        return Some(Verdict::Deed);
    }
    match part {
        _ if has("accept") => Some(Verdict::Accept),
        _ if has("return") => Some(Verdict::Return),
        _ => target("jump").map(Verdict::Jump).or_else(|| target("goto").map(Verdict::Goto)),
    }
}

fn is_of_family(family: &Value, packet: &Packet) -> bool {
    let v4 = packet.destination.or(packet.source).map(|prefix| prefix.addr().is_ipv4());
    match family.as_str() {
        Some("ip") => v4 != Some(false),
        Some("ip6") => v4 != Some(true),
        Some("inet") => true,
        Some(_) | None => false,
    }
}

fn fit(parts: &[Value], packet: &Packet) -> Fits {
    let mut all = Fits::Yes;
    for part in parts {
        let fits = if part["match"].is_object() { fit_match(&part["match"], packet) } else { fit_foreign(part) };
        match fits {
            Fits::No => return Fits::No,
            Fits::Unknown => all = Fits::Unknown,
            Fits::Yes => {}
        }
    }
    all
}

/// A match of iptables without a translation cannot be read. One for the state of connections is nearly always for those
/// that are open already.
fn fit_foreign(part: &Value) -> Fits {
    match part["xt"]["name"].as_str().filter(|_| part["xt"]["type"] == "match") {
        Some("conntrack" | "state") => Fits::No,
        Some("comment") => Fits::Yes,
        Some(_) => Fits::Unknown,
        None if part.get("limit").is_some() => Fits::Unknown,
        None => Fits::Yes,
    }
}

fn fit_match(expression: &Value, packet: &Packet) -> Fits {
    let (left, right) = (&expression["left"], &expression["right"]);
    let fits = match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
        (Some("iifname" | "iif"), _) => any(right, |value| fit_interface(packet.input, value)),
        (Some("oifname" | "oif"), _) => any(right, |value| fit_interface(packet.output, value)),
        (Some("nfproto"), _) => any(right, |value| fit_family(packet, value)),
        (Some("l4proto"), _) => any(right, |value| fit_protocol(packet, value)),
        (_, Some("state")) => any(right, |value| sure(value == "new")),
        // A flow that no rule redirected.
        (_, Some("status")) => any(right, |value| if value == "dnat" { Fits::No } else { Fits::Unknown }),
        (_, _) => fit_header(&left["payload"], right, packet),
    };
    match (expression["op"].as_str(), fits) {
        (Some("!="), Fits::Yes) => Fits::No,
        (Some("!="), Fits::No) => Fits::Yes,
        (Some("==" | "in" | "!="), fits) => fits,
        (Some(_) | None, _) => Fits::Unknown,
    }
}

fn fit_header(header: &Value, right: &Value, packet: &Packet) -> Fits {
    match (header["protocol"].as_str(), header["field"].as_str()) {
        (Some("ip" | "ip6"), Some("saddr")) => any(right, |value| fit_address(packet.source, value)),
        (Some("ip" | "ip6"), Some("daddr")) => any(right, |value| fit_address(packet.destination, value)),
        (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => {
            any(right, |value| fit_protocol(packet, value))
        }
        (Some("icmp" | "icmpv6"), _) => Fits::No,
        (Some(protocol @ ("tcp" | "udp")), _) if protocol != packet.protocol => Fits::No,
        (Some("tcp" | "udp" | "th"), Some("dport")) => any(right, |value| fit_port(packet.port, value)),
        (_, _) => Fits::Unknown,
    }
}

/// One value, or some of a set.
fn any(right: &Value, fit: impl Fn(&Value) -> Fits) -> Fits {
    let Some(values) = right.as_array().or_else(|| right["set"].as_array()) else { return fit(right) };
    let fits: Vec<Fits> = values.iter().map(fit).collect();
    [Fits::Yes, Fits::Unknown].into_iter().find(|wanted| fits.contains(wanted)).unwrap_or(Fits::No)
}

fn sure(is_so: bool) -> Fits {
    if is_so { Fits::Yes } else { Fits::No }
}

fn fit_interface(interface: Option<&str>, value: &Value) -> Fits {
    let (Some(interface), Some(name)) = (interface, value.as_str()) else { return Fits::Unknown };
    sure(match name.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => interface == name,
    })
}

fn fit_family(packet: &Packet, value: &Value) -> Fits {
    let Some(prefix) = packet.destination.or(packet.source) else { return Fits::Unknown };
    match value.as_str() {
        Some("ipv4") => sure(prefix.addr().is_ipv4()),
        Some("ipv6") => sure(prefix.addr().is_ipv6()),
        Some(_) | None => Fits::Unknown,
    }
}

fn fit_protocol(packet: &Packet, value: &Value) -> Fits {
    let number = match packet.protocol {
        "tcp" => 6,
        _ => 17,
    };
    sure(value == packet.protocol || *value == number)
}

fn fit_port(port: Option<u16>, value: &Value) -> Fits {
    let Some(port) = port.map(u64::from) else { return Fits::Unknown };
    match (value.as_u64(), value["range"].as_array().map(Vec::as_slice)) {
        (Some(number), _) => sure(number == port),
        (None, Some([first, last])) => match (first.as_u64(), last.as_u64()) {
            (Some(first), Some(last)) => sure((first..=last).contains(&port)),
            (_, _) => Fits::Unknown,
        },
        (None, _) => Fits::Unknown,
    }
}

fn fit_address(prefix: Option<IpNet>, value: &Value) -> Fits {
    let parsed = match (value.as_str(), value["prefix"]["addr"].as_str(), value["prefix"]["len"].as_u64()) {
        (Some(text), _, _) => text.parse::<IpAddr>().ok().map(IpNet::from),
        (None, Some(text), Some(length)) => {
            let length = u8::try_from(length).ok();
            text.parse().ok().zip(length).and_then(|(address, length): (IpAddr, u8)| IpNet::new(address, length).ok())
        }
        (None, _, _) => None,
    };
    let (Some(prefix), Some(of_rule)) = (prefix, parsed) else { return Fits::Unknown };
    if of_rule.contains(&prefix) {
        Fits::Yes
    } else if prefix.contains(&of_rule) {
        Fits::Unknown
    } else {
        Fits::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn packet<'a>() -> Packet<'a> {
        Packet {
            input: Some("lan0"),
            output: Some("vp7"),
            source: "10.0.0.0/24".parse().ok(),
            destination: "10.0.1.2/32".parse().ok(),
            protocol: "tcp",
            port: Some(80),
        }
    }

    fn chain(table: &str, name: &str, more: &Value) -> Value {
        let mut chain = json!({"family": "inet", "table": table, "name": name});
        chain.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"chain": chain})
    }

    fn rule(table: &str, chain: &str, parts: &Value) -> Value {
        json!({"rule": {"family": "inet", "table": table, "chain": chain, "expr": parts}})
    }

    fn is(left: &Value, op: &str, right: &Value) -> Value {
        json!({"match": {"op": op, "left": left, "right": right}})
    }

    fn doers(deed: Deed, hook: &str, entries: &[Value]) -> Vec<String> {
        let listing = json!({"nftables": entries});
        let found = Ruleset::new(&listing).doers(deed, hook, &packet(), "vp_vp7");
        found.into_iter().map(|place| format!("{} {}", place.table, place.chain)).collect()
    }

    #[test]
    fn a_forward_chain_that_drops_is_found_until_a_rule_accepts_or_may_accept_the_packet() {
        let base =
            |table, policy| chain(table, "FORWARD", &json!({"type": "filter", "hook": "forward", "policy": policy}));
        let accept = json!({"accept": null});
        let out = json!({"meta": {"key": "oifname"}});
        let drops = ["inet filter FORWARD"];
        assert_eq!(doers(Deed::Drop, "forward", &[base("filter", "drop")]), drops);
        assert!(doers(Deed::Drop, "forward", &[base("filter", "accept")]).is_empty());
        assert!(doers(Deed::Drop, "forward", &[base("vp_vp7", "drop")]).is_empty(), "its own");
        assert!(doers(Deed::Drop, "input", &[base("filter", "drop")]).is_empty());
        for (parts, found) in [
            (json!([is(&out, "==", &json!("docker0")), accept]), &drops[..]),
            (json!([is(&out, "!=", &json!("docker0")), accept]), &[]),
            (json!([is(&out, "==", &json!("vp*")), accept]), &[]),
            (json!([is(&out, "==", &json!({"set": ["eth0", "vp7"]})), {"counter": {"packets": 0}}, accept]), &[]),
            (json!([is(&json!({"ct": {"key": "state"}}), "in", &json!(["established", "related"])), accept]), &drops),
            (json!([is(&json!({"payload": {"protocol": "tcp", "field": "dport"}}), "==", &json!(22)), accept]), &drops),
            (
                json!([
                    is(&json!({"payload": {"protocol": "tcp", "field": "dport"}}), "==", &json!({"range": [1, 99]})),
                    accept
                ]),
                &[],
            ),
            (json!([is(&json!({"payload": {"protocol": "udp", "field": "dport"}}), "==", &json!(80)), accept]), &drops),
            (
                json!([is(&json!({"payload": {"protocol": "ip", "field": "saddr"}}), "==", &json!("@known")), accept]),
                &[],
            ),
            (json!([{"xt": {"type": "match", "name": "conntrack"}}, accept]), &drops),
            (json!([{"xt": {"type": "match", "name": "owner"}}, accept]), &[]),
        ] {
            assert_eq!(
                doers(Deed::Drop, "forward", &[base("filter", "drop"), rule("filter", "FORWARD", &parts)]),
                found,
                "{parts}"
            );
        }
    }

    #[test]
    fn rules_are_followed_into_other_chains_as_firewalld_writes_them() {
        let base =
            chain("firewalld", "filter_FORWARD", &json!({"type": "filter", "hook": "forward", "policy": "accept"}));
        let zone = chain("firewalld", "zone", &json!({}));
        let jump = rule("firewalld", "filter_FORWARD", &json!([{"jump": {"target": "zone"}}]));
        let reject = rule("firewalld", "filter_FORWARD", &json!([{"reject": {"type": "icmpx"}}]));
        let allow = rule(
            "firewalld",
            "zone",
            &json!([is(&json!({"meta": {"key": "iifname"}}), "==", &json!("lan0")), {"accept": null}]),
        );
        let found = ["inet firewalld filter_FORWARD"];
        assert_eq!(doers(Deed::Drop, "forward", &[base.clone(), zone.clone(), jump.clone(), reject.clone()]), found);
        assert!(
            doers(Deed::Drop, "forward", &[base.clone(), zone.clone(), jump.clone(), reject.clone(), allow]).is_empty()
        );
        let endless = rule("firewalld", "zone", &json!([{"jump": {"target": "zone"}}]));
        assert!(
            doers(Deed::Drop, "forward", &[base, zone, jump, reject, endless]).is_empty(),
            "it ends, and says nothing"
        );
    }

    #[test]
    fn a_masquerade_is_found_where_it_is_for_the_packet() {
        let base = chain("nat", "POSTROUTING", &json!({"type": "nat", "hook": "postrouting", "policy": "accept"}));
        let masquerade = json!({"masquerade": null});
        let from = json!({"payload": {"protocol": "ip", "field": "saddr"}});
        let prefix = |address: &str, length: u8| json!({"prefix": {"addr": address, "len": length}});
        for (parts, is_found) in [
            (json!([masquerade]), true),
            (json!([{"xt": {"type": "target", "name": "MASQUERADE"}}]), true),
            (json!([is(&from, "==", &prefix("10.0.0.0", 8)), masquerade]), true),
            (json!([is(&from, "==", &prefix("172.17.0.0", 16)), masquerade]), false),
            (json!([is(&json!({"meta": {"key": "oifname"}}), "==", &json!("wan0")), masquerade]), false),
            (json!([is(&json!({"meta": {"key": "oifname"}}), "!=", &json!("lo")), masquerade]), true),
        ] {
            let found = doers(Deed::Masquerade, "postrouting", &[base.clone(), rule("nat", "POSTROUTING", &parts)]);
            assert_eq!(!found.is_empty(), is_found, "{parts}");
        }
    }

    #[test]
    fn any_listing_is_read_without_harm() {
        for listing in [json!(null), json!([]), json!({"nftables": [{"chain": 1}, {"rule": {"expr": 7}}, 5]})] {
            assert_eq!(Ruleset::new(&listing).doers(Deed::Drop, "forward", &packet(), "own"), []);
        }
    }
}
