//! What the kernel counts of the TUN and of the tunnels' socket, on the way to and from this gateway.

use super::{counter, gauge};
use crate::agent::Agent;
use prometheus_client::registry::Registry;

pub(super) async fn register(registry: &mut Registry, agent: &Agent) {
    let interface = agent.wanted.lock().await.config.interface.clone();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let dropped = tun_drops(&read("/proc/net/dev"), &interface);
    registry.register("tun_dropped_packets", "Packets that the TUN's queue had no room for", counter(dropped));
    let port = agent.listen.port();
    let sockets = ["/proc/net/udp", "/proc/net/udp6"].map(|path| sockets(&read(path), port));
    let waiting = sockets.iter().map(|(bytes, _)| bytes).sum();
    let dropped = sockets.iter().map(|(_, drops)| drops).sum();
    registry.register(
        "socket_receive_queue_bytes",
        "Datagrams that wait in the tunnels' socket, with the kernel's own share",
        gauge(waiting),
    );
    registry.register(
        "socket_dropped_datagrams",
        "Datagrams that the tunnels' socket had no room for",
        counter(dropped),
    );
}

/// What was sent to an interface and not taken (proc_net(5)): the twelfth of its numbers.
fn tun_drops(table: &str, interface: &str) -> u64 {
    const SENT_DROPPED: usize = 11;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    line.and_then(|numbers| numbers.split_whitespace().nth(SENT_DROPPED)?.parse().ok()).unwrap_or(0)
}

/// Bytes that wait and datagrams that were dropped, of all sockets of this port.
fn sockets(table: &str, port: u16) -> (u64, u64) {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields.get(1)?.rsplit(':').next().and_then(hex)? == u64::from(port);
        let waiting = fields.get(4)?.rsplit(':').next().and_then(hex)?;
        is_ours.then_some((waiting, fields.last()?.parse::<u64>().ok()?))
    });
    rows.fold((0, 0), |(bytes, drops), (waiting, dropped)| (bytes + waiting, drops + dropped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read_as_it_writes_them() {
        let table = "Inter-|   Receive                                                |  Transmit\n\
                     \x20face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
                     \x20   lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
                     \x20 vp0:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16\n";
        assert_eq!((tun_drops(table, "vp0"), tun_drops(table, "vp"), tun_drops("", "vp0")), (12, 0, 0));
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     \x20 10: 00000000:CA6C 00000000:0000 07 00000000:00000300 00:00000000 00000000     0        0 1 2 0 7\n\
                     \x20 11: 00000000:CA6C 00000000:0000 07 00000000:00000001 00:00000000 00000000     0        0 1 2 0 1\n\
                     \x20 12: 00000000:0035 00000000:0000 07 00000000:00000001 00:00000000 00000000     0        0 1 2 0 9\n";
        assert_eq!(sockets(table, 51820), (0x301, 8));
        assert_eq!(sockets("nonsense\nmore: of it\n", 51820), (0, 0));
    }
}
