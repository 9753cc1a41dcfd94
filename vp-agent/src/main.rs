//! The gateway daemon: reads its arguments, starts, stops.

use anyhow::Context;
use clap::Parser;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vp_agent::agent::{Agent, Running};
use vp_agent::api;
use vp_agent::config::page::read_token;
use vp_agent::config::{Config, HostNetworks, Page};

/// Gives remote services local addresses, and remote callers too.
#[derive(Parser)]
#[command(version, after_help = "Example:\n  vp-agent --config /etc/vp/agent.yaml\n  vp-agent --check site.yaml")]
struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/vp/agent.yaml")]
    config: PathBuf,
    /// Say whether the file is good, and do nothing else. Looks at the file and its keys only, not at this machine
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    check: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a filter of the tracing crate
    #[arg(long, value_name = "FILTER", env = "VP_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.check {
        return check(file);
    }
    if let Err(error) = start_log(&arguments.log) {
        eprintln!("vp-agent: --log {:?}: {error}", arguments.log);
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vp-agent: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(&arguments.config));
    // Not waiting for a name server that does not answer.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::Joined) => {
            eprintln!("vp-agent: cannot begin anew: {}", begin_anew());
            ExitCode::FAILURE
        }
        Err(error) => {
            // One line, whatever is in it.
            let line: String = format!("{error:#}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            eprintln!("vp-agent: {line}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    // boringtun calls the ordinary end of a session an error.
    let filter = EnvFilter::try_new(format!("{filter},boringtun=off"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    // The journal has its own clock.
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().with_ansi(false).init(),
        None => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
    Ok(())
}

fn check(file: &Path) -> ExitCode {
    match Config::load(file, &HostNetworks::default()) {
        Ok(config) => {
            config.warnings.iter().for_each(|warning| eprintln!("vp-agent: warning: {warning}"));
            println!("{}: good", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vp-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a run is over that came to a good end.
enum Ended {
    Stopped,
    /// This site has been certified, and is somebody from now on.
    Joined,
}

async fn run(file: &Path) -> anyhow::Result<Ended> {
    // Signals wait from here on, so that a stop during the start is a clean one too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut running = Agent::start(file).await?;
    let served = serve(&running).await;
    if let Err(error) = served {
        running.stop().await;
        return Err(error);
    }
    let agent = running.agent.clone();
    tracing::info!("{} is ready: {}, listening on {}", agent.site, agent.offload.word(), agent.listen);
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    let reload = tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            match agent.reload().await {
                Ok(warnings) => {
                    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    tracing::info!("the configuration was read again");
                }
                Err(error) => tracing::warn!("the old configuration stays: {error}"),
            }
        }
    });
    let agent = running.agent.clone();
    let mut has_joined = false;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = agent.joined() => has_joined = true,
        }
    };
    let ended = running.run(Box::pin(stop)).await;
    drop(agent);
    if !has_joined {
        sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    }
    reload.abort();
    let socket = running.agent.wanted.lock().await.config.socket.clone();
    std::fs::remove_file(socket).ok();
    running.stop().await;
    ended?;
    Ok(if has_joined { Ended::Joined } else { Ended::Stopped })
}

/// The same program with the same arguments: as who joined, with its own key, from its configuration. Nothing of the invitation is
/// left in memory, and the process keeps its number.
fn begin_anew() -> std::io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "vp-agent".into());
    match std::env::current_exe() {
        Ok(program) => Command::new(program).arg0(name).args(arguments).exec(),
        Err(error) => error,
    }
}

async fn serve(running: &Running) -> anyhow::Result<()> {
    let socket = running.agent.wanted.lock().await.config.socket.clone();
    let listener = api::bind(&socket).await?;
    let routes = api::routes(running.agent.clone());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let metrics = running.agent.wanted.lock().await.config.metrics;
    if let Some(address) = metrics {
        let at = || format!("cannot serve metrics on {address}");
        let listener = tokio::net::TcpListener::bind(address).await.with_context(at)?;
        let routes = api::metrics_routes(running.agent.clone());
        tokio::spawn(api::serve(listener, routes));
    }
    let page = running.agent.wanted.lock().await.config.page.clone();
    if let Some(Page { listen, token_file }) = page {
        let token = read_token(&token_file).map_err(anyhow::Error::msg).context("page.token_file")?;
        let at = || format!("cannot serve the page on {listen}");
        let listener = tokio::net::TcpListener::bind(listen).await.with_context(at)?;
        tokio::spawn(api::serve(listener, api::page_routes(running.agent.clone(), token)));
    }
    Ok(())
}
