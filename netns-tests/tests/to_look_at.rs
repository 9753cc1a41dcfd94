//! What people look at: `vp-ctl top` in a real terminal, and the status page in a real browser.
//!
//! ```text
//!   plc .2 --------+                                            +-- chromium, on the gateway itself
//!   neighbour .6 --+-- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::agent::binary;
use netns_tests::browser::Browser;
use netns_tests::world::expose;
use netns_tests::{Agent, Families, Family, Lab, Plan, Setup, TcpServer, World, story, wait_until};
use std::fs::{self, Permissions, set_permissions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

const TOKEN: &str = "3f1c-a-token-of-the-operators";
const PAGE: &str = "http://127.0.0.1:9108/";

#[test]
fn the_page_shows_sites_services_flows_and_denials_to_who_has_the_token_and_asks_nobody_else() {
    story(|lab| {
        let (world, _server, _flow) = told_of(lab)?;
        let gateway = &world.cloud.site.gateway;
        let browser = Browser::start(lab, gateway)?;
        browser.open(PAGE)?;
        browser.wait("!document.getElementById('entry').hidden")?;
        ensure!(browser.console()?.is_empty(), "before a token is asked for nothing fails");
        let enter = |token: &str| {
            browser.script(&format!(
                "document.getElementById('token').value = '{token}'; document.getElementById('form').requestSubmit()"
            ))
        };
        enter("not-the-token-at-all")?;
        browser.wait("document.getElementById('refusal').textContent.includes('not the token')")?;
        ensure!(browser.script("return document.getElementById('page').hidden")? == true);
        browser.console()?;

        enter(TOKEN)?;
        let has = |part: &str, words: &[&str]| {
            words.iter().try_for_each(|words| {
                browser.wait(&format!("document.getElementById('{part}').textContent.includes('{words}')"))
            })
        };
        has("site", &["cloud"])?;
        has("map", &["factory1", "direct"])?;
        has("services", &["web", "tcp/80", "site:factory1", "each caller"])?;
        has("presences", &["metrics.factory1", "up"])?;
        has("flows", &["web.cloud", "plc", "tcp", "open"])?;
        has("callers", &["plc"])?;
        has("denials", &["not-mapped"])?;
        has("audit", &["flow-opened", "denied"])?;
        // Not only once.
        browser.wait("document.getElementById('peers').textContent.includes('/s')")?;
        if let Some(folder) = std::env::var_os("VP_SCREENSHOTS") {
            let folder = std::path::PathBuf::from(folder);
            browser.screenshot(&folder.join("page.png"))?;
            browser.resize(420, 1600)?;
            browser.screenshot(&folder.join("page-narrow.png"))?;
        }
        browser.resize(390, 800)?;
        let wide =
            browser.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")?;
        ensure!(wide == 0, "a phone has no need to scroll sideways: {wide}");

        // Whatever names and texts are, they stay text.
        browser.script(
            "const evil = '<img src=x onerror=\"window.harmed=1\"><script>window.harmed=1</scr' + 'ipt>';
             const spoil = of => typeof of === 'string' ? evil + of : Array.isArray(of) ? of.map(spoil)
               : of && typeof of === 'object' ? Object.fromEntries(Object.entries(of).map(([k, v]) => [k, spoil(v)])) : of;
             const real = JSON.parse; const json = Response.prototype.json;
             JSON.parse = text => spoil(real(text));
             Response.prototype.json = async function () { return spoil(await json.call(this)); };",
        )?;
        for part in ["site", "map", "services", "presences", "flows", "callers", "denials", "audit"] {
            has(part, &["<script>"])?;
        }
        let harmed = "return [window.harmed, document.images.length, document.scripts.length]";
        ensure!(browser.script(harmed)? == serde_json::json!([null, 0, 1]), "{}", browser.script(harmed)?);
        let console = browser.console()?;
        ensure!(console.is_empty(), "{console:?}");
        let requests = browser.requests()?;
        // The browser's own first page is inside it.
        let is_inside = |url: &&String| [PAGE, "chrome://", "data:"].iter().any(|own| url.starts_with(own));
        let elsewhere: Vec<&String> = requests.iter().filter(|url| !is_inside(url)).collect();
        ensure!(requests.len() > 10 && elsewhere.is_empty(), "{elsewhere:?}");
        ensure!(!requests.iter().any(|url| url.contains(TOKEN)), "a token in an address");
        Ok(())
    });
}

#[test]
fn nothing_is_told_without_the_token_to_a_foreign_name_or_to_who_wants_to_change() {
    story(|lab| {
        let (world, _server, _flow) = told_of(lab)?;
        let gateway = &world.cloud.site.gateway;
        let status = |arguments: &[&str]| -> Result<String> {
            let mut curl = gateway.command("curl");
            let output = curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"]).args(arguments).output()?;
            Ok(String::from_utf8(output.stdout)?)
        };
        let right = format!("Authorization: Bearer {TOKEN}");
        let wrong = format!("Authorization: Bearer {TOKEN}x");
        let at = |path: &str| format!("{PAGE}{path}");
        for path in ["v1/status", "v1/services", "v1/figures", "v1/flows", "v1/audit"] {
            ensure!(status(&[&at(path)])? == "401", "{path}");
            ensure!(status(&["-H", &wrong, &at(path)])? == "401", "{path}");
            ensure!(status(&["-H", &right, &at(path)])? == "200", "{path}");
            ensure!(status(&["-H", &right, "-X", "POST", &at(path)])? == "405", "{path}");
            ensure!(status(&["-H", &right, "-H", "Host: evil.example:9108", &at(path)])? == "403", "{path}");
        }
        ensure!(status(&["-H", &right, "-H", "Host: localhost:8080", &at("v1/status")])? == "200", "by ssh -L");
        for path in ["v1/map", "v1/expose", "v1/reload", "v1/doctor", "metrics", "v1/whois?address=10.0.9.2"] {
            ensure!(status(&["-H", &right, "-X", "POST", "-d", "{}", &at(path)])? == "404", "{path}");
        }
        // Followed for ever it would hold a connection.
        ensure!(status(&["-m", "5", "-H", &right, &at("v1/audit?follow=true")])? == "200");
        let socket = world.cloud.agent.socket();
        let socket = socket.to_string_lossy();
        ensure!(status(&["--unix-socket", &socket, "http://vp/"])? == "200", "the socket has the page too");
        ensure!(status(&["--unix-socket", &socket, "http://evil.example/v1/status"])? == "403");
        let post =
            ["--unix-socket", &socket, "-X", "POST", "-H", "Origin: http://localhost:9108", "http://vp/v1/reload"];
        ensure!(status(&post)? == "403", "a browser changes nothing");
        let headers = gateway.sh(&format!("curl -sSI {PAGE}"))?.to_lowercase();
        for header in [
            "content-security-policy: default-src 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            ensure!(headers.contains(header), "{headers}");
        }
        Ok(())
    });
}

#[test]
fn top_shows_the_gateway_live_in_a_terminal_and_gives_it_back() {
    story(|lab| {
        let (world, _server, _flow) = told_of(lab)?;
        let agent = &world.factories[0].agent;
        for (keys, words) in [("1", "cloud"), ("2", "web.cloud"), ("3", "plc"), ("4", "not-mapped")] {
            let seen = terminal(lab, agent, keys, words)?;
            ensure!(
                seen.contains("\u{1b}[?1049h") && seen.contains("\u{1b}[?1049l"),
                "the other screen, and back: {seen:?}"
            );
            ensure!(seen.contains("ended with 0") && seen.contains("echo on"), "{seen:?}");
        }
        let once = agent.ctl("top --once --view flows")?;
        ensure!(once.contains("web.cloud") && once.contains("plc") && !once.contains('\u{1b}'), "{once}");
        let refused = agent.ctl_output("top")?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.status.code() == Some(1) && said.lines().count() == 1 && said.contains("needs a terminal"),
            "{said}"
        );
        Ok(())
    });
}

