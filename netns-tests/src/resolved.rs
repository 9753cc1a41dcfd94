//! A machine's own name resolution: systemd-resolved itself, on a D-Bus of its own. Both are processes of the lab, and
//! resolved writes to a `/run/systemd` that only it sees.

use crate::{Agent, Lab, Process, wait};
use anyhow::{Context, Result};
use std::path::Path;

/// Where [`Resolved`] answers.
pub const STUB: [u8; 4] = [127, 0, 0, 53];
const PLACES: [&str; 3] = [
    "/lib/systemd",
    "/usr/lib/systemd",
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/lab/systemd-resolved/lib/systemd"),
];
/// Whose rights it has: one that is not root drops none.
const NOBODY: u32 = 65534;

pub struct Resolved {
    _bus: Process,
    resolved: Process,
}

impl Resolved {
    /// On the agent's machine, at the bus that the agent knows.
    pub fn start(lab: &Lab, agent: &Agent) -> Result<Self> {
        let bus = agent.bus();
        let settings = agent.directory().join("bus.conf");
        std::fs::write(&settings, configuration(&bus))?;
        let label = agent.machine.label();
        let mut daemon = agent.machine.command("dbus-daemon");
        daemon.arg(format!("--config-file={}", settings.display())).args(["--nofork", "--nopidfile"]);
        let daemon = Process::start(lab, &format!("{label}-bus"), &mut daemon)?;
        wait::wait_until("the bus to be there", || Ok(bus.exists()))?;
        Ok(Self { _bus: daemon, resolved: run(lab, agent)? })
    }

    /// Another process, which knows nothing of what this one was told.
    pub fn restart(&mut self, lab: &Lab, agent: &Agent) -> Result<()> {
        self.resolved.kill()?;
        self.resolved = run(lab, agent)?;
        Ok(())
    }
}

fn run(lab: &Lab, agent: &Agent) -> Result<Process> {
    let program = PLACES.iter().map(|place| Path::new(place).join("systemd-resolved")).find(|path| path.exists());
    let program = program.context("no systemd-resolved: run netns-tests/scripts/prepare")?;
    let caps = "+net_bind_service,+net_raw,+setpcap";
    // `ip netns exec` made a mount namespace for it.
    let script = format!(
        "mount -t tmpfs none /run/systemd && mkdir /run/systemd/resolve && chown {NOBODY} /run/systemd/resolve && \
         exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps={caps} --ambient-caps={caps} {}",
        program.display()
    );
    let mut command = agent.machine.command("sh");
    command.args(["-c", &script]).env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", agent.bus().display()));
    Process::start(lab, &format!("{}-resolved", agent.machine.label()), &mut command)
}

/// Of a bus on which everybody may do everything.
fn configuration(bus: &Path) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>system</type>\
         <listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/>\
         <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>\
         </busconfig>\n",
        bus.display()
    )
}
