//! The gateway daemon: reads its arguments, starts, stops.

use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vp_agent::agent::{self, Agent, Running};
use vp_agent::api;
use vp_agent::config::Config;

/// Gives remote services local addresses, and remote callers too.
#[derive(Parser)]
#[command(version, after_help = "Example:\n  vp-agent --config /etc/vp/agent.yaml\n  vp-agent --check site.yaml")]
struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/vp/agent.yaml")]
    config: PathBuf,
    /// Only read this configuration and say what is wrong with it
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a filter of the tracing crate
    #[arg(long, value_name = "FILTER", env = "VP_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
    let done = runtime.block_on(async {
        match arguments.check {
            Some(file) => check(&file).await,
            None => run(&arguments.config).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
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

async fn check(file: &Path) -> anyhow::Result<()> {
    let host = agent::host_networks().await.unwrap_or_default();
    let config = Config::load(file, &host)?;
    config.warnings.iter().for_each(|warning| eprintln!("vp-agent: warning: {warning}"));
    Ok(())
}

async fn run(file: &Path) -> anyhow::Result<()> {
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
    tracing::info!("{} is ready: {}, listening on {}", agent.site().await, agent.offload.word(), agent.listen);
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
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let ended = running.run(Box::pin(stop)).await;
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    reload.abort();
    let socket = running.agent.wanted.lock().await.config.socket.clone();
    std::fs::remove_file(socket).ok();
    running.stop().await;
    Ok(ended?)
}

async fn serve(running: &Running) -> anyhow::Result<()> {
    let socket = running.agent.wanted.lock().await.config.socket.clone();
    let listener = api::bind(&socket).await?;
    let routes = api::routes(running.agent.clone());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(())
}
