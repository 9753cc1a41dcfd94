//! `vp-ctl`: the command line of Virtual Presence. It asks the agent over its Unix socket and shows the answer; it keeps
//! no state, opens no network connection, and never takes a key that lasts as an argument. What an authority does offline, and
//! what a new gateway needs before its agent runs, it does alone, with files.

mod client;
mod failure;
mod files;
mod gather;
mod join;
mod json;
mod render;
mod top;
mod verbs;
mod verify;

use clap::{CommandFactory, Parser, ValueEnum};
use client::Client;
use failure::Failure;
use render::Screen;
use std::path::PathBuf;
use std::process::ExitCode;
use verbs::Verb;

/// The command line of Virtual Presence: services of other sites at local addresses
#[derive(Parser, Debug)]
#[command(name = "vp-ctl", version, after_help = EXIT_STATUS, max_term_width = 100, disable_help_subcommand = true)]
struct Arguments {
    /// The agent's Unix socket
    #[arg(long, global = true, value_name = "PATH", env = "VP_SOCKET", default_value = "/run/vp/agent.sock")]
    socket: PathBuf,
    /// What to print: tables for people, or the agent's JSON
    #[arg(long, short, global = true, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_STATUS: &str = "\
Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the agent is not reachable.
Each verb's --help has an example.";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What a verb found. A verb that could not do its work ends in a [`Failure`] instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Done,
    /// The question was answered, and the answer is bad: a denied flow, a silent layer, an error found by `doctor`.
    Failed,
}

fn main() -> ExitCode {
    let Arguments { socket, output, verb } = Arguments::parse();
    let screen = Screen::new(output == Output::Json);
    match verb.run(&Client::new(socket), &screen, Arguments::command) {
        Ok(Outcome::Done) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Err(failure) => {
            screen.complain(&failure);
            failure.exit_code()
        }
    }
}
