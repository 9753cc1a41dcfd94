//! Questions to a name server, asked with `dig` as people ask them.

use crate::{Namespace, wait};
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How soon a name comes, or goes, after what caused it.
const SOON: Duration = Duration::from_secs(1);

/// What `dig` makes of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN` and so on.
    pub status: String,
    pub flags: Vec<String>,
    /// What stands behind the type, line by line.
    pub records: Vec<String>,
    /// The whole of it without the parts that differ from one question to the next.
    pub text: String,
}

/// Asks `server`, from `machine`, in dig's words: `web.cloud.vp A`. None: no answer.
pub fn dig(machine: &Namespace, server: IpAddr, question: &str) -> Result<Option<Answer>> {
    let mut dig = machine.command("dig");
    dig.args(["+tries=1", "+time=2", "+nocookie"]).arg(format!("@{server}")).args(question.split_whitespace());
    let output = dig.output().context("dig is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(status) = after(&text, "status: ") else {
        let is_silent = ["no servers could be reached", "timed out", "connection refused", "end of file"];
        let silent = is_silent.iter().any(|said| text.contains(said)) || text.contains("Transfer failed");
        ensure!(silent, "dig {question}: {text}{}", String::from_utf8_lossy(&output.stderr));
        return Ok(None);
    };
    let flags = after_line(&text, ";; flags: ").unwrap_or_default();
    let section = text.split(";; ANSWER SECTION:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let records = section.unwrap_or_default().lines();
    let records = records.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect();
    let differs = [";; Query time", ";; WHEN", "; <<>> DiG", ";; global options", ";; Got answer", ";; ->>HEADER"];
    let same = text.lines().filter(|line| !differs.iter().any(|part| line.starts_with(part)));
    Ok(Some(Answer {
        status,
        flags: flags.split(';').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        records,
        text: same.collect::<Vec<_>>().join("\n"),
    }))
}

/// The same where there must be an answer.
pub fn ask(machine: &Namespace, server: IpAddr, question: &str) -> Result<Answer> {
    dig(machine, server, question)?.with_context(|| format!("{server} does not answer {question}"))
}

/// Until the answer has these records, or this status where there are none; not longer after `cause` than it may take.
pub fn wait_soon(machine: &Namespace, server: IpAddr, question: &str, expected: &str, cause: Instant) -> Result<()> {
    let mut last = String::new();
    let mut late = None;
    wait::wait_until(&format!("{question} to be {expected}"), || {
        let answer = ask(machine, server, question)?;
        last = if answer.records.is_empty() { answer.status } else { answer.records.join(" ") };
        late = Some(cause.elapsed());
        Ok(last == expected)
    })
    .with_context(|| format!("the last answer was {last}"))?;
    ensure!(late.is_some_and(|late| late <= SOON), "{question} was {expected} only after {late:?}");
    Ok(())
}

fn after(text: &str, mark: &str) -> Option<String> {
    let rest = text.split(mark).nth(1)?;
    rest.split([',', ' ', '\n']).next().map(str::to_owned)
}

fn after_line(text: &str, mark: &str) -> Option<String> {
    text.split(mark).nth(1)?.lines().next().map(str::to_owned)
}
