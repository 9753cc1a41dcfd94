//! Gateways with several workers: the work is shared out between them, nothing overtakes within a flow, and kill -9 and a
//! new start are as with one.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT --+
//!              (2 workers)              |
//!                                   internet -- cloud gateway -- web .5
//!   plc .2 -- factory2 gateway -- NAT --+        (2 workers)
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::{Content, sum_of};
use netns_tests::world::map;
use netns_tests::{Agent, Download, Families, Lab, Namespace, Plan, Setup, Station, TcpServer, World, story, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const BYTES: usize = 16 << 20;
/// So many that it would take a coin to show the same side more than twenty times, were all of them on one queue.
const STREAMS: usize = 12;

fn world(lab: &Lab, plan: &Plan) -> Result<World> {
    let cloud = "workers: 2\nexpose:\n  - name: web\n    target: {web}\n    ports: [tcp/80, tcp/9, udp/9]\n    allow: [any]\n    \
                 source: presence\n";
    let factory = "workers: 2\n".to_owned() + &map("web.cloud");
    World::new(lab, &Setup { factories: 2, cloud: cloud.to_owned(), factory, ..Setup::new(plan) })
}

fn plan() -> Result<Plan> {
    Plan::named("same", Families::V4)
}

fn callers(world: &World) -> Result<Vec<(Namespace, IpAddr)>> {
    let caller = |station: &Station| Ok((station.host.namespace.clone(), station.agent.presence("web.cloud")?));
    world.factories.iter().map(caller).collect()
}

/// What each worker has had of the processor, in nanoseconds, by its name.
fn times(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let mut times = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", agent.process().pid()))? {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm"))?.trim().to_owned();
        if name.starts_with("vp-data") {
            let text = fs::read_to_string(task.join("schedstat"))?;
            times.insert(name, text.split_whitespace().next().context("a time")?.parse()?);
        }
    }
    ensure!(times.keys().eq(["vp-data-0", "vp-data-1"]), "{times:?}");
    Ok(times)
}

/// What each worker had of it during `work`.
fn spent(agent: &Agent, work: impl FnOnce() -> Result<()>) -> Result<[u64; 2]> {
    let before = times(agent)?;
    work()?;
    let after = times(agent)?;
    let spent: Vec<u64> = after.iter().map(|(name, time)| time - before.get(name).unwrap_or(time)).collect();
    println!("{}: {spent:?} ns", agent.config.site);
    spent.try_into().map_err(|spent| anyhow::anyhow!("{spent:?}"))
}

#[test]
fn downloads_of_two_sites_are_byte_right_and_both_workers_carry_them() {
    story(|lab| {
        let world = world(lab, &plan()?)?;
        let web = world.cloud.address(plan()?.family())?;
        let _web = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
        let callers = callers(&world)?;
        let expected = Content::new("web of cloud").take(BYTES / STREAMS);
        let download = |(plc, presence): &(Namespace, IpAddr)| -> Result<()> {
            let got = plc.http((*presence, 80), &format!("/bytes/{}", expected.len()))?;
            ensure!(got == expected, "a download differs");
            Ok(())
        };
        let all = || {
            thread::scope(|scope| {
                let streams = callers.iter().flat_map(|caller| std::iter::repeat_n(caller, STREAMS));
                let threads: Vec<_> = streams.map(|caller| scope.spawn(|| download(caller))).collect();
                threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panic"))?)
            })
        };
        let [first, second] = spent(&world.cloud.agent, all)?;
        ensure!(first.min(second) * 10 > first.max(second), "{first} and {second} ns");
        let metrics = world.cloud.agent.machine.sh(&format!(
            "curl -sS --fail --unix-socket {} http://agent/metrics",
            world.cloud.agent.socket().display()
        ))?;
        for worker in 0..2 {
            let figure = format!("vp_worker_cpu_seconds_total{{worker=\"{worker}\"}}");
            let line = metrics.lines().find(|line| line.starts_with(&figure)).context(figure)?;
            ensure!(line.rsplit(' ').next().context("a figure")?.parse::<f64>()? > 0.0, "{line}");
        }
        Ok(())
    });
}

/// What comes from a peer is one worker's: that of the first factory the first's, that of the second the second's.
#[test]
fn each_peer_is_one_workers() {
    story(|lab| {
        let world = world(lab, &plan()?)?;
        let web = world.cloud.address(plan()?.family())?;
        let _sink = TcpServer::start(&world.cloud.host.namespace, (web, 9), |mut stream, _| {
            if let Ok((bytes, sum)) = sum_of(&mut stream) {
                write!(stream, "{bytes} {sum}").ok();
            }
        })?;
        for (number, (plc, presence)) in callers(&world)?.iter().enumerate() {
            let times = spent(&world.cloud.agent, || {
                let mut stream = plc.tcp((*presence, 9))?;
                let content = Content::new("upload").take(2 * BYTES);
                stream.write_all(&content)?;
                stream.shutdown(std::net::Shutdown::Write)?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                let (bytes, sum) = sum_of(&mut content.as_slice())?;
                ensure!(answer == format!("{bytes} {sum}"), "{answer}");
                Ok(())
            })?;
            ensure!(times[number] > times[1 - number], "factory{}: {times:?}", number + 1);
        }
        Ok(())
    });
}

