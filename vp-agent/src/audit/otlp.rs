//! Records to a collector of OpenTelemetry: OTLP over HTTP with JSON (opentelemetry.io/docs/specs/otlp), in batches. Without
//! TLS and without credentials: the collector is on this host or on a network of the operator's.

use super::forward::{Forwarded, fields};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Records in one request: some 500 KB.
const BATCH_MAX: usize = 512;
/// What comes alone waits so long for company.
const BATCH_PAUSE: Duration = Duration::from_millis(200);
/// For a collector to take a batch.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between attempts, doubled each time up to the second.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Where the specification puts logs.
const PATH: &str = "/v1/logs";
const INFO: u32 = 9;
const WARN: u32 = 13;

/// `http://HOST:PORT`, and `/v1/logs` or another path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// As a request names it and as it is called: brackets around an IPv6 address.
    authority: String,
    path: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no such address, expected http://HOST:PORT, with a path if it is not /v1/logs")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError(text.to_owned());
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
        let of_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        let of_path = |c: char| c.is_ascii_graphic();
        let has_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if host.is_empty() || !has_port || !host.chars().all(of_host) || !path.chars().all(of_path) {
            return Err(wrong());
        }
        let path = if path.len() > 1 { path } else { PATH };
        Ok(Self { authority: authority.to_owned(), path: path.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// What a collector said to a batch.
enum Answer {
    Taken,
    /// For now: it is away, or has too much to do.
    Later,
    /// For ever.
    Refused(StatusCode),
}

pub(super) async fn run(endpoint: Endpoint, mut records: mpsc::Receiver<Arc<Forwarded>>, lost: Arc<AtomicU64>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while records.recv_many(&mut batch, BATCH_MAX).await > 0 {
        if batch.len() < BATCH_MAX && !records.is_closed() {
            sleep(BATCH_PAUSE).await;
            while let Some(record) = (batch.len() < BATCH_MAX).then(|| records.try_recv().ok()).flatten() {
                batch.push(record);
            }
        }
        let body = Bytes::from(request(&batch).to_string());
        let mut pause = RETRY;
        // Meanwhile the queue fills, and what finds no room in it is counted there.
        loop {
            match timeout(ANSWER_MAX, post(&endpoint, body.clone())).await {
                Ok(Ok(Answer::Taken)) => break,
                Ok(Ok(Answer::Refused(status))) => {
                    tracing::warn!("audit: {endpoint} refuses {} records: {status}", batch.len());
                    lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    break;
                }
                Ok(Ok(Answer::Later) | Err(_)) | Err(_) => sleep(pause).await,
            }
            pause = (2 * pause).min(RETRY_MAX);
        }
        batch.clear();
    }
}

async fn post(endpoint: &Endpoint, body: Bytes) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect(&endpoint.authority).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&endpoint.path)
        .header(header::HOST, &endpoint.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let status = sender.send_request(request).await?.status();
    // The specification's list of what may be sent again.
    let later = [429, 502, 503, 504].contains(&status.as_u16());
    Ok(if status.is_success() {
        Answer::Taken
    } else if later {
        Answer::Later
    } else {
        Answer::Refused(status)
    })
}

fn request(batch: &[Arc<Forwarded>]) -> Value {
    let records: Vec<Value> = batch.iter().map(|record| log_record(record)).collect();
    let site = batch.first().map_or("", |first| first.record.site.as_str());
    json!({"resourceLogs": [{
        "resource": {"attributes": [attribute("service.name", "vp-agent"), attribute("service.instance.id", site)]},
        "scopeLogs": [{"scope": {"name": "vp.audit"}, "logRecords": records}],
    }]})
}

fn log_record(forwarded: &Forwarded) -> Value {
    let Forwarded { time, record, line } = forwarded;
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let (number, text) = if record.event == "denied" { (WARN, "WARN") } else { (INFO, "INFO") };
    let attributes: Vec<Value> = fields(record).map(|(name, value)| attribute(&format!("vp.{name}"), value)).collect();
    json!({
        "timeUnixNano": nanos,
        "severityNumber": number,
        "severityText": text,
        "body": {"stringValue": line},
        "attributes": attributes,
    })
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_plain_http_with_a_port() {
        let read = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        for (text, known) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/logs"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/logs"),
            ("http://collector.example:4318/tenant/v1/logs", "http://collector.example:4318/tenant/v1/logs"),
        ] {
            assert_eq!(read(text).expect("good"), known);
        }
        for bad in ["", "https://a:1", "http://a", "http://:1", "http://a:0", "http://u:p@a:1", "http://a:1/x y", "a:1"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
