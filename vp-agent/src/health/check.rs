//! How a target is asked whether it is there.

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A target that takes longer is as good as none.
pub const PATIENCE: Duration = Duration::from_secs(1);
const PATH_BYTES_MAX: usize = 512;

/// `tcp/8080`: it takes a connection. `http/8080/healthz`: it answers GET with a status of 200 to 399.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    port: u16,
    /// Of HTTP, with its first slash.
    path: Option<String>,
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is no check, expected such as tcp/8080 or http/8080/healthz");
        let (kind, rest) = text.split_once('/').ok_or_else(error)?;
        let (port, path) = rest.split_once('/').map_or((rest, None), |(port, path)| (port, Some(format!("/{path}"))));
        let port = port.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(error)?;
        let path = match (kind, path) {
            ("tcp", None) => None,
            ("http", path) => Some(path.unwrap_or_else(|| "/".to_owned())),
            _ => return Err(error()),
        };
        let is_good = |path: &String| path.len() <= PATH_BYTES_MAX && path.parse::<hyper::Uri>().is_ok();
        if path.as_ref().is_some_and(|path| !is_good(path)) { Err(error()) } else { Ok(Self { port, path }) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "http/{}{path}", self.port),
            None => write!(f, "tcp/{}", self.port),
        }
    }
}

impl Check {
    /// What is wrong with the target, if anything is.
    pub async fn run(&self, target: IpAddr) -> Result<(), String> {
        let asked = async {
            let stream = TcpStream::connect((target, self.port)).await.map_err(|error| error.to_string())?;
            match &self.path {
                Some(path) => get(stream, SocketAddr::new(target, self.port), path).await,
                None => Ok(()),
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }
}

async fn get(stream: TcpStream, host: SocketAddr, path: &str) -> Result<(), String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request = Request::get(path).header("host", host.to_string()).header("user-agent", "vp-agent");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let mut answered = pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answered => answer,
        // An answer may have come before its end.
        ended = connection => { ended.map_err(text)?; answered.await }
    };
    match answer.map_err(text)?.status() {
        status if status >= StatusCode::OK && status < StatusCode::BAD_REQUEST => Ok(()),
        status => Err(format!("HTTP {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn a_check_is_read_as_it_is_written_and_nothing_else_is_one() {
        for text in ["tcp/8080", "http/80/", "http/8080/healthz?deep=1"] {
            assert_eq!(text.parse::<Check>().expect(text).to_string(), text);
        }
        assert_eq!("http/80".parse::<Check>().expect("a check").to_string(), "http/80/");
        for text in ["", "tcp", "tcp/0", "tcp/65536", "tcp/80/x", "udp/53", "http/80/a b", "http//x", "https/443/"] {
            assert!(text.parse::<Check>().is_err(), "{text}");
        }
        assert!(format!("http/80/{}", "x".repeat(PATH_BYTES_MAX)).parse::<Check>().is_err());
    }

    async fn asked(check: &str, answer: &'static [u8]) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let check: Check = check.replace("PORT", &port.to_string()).parse().expect("a check");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
        });
        let verdict = check.run(IpAddr::from([127, 0, 0, 1])).await;
        server.abort();
        verdict
    }

    #[tokio::test]
    async fn a_target_is_judged_by_what_it_answers() {
        assert_eq!(asked("tcp/PORT", b"").await, Ok(()));
        assert_eq!(asked("http/PORT/", b"HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
        assert_eq!(asked("http/PORT/", b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n").await, Ok(()));
        let refused = asked("http/PORT/", b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(refused, Err("HTTP 503 Service Unavailable".to_owned()));
        for nonsense in [&b"SSH-2.0-OpenSSH\r\n"[..], b"", b"HTTP/1.1 20"] {
            assert!(asked("http/PORT/", nonsense).await.is_err(), "{nonsense:?}");
        }
        let closed: Check = "tcp/1".parse().expect("a check");
        assert!(closed.run(IpAddr::from([127, 0, 0, 1])).await.is_err());
    }
}