#[test]
fn downloads_of_two_sites_survive_kill_9() {
    const DOWNLOAD_BYTES: usize = 24 << 20;
    story(|lab| {
        let mut world = world(lab, &plan()?)?;
        let web = world.cloud.address(plan()?.family())?;
        let _web = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
        let start =
            |(plc, presence): (Namespace, IpAddr)| Download::start(&plc, presence, "web of cloud", DOWNLOAD_BYTES);
        let mut downloads = callers(&world)?.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let third = |downloads: &mut [Download]| downloads.iter_mut().try_for_each(|one| one.read(DOWNLOAD_BYTES / 3));
        third(&mut downloads)?;
        world.cloud.agent.kill()?;
        world.cloud.agent.start_again(lab)?;
        third(&mut downloads)?;
        for factory in &mut world.factories {
            factory.agent.kill()?;
            factory.agent.start_again(lab)?;
        }
        downloads.into_iter().try_for_each(Download::finish)
    });
}

/// Numbered datagrams of some flows, and answers to few of them, so that the kernel has reason to move flows between the
/// queues; beside them a TCP stream.
#[test]
fn nothing_overtakes_within_a_flow() {
    const FLOWS: usize = 6;
    const DATAGRAMS: u64 = 10_000;
    story(|lab| {
        let world = world(lab, &plan()?)?;
        let (web, host) = (world.cloud.address(plan()?.family())?, &world.cloud.host.namespace);
        let overtaken = Arc::new(AtomicU64::new(0));
        let received = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let socket = host.run(|| UdpSocket::bind((web, 9)))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let receiver = thread::spawn({
            let (overtaken, received, done) = (overtaken.clone(), received.clone(), done.clone());
            move || {
                let (mut last, mut buffer) = (BTreeMap::new(), [0; 2048]);
                while !done.load(Ordering::Relaxed) {
                    let Ok((bytes, from)) = socket.recv_from(&mut buffer) else { continue };
                    let Some(number) = buffer[..bytes].first_chunk().copied().map(u64::from_be_bytes) else { continue };
                    let last = last.entry(from).or_insert(number);
                    overtaken.fetch_add(u64::from(number < *last), Ordering::Relaxed);
                    *last = number.max(*last);
                    received.fetch_add(1, Ordering::Relaxed);
                    if number % 500 == 0 {
                        socket.send_to(&buffer[..8], from).ok();
                    }
                }
            }
        });
        let _sink = TcpServer::start(host, (web, 9), |mut stream, _| drop(sum_of(&mut stream)))?;
        let callers = callers(&world)?;
        let stop = AtomicBool::new(false);
        let reordered = thread::scope(|scope| -> Result<u32> {
            let stream = scope.spawn(|| stream_until(&callers[0], &stop));
            let flows = callers.iter().cycle().take(FLOWS);
            let senders: Vec<_> = flows.map(|caller| scope.spawn(|| send_numbers(caller, DATAGRAMS))).collect();
            let sent =
                senders.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panic"))?);
            stop.store(true, Ordering::Relaxed);
            let stream = stream.join().map_err(|_| anyhow::anyhow!("panic"))?;
            sent.and(stream)
        })?;
        // A busy machine loses many; what came, came in order.
        let least = FLOWS as u64 * DATAGRAMS / 10;
        let came = wait_for("a tenth of the datagrams", || {
            let received = received.load(Ordering::Relaxed);
            Ok((received >= least).then_some(received))
        });
        done.store(true, Ordering::Relaxed);
        receiver.join().map_err(|_| anyhow::anyhow!("panic"))?;
        println!("{} of {} datagrams came", came?, FLOWS as u64 * DATAGRAMS);
        ensure!(overtaken.load(Ordering::Relaxed) == 0, "{overtaken:?} datagrams were overtaken");
        ensure!(reordered == 0, "the TCP stream saw {reordered} segments overtaken");
        Ok(())
    });
}

fn send_numbers((plc, presence): &(Namespace, IpAddr), count: u64) -> Result<()> {
    let socket = plc.udp((*presence, 9))?;
    let mut datagram = [7; 300];
    for number in 0..count {
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&datagram)?;
        if number % 10 == 0 {
            // The pace of a sender: what it sends is the story, it waits for nothing.
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Writes until told to stop, in pieces that no gateway drops from; how often its sender saw segments overtaken.
fn stream_until((plc, presence): &(Namespace, IpAddr), stop: &AtomicBool) -> Result<u32> {
    /// `tcpi_reord_seen` of `struct tcp_info` (Linux 5.0): told apart from loss by what was acknowledged without being sent
    /// again.
    const REORDERINGS_AT: usize = 220;
    let mut stream = plc.tcp((*presence, 9))?;
    let piece = Content::new("stream").take(16 << 10);
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&piece)?;
        // The pace of a sender, as above.
        thread::sleep(Duration::from_millis(1));
    }
    let mut info = [0_u8; 256];
    let mut bytes = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes as it is told `info` has.
    let answer = unsafe {
        let to = info.as_mut_ptr().cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut bytes)
    };
    ensure!(answer == 0 && bytes as usize >= REORDERINGS_AT + 4, "TCP_INFO: {}", std::io::Error::last_os_error());
    let reorderings = info[REORDERINGS_AT..].first_chunk().copied().map_or(0, u32::from_ne_bytes);
    Ok(reorderings)
}
