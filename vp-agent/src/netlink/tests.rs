//! Against the real kernel, each test in a network namespace of its own that ends with it.

use super::*;
use crate::sys::{Tun, enter_new_network_namespace};
use std::process::Command;

/// What `ip` says, one line each, without what varies.
fn ip(arguments: &str) -> Vec<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn rules() -> Vec<String> {
    let ours = |line: &String| line.contains(&TABLE.to_string());
    [ip("rule"), ip("-6 rule")].concat().into_iter().filter(ours).collect()
}

fn routes() -> Vec<String> {
    let in_table = |family: &str| {
        let output = Command::new("ip").args([family, "route", "show", "table", "7076"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    [in_table("-4"), in_table("-6")].concat()
}

fn wanted() -> Wanted {
    Wanted {
        mtu: 1400,
        pool: vec!["10.0.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        gateway: vec!["10.0.1.1".parse().unwrap(), "fd00:1::1".parse().unwrap()],
        ..Wanted::default()
    }
}

/// A namespace of this thread's own and a runtime in it.
fn in_new_namespace<F: Future>(test: impl FnOnce(Tun) -> F) -> F::Output {
    enter_new_network_namespace();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(Tun::open("vp-test").unwrap()))
}

#[test]
fn the_interface_its_addresses_routes_and_rules_come_and_go() {
    in_new_namespace(async |_tun: Tun| {
        let mut network = Network::open("vp-test").await.unwrap();
        for _ in 0..2 {
            assert_eq!(network.apply(&wanted()).await.unwrap(), Vec::<String>::new());
            let link = ip("-d link show vp-test").concat();
            assert!(link.contains("UP") && link.contains("mtu 1400") && link.contains("addrgenmode none"), "{link}");
            assert!(link.contains("gso_max_size 61000 gso_max_segs 64"), "{link}");
            let addresses = ip("-br address show vp-test").concat();
            assert!(addresses.ends_with("10.0.1.1/32 fd00:1::1/128"), "{addresses}");
            assert_eq!(
                rules(),
                ["7076: from all to 10.0.1.0/24 lookup 7076", "7076: from all to fd00:1::/64 lookup 7076"]
            );
            let routes = routes();
            assert_eq!(routes.len(), 4, "{routes:?}");
            assert_eq!(routes[0], "10.0.1.0/24 dev vp-test proto static scope link src 10.0.1.1");
            assert!(routes[1].starts_with("unreachable 10.0.1.0/24"), "{routes:?}");
            for name in ["forwarding", "route_localnet", "accept_local"] {
                assert_eq!(conf(&format!("ipv4/conf/vp-test/{name}")).as_deref(), Some("1"), "{name}");
            }
        }
        let smaller = Wanted { pool: vec!["10.0.1.0/25".parse().unwrap()], gateway: Vec::new(), ..wanted() };
        network.apply(&smaller).await.unwrap();
        assert_eq!(rules(), ["7076: from all to 10.0.1.0/25 lookup 7076"]);
        assert_eq!(routes().len(), 2);
        assert_eq!(ip("-br address show vp-test").concat().split(' ').count(), 2);
        network.remove().await.unwrap();
        assert_eq!((rules(), routes()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn a_killed_agent_leaves_presences_unreachable_and_its_successor_takes_over() {
    in_new_namespace(async |tun: Tun| {
        let mut network = Network::open("vp-test").await.unwrap();
        network.apply(&wanted()).await.unwrap();
        drop((network, tun));
        assert_eq!(routes().iter().filter(|route| route.starts_with("unreachable")).count(), 2);
        let route = Command::new("ip").args(["route", "get", "10.0.1.9"]).output().unwrap();
        assert!(!route.status.success());
        let _tun = Tun::open("vp-test").unwrap();
        let mut network = Network::open("vp-test").await.unwrap();
        assert_eq!(rules(), Vec::<String>::new());
        network.apply(&wanted()).await.unwrap();
        assert_eq!((rules().len(), routes().len()), (2, 4));
        network.remove().await.unwrap();
        assert_eq!((rules(), routes()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn another_agent_on_the_host_is_not_disturbed() {
    in_new_namespace(async |_tun: Tun| {
        let mut network = Network::open("vp-test").await.unwrap();
        network.apply(&wanted()).await.unwrap();
        let _other = Tun::open("vp-other").unwrap();
        let error = Network::open("vp-other").await.err().unwrap().to_string();
        assert!(error.contains("in use by another interface"), "{error}");
        assert_eq!(rules().len(), 2);
    });
}

#[test]
fn presences_answer_on_the_lan_they_lie_in_and_others_entries_stay() {
    in_new_namespace(async |_tun: Tun| {
        ip("link add lan type veth peer name far");
        ip("link set lan up");
        ip("neigh add proxy 10.0.9.9 dev lan");
        ip("neigh add proxy 10.0.1.77 dev lan");
        let proxies = || {
            let mut proxies = [ip("-4 neigh show proxy"), ip("-6 neigh show proxy")].concat();
            proxies.iter_mut().for_each(|line| *line = line.split(' ').next().unwrap().to_owned());
            proxies.sort();
            proxies
        };
        let mut network = Network::open("vp-test").await.unwrap();
        let presences = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let with_proxy = Wanted {
            proxy: Some("lan".into()),
            presences: presences(&["10.0.1.1/32", "10.0.1.4/31", "fd00:1::5/128", "fd00:1::/100"]),
            ..wanted()
        };
        let warnings = network.apply(&with_proxy).await.unwrap();
        assert_eq!(proxies(), ["10.0.1.1", "10.0.1.4", "10.0.1.5", "10.0.9.9", "fd00:1::5"]);
        assert!(warnings.iter().any(|line| line.contains("fd00:1::/100 is too large")), "{warnings:?}");
        assert!(warnings.iter().any(|line| line.contains("net.ipv4.conf.lan.forwarding is 0")), "{warnings:?}");
        assert_eq!(conf("ipv6/conf/lan/proxy_ndp").as_deref(), Some("1"));
        network.set_presences(&presences(&["10.0.1.1/32", "10.0.1.6/32"])).await.unwrap();
        assert_eq!(proxies(), ["10.0.1.1", "10.0.1.6", "10.0.9.9"]);
        network.remove().await.unwrap();
        assert_eq!(proxies(), ["10.0.9.9"]);
        assert_eq!(conf("ipv6/conf/lan/proxy_ndp").as_deref(), Some("0"));
        assert_ne!(conf("ipv4/neigh/lan/proxy_delay").as_deref(), Some("0"));
    });
}

#[test]
fn the_hosts_own_networks_are_listed_without_ours() {
    in_new_namespace(async |_tun: Tun| {
        ip("link add lan type veth peer name far");
        ip("link set lan up");
        ip("link set far up");
        ip("address add 192.0.2.1/24 dev lan");
        ip("route add default via 192.0.2.254");
        ip("route add 198.51.100.0/24 via 192.0.2.253 table 99");
        let mut network = Network::open("vp-test").await.unwrap();
        network.apply(&wanted()).await.unwrap();
        let host = HostNetworks::read().await.unwrap();
        assert!(host.interfaces.iter().any(|name| name == "lan"));
        let address = HostAddress {
            interface: "lan".into(),
            address: "192.0.2.1".parse().unwrap(),
            network: "192.0.2.0/24".parse().unwrap(),
        };
        assert!(host.addresses.contains(&address), "{host:?}");
        let routes: Vec<_> = host.routes.iter().filter(|r| r.destination.addr().is_ipv4()).collect();
        let seen: Vec<_> = routes.iter().map(|r| (r.destination.to_string(), r.table)).collect();
        assert_eq!(seen, [("198.51.100.0/24".into(), 99), ("0.0.0.0/0".into(), 254), ("192.0.2.0/24".into(), 254)]);
        assert_eq!(routes[1].gateway, Some("192.0.2.254".parse().unwrap()));
    });
}
