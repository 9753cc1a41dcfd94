//! `vp-ctl man DIR` (hidden, for packaging): writes the man pages, one a verb, from the same words as `--help`.

use crate::Outcome;
use crate::failure::Failure;
use clap::{Args, Command};
use clap_mangen::Man as Page;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Write the man pages into a directory
#[derive(Args, Debug)]
pub struct Man {
    directory: PathBuf,
}

impl Man {
    pub fn run(self, mut whole: Command) -> Result<Outcome, Failure> {
        whole.build();
        let written = write_pages(whole, &self.directory);
        written.map_err(|error| Failure::Refused(format!("{}: {error}", self.directory.display())))?;
        Ok(Outcome::Done)
    }
}

fn write_pages(command: Command, directory: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_pages(verb.clone(), directory)?;
    }
    // What follows the options on the screen is examples; the whole command's is its exit status.
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let has_verbs = command.has_subcommands();
    let page = Page::new(command).manual("Virtual Presence").source("Virtual Presence");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if has_verbs {
        page.render_subcommands_section(&mut text)?;
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if let Some((_, examples)) = after.split_once("Example").and_then(|(_, rest)| rest.split_once(":\n")) {
        text.push_str(".SH EXAMPLES\n.nf\n");
        text.push_str(&roff(examples));
        text.push_str("\n.fi\n");
    }
    text.push_str(COMMON);
    fs::write(directory.join(format!("{name}.1")), text)
}

/// Text that roff takes as it is.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    escaped.lines().map(|line| format!("\\&{line}")).collect::<Vec<_>>().join("\n")
}

const COMMON: &str = r#".SH "EXIT STATUS"
.TP
0
done
.TP
1
refused or failed; also a denied or unanswered \fBexplain\fR, a failed layer of \fBping\fR, an error found by \fBdoctor\fR, a bad line
found by \fBaudit verify\fR
.TP
2
wrong usage
.TP
3
the agent is not reachable
.SH ENVIRONMENT
.TP
VP_SOCKET
the agent's socket, where \fB\-\-socket\fR is not given
.TP
NO_COLOR
if set and not empty: no colours
.SH "SEE ALSO"
.BR vp\-ctl (1),
.BR vp\-agent (8)
"#;
