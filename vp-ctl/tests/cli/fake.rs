//! An agent that answers one question with canned text, over a real Unix socket, and the real `vp-ctl` asking it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use tempfile::TempDir;

pub struct Agent {
    directory: TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Answers every request with this status and body.
    pub fn answering(status: &str, body: &str) -> Self {
        let length = body.len();
        Self::sending(&format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"))
    }

    pub fn saying(body: &str) -> Self {
        Self::answering("200 OK", body)
    }

    /// Sends these bytes to whoever asks, then closes.
    pub fn sending(response: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("agent.sock")).expect("a socket");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, response) = (Arc::clone(&requests), response.to_owned());
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                seen.lock().expect("not poisoned").push(read_request(&stream));
                let _ = stream.write_all(response.as_bytes());
            }
        });
        Self { directory, requests }
    }

    /// `vp-ctl` with these arguments, split at blanks.
    pub fn ctl(&self, arguments: &str) -> Said {
        run(command(&self.socket(), arguments), "")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// What was asked since the last time: `METHOD TARGET BODY`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().expect("not poisoned"))
    }
}

/// `METHOD TARGET BODY`.
pub fn read_request(stream: &UnixStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let (request, mut length) = (line.trim_end().trim_end_matches(" HTTP/1.1").to_owned(), 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).expect("a header");
        match header.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().expect("a length"),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    format!("{request} {}", String::from_utf8(body).expect("text")).trim_end().to_owned()
}

/// What a run of `vp-ctl` said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub error: String,
    pub code: Option<i32>,
}

pub fn command(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vp-ctl"));
    command.arg("--socket").arg(socket).args(arguments.split_whitespace());
    for name in ["VP_SOCKET", "NO_COLOR", "CLICOLOR_FORCE", "CLICOLOR"] {
        command.env_remove(name);
    }
    command
}

pub fn run(mut command: Command, input: &str) -> Said {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("vp-ctl runs");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let [out, error] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    Said { out, error, code: status.code() }
}
