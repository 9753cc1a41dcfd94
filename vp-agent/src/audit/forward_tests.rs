//! Other logs that records go to, played here.

use super::tests::open_with;
use super::*;
use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HOSTILE: &str = "a\nVP_EVENT=forged\u{1b}[2J";

fn denial() -> Entry {
    let event = "denied".to_owned();
    let (client, reason) = (Some(HOSTILE.to_owned()), Some("not-allowed".to_owned()));
    Entry::Record(AuditRecord { event, client, reason, site: "cloud".to_owned(), ..AuditRecord::default() })
}

/// As journald reads an entry whose fields have their lengths before them.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (name, rest) = (&entry[..end], &entry[end + 1..]);
        let length = u64::from_le_bytes(rest[..8].try_into().expect("a length")) as usize;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        assert_eq!(rest[8 + length], b'\n');
        assert!(fields.insert(text(name), text(&rest[8..8 + length])).is_none());
        entry = &rest[8 + length + 1..];
    }
    fields
}

#[tokio::test]
async fn the_journal_gets_entries_whose_fields_no_name_can_forge() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("socket");
    let settings = AuditSettings { journald: Some(path.clone()), ..AuditSettings::default() };
    let audit = open_with(settings).await.expect("audit");
    // Nobody there yet.
    audit.write([denial()]);
    while audit.not_forwarded() != [("journald", 1)] {
        tokio::task::yield_now().await;
    }
    let journal = UnixDatagram::bind(&path).expect("socket");
    audit.write([denial()]);
    audit.stop().await;
    let mut bytes = vec![0; 65_536];
    let length = journal.recv(&mut bytes).expect("an entry");
    let fields = fields(&bytes[..length]);
    assert_eq!(fields["VP_EVENT"], "denied");
    assert_eq!((fields["VP_CLIENT"].as_str(), fields["PRIORITY"].as_str()), (HOSTILE, "5"));
    assert!(serde_json::from_str::<AuditRecord>(&fields["VP_RECORD"]).is_ok());
}

/// The body of one request, which is answered with this status.
async fn take(stream: &mut TcpStream, status: &str) -> serde_json::Value {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.expect("read");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("POST /v1/logs HTTP/1.1"), "{head}");
        if let Ok(body) = serde_json::from_str(body) {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("written");
            return body;
        }
    }
}

#[tokio::test]
async fn a_collector_gets_batches_again_until_it_takes_or_refuses_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let endpoint = format!("http://{}", listener.local_addr().expect("address")).parse().expect("endpoint");
    let audit = open_with(AuditSettings { otlp: Some(endpoint), ..AuditSettings::default() }).await.expect("audit");
    audit.write([denial(), denial()]);
    for status in ["503 Service Unavailable", "200 OK"] {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        let body = take(&mut stream, status).await;
        let records = &body["resourceLogs"][0]["scopeLogs"][0]["logRecords"];
        assert_eq!((records.as_array().map(Vec::len), &records[0]["severityText"]), (Some(2), &"WARN".into()));
        let attributes = records[1]["attributes"].as_array().expect("attributes");
        assert!(attributes.iter().any(|a| a["key"] == "vp.client" && a["value"]["stringValue"] == HOSTILE));
    }
    audit.write([denial()]);
    let (mut stream, _) = listener.accept().await.expect("a caller");
    take(&mut stream, "400 Bad Request").await;
    while audit.not_forwarded() != [("otlp", 1)] {
        tokio::task::yield_now().await;
    }
}
