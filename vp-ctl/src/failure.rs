//! Why a verb could not do its work, and the exit code that says so.

use std::fmt;
use std::io;
use std::process::ExitCode;

#[derive(Debug)]
pub enum Failure {
    /// The agent, or a check of our own, said no.
    Refused(String),
    /// Nothing that speaks for the agent is at the socket; `check` says where to look.
    Unreachable { what: String, check: String },
    /// The reader of our output has gone, as `head` does: nothing to complain about.
    BrokenPipe,
}

impl Failure {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Refused(_) => ExitCode::from(1),
            Self::Unreachable { .. } => ExitCode::from(3),
            Self::BrokenPipe => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::Unreachable { what, check } => write!(f, "{what}\n  {check}"),
            Self::BrokenPipe => f.write_str("nobody reads the output"),
        }
    }
}

/// Of writing our own output; errors of the socket are judged in `client`.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::Refused(format!("writing the output: {error}"))
        }
    }
}