/// `vp-ctl top` in a terminal of 80 columns and 24 rows: types `keys`, waits for `words`, leaves. All that the terminal was sent.
fn terminal(lab: &Lab, agent: &Agent, keys: &str, words: &str) -> Result<String> {
    let file = lab.directory().join(format!("terminal-{keys}"));
    let ctl = binary("vp-ctl")?;
    let line = format!(
        "stty rows 24 cols 80; {} --socket {} top; echo ended with $?; stty -a | grep -q '[^-]echo ' && echo echo on",
        ctl.display(),
        agent.socket().display()
    );
    let mut command = Command::new("script");
    command.args(["-q", "-f", "-c", &line]).arg(&file).stdin(Stdio::piped()).stdout(Stdio::null()).env("TERM", "xterm");
    let mut child = command.spawn().context("script")?;
    let mut input = child.stdin.take().context("piped")?;
    let seen = || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned());
    wait_until("top to begin", || Ok(seen()?.contains("Denials")))?;
    input.write_all(keys.as_bytes())?;
    wait_until(&format!("{words} in top"), || {
        ensure!(seen()?.contains(words), "{:?}", seen()?);
        Ok(true)
    })?;
    input.write_all(b"q")?;
    wait_until("top to end", || Ok(seen()?.contains("ended with")))?;
    drop(input);
    child.wait()?;
    seen()
}

/// A world with something to see: an open flow of the plc to web, a denial at each site, and the page at the cloud's gateway.
fn told_of(lab: &Lab) -> Result<(World, TcpServer, TcpStream)> {
    let plan = Plan::named("same", Families::V4)?;
    let token = lab.directory().join("page.token");
    fs::write(&token, format!("{TOKEN}\n"))?;
    set_permissions(&token, Permissions::from_mode(0o600))?;
    let cloud = expose("web", "{web}", "tcp/80", "site:factory1", "presence")
        + &format!(
            "map:\n  - service: \"*.factory1\"\npage: {{listen: 127.0.0.1:9108, token_file: {}}}\n",
            token.display()
        );
    let factory = "clients:\n  - {name: plc, addresses: [{plc}]}\n".to_owned()
        + &expose("metrics", "{plc}", "tcp/9100", "site:cloud", "masquerade")
        + "map:\n  - service: \"*.cloud\"\n";
    let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(&plan) })?;
    let web = world.cloud.address(Family::V4)?;
    let server = TcpServer::echo(&world.cloud.host.namespace, (web, 80))?;
    let station = &world.factories[0];
    let presence = station.agent.presence("web.cloud")?;
    let flow = station.host.namespace.tcp((presence, 80))?;
    // A pool address that stands for nothing, at either site.
    ensure!(station.neighbour.namespace.tcp((netns_tests::nth(&plan.factory_pool[0], 77), 80)).is_err());
    ensure!(world.cloud.neighbour.namespace.tcp((netns_tests::nth(&plan.cloud_pool[0], 77), 80)).is_err());
    Ok((world, server, flow))
}
