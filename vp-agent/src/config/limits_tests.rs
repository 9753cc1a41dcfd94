//! Limits as they are written.

use super::limits::of_request;
use super::{Config, HostNetworks};
use std::path::Path;
use vp::addr::{Bounds, Limits, Mode, Name, Rates};

const KEY: &str = "iFWSbRyEHJmYv5IyxSEEhWyNrGBlOtQbyyzHjdx3cBU=";

fn parse(more: &str) -> Result<Config, String> {
    let text = format!("site: factory\npool: [10.0.1.0/24]\n{more}");
    Config::parse(Path::new("agent.yaml"), &text, &HostNetworks::default()).map_err(|error| error.to_string())
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn bits(inbound: u64, outbound: u64) -> Bounds {
    let rates = |bits| Rates { bits_per_second: Some(bits), packets_per_second: None };
    Bounds { inbound: rates(inbound), outbound: rates(outbound), ..Bounds::default() }
}

#[test]
fn limits_have_one_shape_wherever_they_stand() {
    let written = "{rate: 10Mbit, rate_outbound: 2Mbit, packets_inbound: 1000/s, flows: 100, new_flows: 50/s, \
                   mode: observe, per_caller: {rate: 1Mbit, flows: 5}}";
    let text = format!(
        "uplink: 20Mbit
trust: [{{tenant: acme, authority: {KEY}}}]
peers: [{{site: cloud, public_key: {KEY}, limits: {written}}}]
tenants: [{{tenant: acme, limits: {written}}}]
expose: [{{name: web, target: 10.0.0.5, ports: [tcp/80], allow: [any], limits: {written}}}]
map: [{{service: \"*.cloud\", limits: {written}}}]
"
    );
    let mut all = Bounds { flows: Some(100), new_flows_per_second: Some(50), ..bits(10_000_000, 2_000_000) };
    all.inbound.packets_per_second = Some(1000);
    let per_caller = Bounds { flows: Some(5), ..bits(1_000_000, 1_000_000) };
    let limits = Limits { all, per_caller, mode: Mode::Observe };
    let config = parse(&text).expect("a good file");
    let settings = &config.settings;
    assert_eq!(settings.exposures[0].limits, limits);
    assert_eq!(settings.limits.uplink, Some(20_000_000));
    assert_eq!(settings.limits.peers, [(name("cloud"), limits)].into());
    assert_eq!(settings.limits.tenants, [(name("acme"), limits)].into());
    assert_eq!(settings.limits.mappings, [("*.cloud".parse().expect("a pattern"), limits)].into());
    assert_eq!(config.warnings, Vec::<String>::new());
    let request = "rate_outbound=2Mbit,rate=10Mbit,packets_inbound=1000/s,flows=100,new_flows=50/s,mode=observe,\
                   per_caller.rate=1Mbit,per_caller.flows=5";
    let request: Vec<String> = request.split(',').map(str::to_owned).collect();
    assert_eq!(of_request(&request), Ok(limits));
}

#[test]
fn a_limit_that_is_none_is_refused_where_it_stands() {
    let in_file = |limits: &str| {
        let head = "expose:\n  - name: web\n    target: 10.0.0.5\n    ports: [tcp/80]\n    allow: [any]\n";
        parse(&format!("{head}    limits: {limits}\n")).expect_err("refused")
    };
    for (limits, expected) in [
        ("{mode: warn}", ":8:20: mode: \"warn\" is no mode, expected enforce or observe"),
        (
            "{per_caller: {rate: 5}}",
            ":8:33: per_caller.rate: \"5\" is no rate, expected such as 500kbit, 10Mbit or 1Gbit",
        ),
        ("{per_caller: {mode: observe}}", ":8:26: per_caller: expected neither mode nor per_caller in it"),
        ("{packets: 1000}", ":8:23: packets: \"1000\" is no rate, expected such as 50/s"),
        ("{rates: 1Mbit}", ":8:14: unknown key \"rates\", expected rate, rate_inbound, "),
    ] {
        let error = in_file(limits);
        assert!(error.contains(expected), "{error}");
    }
    for (limit, expected) in [
        ("rates=1Mbit", "limits: \"rates\" is no limit, expected rate, rate_inbound"),
        ("per_caller.mode=observe", "limits: \"per_caller.mode\" is no limit"),
        ("rate", "limits: rate: \"\" is no rate"),
        ("flows=0", "limits: flows: 0, expected 1 or more"),
    ] {
        let error = of_request(&[limit.to_owned()]).expect_err("refused").to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    assert!(parse("uplink: fast\n").expect_err("refused").contains(":3:9: uplink: \"fast\" is no rate"));
    let twice = "tenants:\n  - {tenant: acme, limits: {flows: 1}}\n  - {tenant: acme, limits: {flows: 2}}\n";
    assert!(parse(twice).expect_err("refused").contains(":5:14: tenant acme is there twice, first in line 4"));
    let warnings = parse("tenants: [{tenant: acme, limits: {flows: 1}}]\n").expect("good").warnings;
    assert!(warnings[0].contains("no authority of it is in `trust`"), "{warnings:?}");
}
