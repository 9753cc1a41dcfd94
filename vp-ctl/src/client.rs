//! Asks the agent: HTTP over its Unix socket, one connection a verb. Answers are bounded in size and time; what the agent
//! refuses and what does not answer are told apart.

use crate::failure::Failure;
use crate::json;
use crate::render::escape;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use vp_proto::api;

/// A ping waits for three layers; nothing else takes a second.
const ANSWER_SECONDS_MAX: u64 = 60;
/// A full flow table of a million entries is about 500 MB of JSON; who wants it asks with a limit.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// An audit record is a few hundred bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The answer's text, which is JSON if the agent is in its right mind.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<String, Failure> {
        self.block_on(self.ask(Method::GET, target(path, query), Bytes::new()))
    }

    pub fn post(&self, path: &str, request: &impl Serialize) -> Result<String, Failure> {
        let body = serde_json::to_vec(request).map_err(|error| Failure::Refused(error.to_string()))?;
        self.block_on(self.ask(Method::POST, path.to_owned(), body.into()))
    }

    /// Hands over the answer line by line as they come, until the agent ends it.
    pub fn lines(
        &self,
        path: &str,
        query: &[(&str, &str)],
        line: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.block_on(async {
            let response = self.open(Method::GET, target(path, query), Bytes::new()).await?;
            self.each_line(response.into_body(), line).await
        })
    }

    /// Why an answer without an end has ended.
    pub fn ended(&self) -> Failure {
        self.unreachable("it has stopped", CHECK_LOG)
    }

    fn block_on<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Failure::Refused(format!("starting: {error}")))?.block_on(work)
    }

    async fn ask(&self, method: Method, target: String, body: Bytes) -> Result<String, Failure> {
        let work = async {
            let response = self.open(method, target, body).await?;
            self.read(response.into_body()).await
        };
        match timeout(Duration::from_secs(ANSWER_SECONDS_MAX), work).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(&format!("it does not answer within {ANSWER_SECONDS_MAX} s"), CHECK_LOG)),
        }
    }

    /// Sends the request; a refusal ends here, with the agent's own words.
    async fn open(&self, method: Method, target: String, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_connection(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "vp-agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Refused(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.read(response.into_body()).await?;
        Err(Failure::Refused(match json::decode::<api::Error>(&body) {
            Ok(api::Error { error }) => error,
            Err(_) => format!("the agent answers {status}: {}", escape(body.lines().next().unwrap_or_default())),
        }))
    }

    async fn read(&self, mut body: Incoming) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Refused("the agent's answer has no end".into()));
            }
        }
        String::from_utf8(bytes).map_err(|_| Failure::Refused("the agent's answer is not text".into()))
    }

    async fn each_line(
        &self,
        mut body: Incoming,
        mut line: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            rest.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            let complete = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for bytes in rest[..complete].split(|byte| *byte == b'\n').filter(|bytes| !bytes.is_empty()) {
                line(&String::from_utf8_lossy(bytes))?;
            }
            rest.drain(..complete);
            if rest.len() > LINE_BYTES_MAX {
                return Err(Failure::Refused("the agent sends a line without an end".into()));
            }
        }
        if rest.is_empty() { Ok(()) } else { line(&String::from_utf8_lossy(&rest)) }
    }

    fn no_connection(&self, error: &io::Error) -> Failure {
        let check = match error.kind() {
            io::ErrorKind::PermissionDenied => "only root and members of group vp may use it: try sudo",
            _ => "is the agent running? systemctl status vp-agent; another socket: --socket PATH or VP_SOCKET",
        };
        self.unreachable(&error.to_string(), check)
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        self.unreachable(&format!("it stopped in the middle of an answer ({error})"), CHECK_LOG)
    }

    fn unreachable(&self, what: &str, check: &str) -> Failure {
        let socket = escape(&self.socket.to_string_lossy());
        Failure::Unreachable { what: format!("no agent at {socket}: {what}"), check: check.to_owned() }
    }
}

const CHECK_LOG: &str = "what does its log say? journalctl -u vp-agent";

fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (i, (name, value)) in query.iter().enumerate() {
        target.push(if i == 0 { '?' } else { '&' });
        target.push_str(name);
        target.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => target.push(byte.into()),
                // Writing to a string cannot fail.
                other => drop(write!(target, "%{other:02X}")),
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn a_query_carries_any_value() {
        assert_eq!(target("/v1/status", &[]), "/v1/status");
        assert_eq!(target("/v1/flows", &[("service", "a&b=c ü"), ("limit", "5")]), {
            "/v1/flows?service=a%26b%3Dc%20%C3%BC&limit=5"
        });
    }
}
