//! A process on a machine of the lab, its output in a log file of the lab. Ended when dropped.

use crate::{Lab, Namespace, wait};
use anyhow::{Context, Result};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` (see [`Namespace::command`]); both its outputs are appended to `NAME.log`.
    pub fn start(lab: &Lab, name: &str, command: &mut Command) -> Result<Self> {
        let log = lab.directory().join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn().with_context(|| format!("{name}: start"))?;
        Ok(Self { child, log })
    }

    /// A command line (split at white space) on a machine.
    pub fn start_line(lab: &Lab, namespace: &Namespace, line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        let name = format!("{}-{}", namespace.label(), program.rsplit('/').next().unwrap_or(program));
        Self::start(lab, &name, namespace.command(program).args(words))
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        // SAFETY: kill has no memory to get wrong; the child is not reaped before this value is dropped.
        unsafe { libc::kill(pid, signal) };
    }

    /// None while it runs.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("the end of the process with log {}", self.log.display());
        wait::wait_for(&what, || Ok(self.child.try_wait()?))
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGKILL);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
