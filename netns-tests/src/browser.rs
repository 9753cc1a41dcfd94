//! A real browser on a machine of the lab: Debian's chromium, driven by chromedriver over WebDriver (w3.org/TR/webdriver2).

use crate::{Lab, Namespace, Process, wait};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;

const DRIVER_PORT: u16 = 9515;
/// It is to talk to nobody but whom a story sends it to.
const ARGUMENTS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];

pub struct Browser {
    machine: Namespace,
    session: String,
    _driver: Process,
}

impl Browser {
    /// With a profile of its own, in light colours, as large as a desk's screen.
    pub fn start(lab: &Lab, machine: &Namespace) -> Result<Self> {
        let driver = Process::start_line(lab, machine, &format!("chromedriver --port={DRIVER_PORT}"))?;
        let mut browser = Self { machine: machine.clone(), session: String::new(), _driver: driver };
        wait::wait_until("chromedriver to answer", || {
            Ok(browser.ask("GET", "/status", &Value::Null)?["ready"] == true)
        })?;
        let profile = format!("--user-data-dir={}", lab.directory().join("chromium").display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile.as_str(), "--window-size=1280,1600"]).collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.ask("POST", "/session", &wanted)?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    pub fn open(&self, url: &str) -> Result<()> {
        self.of_session("POST", "/url", &json!({"url": url})).map(drop)
    }

    /// What `return …` in this script gives.
    pub fn script(&self, script: &str) -> Result<Value> {
        self.of_session("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Until this expression is true.
    pub fn wait(&self, expression: &str) -> Result<()> {
        wait::wait_until(&format!("{expression} in the browser"), || {
            Ok(self.script(&format!("return Boolean({expression})"))? == true)
        })
        .with_context(|| format!("{:?}", self.script("return document.body.innerText")))
    }

    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.of_session("POST", "/window/rect", &json!({"width": width, "height": height})).map(drop)
    }

    pub fn screenshot(&self, file: &Path) -> Result<()> {
        let picture = self.of_session("GET", "/screenshot", &Value::Null)?;
        Ok(std::fs::write(file, BASE64_STANDARD.decode(picture.as_str().context("no picture")?)?)?)
    }

    /// What pages wrote to the console since this was asked last.
    pub fn console(&self) -> Result<Vec<String>> {
        Ok(self.log("browser")?.iter().map(ToString::to_string).collect())
    }

    /// The addresses that were asked for since then.
    pub fn requests(&self) -> Result<Vec<String>> {
        let entries = self.log("performance")?;
        let urls = entries.iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let is_request = message["message"]["method"] == "Network.requestWillBeSent";
            is_request.then(|| message["message"]["params"]["request"]["url"].as_str().map(str::to_owned))?
        });
        Ok(urls.collect())
    }

    fn log(&self, kind: &str) -> Result<Vec<Value>> {
        let entries = self.of_session("POST", "/se/log", &json!({"type": kind}))?;
        Ok(entries.as_array().cloned().unwrap_or_default())
    }

    fn of_session(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.ask(method, &format!("/session/{}{path}", self.session), body)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = self.machine.tcp((Ipv4Addr::LOCALHOST, DRIVER_PORT))?;
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")?;
        let mut reader = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        let value = serde_json::from_slice::<Value>(&answer)?["value"].take();
        ensure!(value["error"].is_null(), "{method} {path}: {value}");
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its processes end with it; what stays goes with the lab.
        let _ = self.of_session("DELETE", "", &Value::Null);
    }
}
