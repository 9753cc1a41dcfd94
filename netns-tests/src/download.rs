//! A download that is read when its story wants to, and checked as it is read.

use crate::namespace::Namespace;
use crate::server::Content;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

const CHUNK_BYTES: usize = 64 << 10;
/// Of a reader whose story is not about how long it waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of a [`crate::TcpServer::http`] at port 80.
pub struct Download {
    stream: TcpStream,
    expected: Content,
    got: usize,
    bytes: usize,
}

impl Download {
    /// Asks for the first `bytes` of the page's [`Content`].
    pub fn start(caller: &Namespace, from: IpAddr, page: &str, bytes: usize) -> Result<Self> {
        let mut stream = caller.tcp((from, 80))?;
        write!(stream, "GET /bytes/{bytes} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let download = Self { stream, expected: Content::new(page), got: 0, bytes };
        download.patience(PATIENCE)?;
        Ok(download)
    }

    /// How long nothing may come from now on.
    pub fn patience(&self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    pub fn read(&mut self, bytes: usize) -> Result<()> {
        let (mut chunk, mut expected) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let until = self.got + bytes;
        while self.got < until {
            let now = (until - self.got).min(CHUNK_BYTES);
            self.stream
                .read_exact(&mut chunk[..now])
                .with_context(|| format!("within {now} bytes after {}", self.got))?;
            self.expected.fill(&mut expected[..now]);
            ensure!(chunk[..now] == expected[..now], "the download differs within {now} bytes after {}", self.got);
            self.got += now;
        }
        Ok(())
    }

    /// Reads the rest, after which there is no more.
    pub fn finish(mut self) -> Result<()> {
        self.read(self.bytes - self.got)?;
        ensure!(self.stream.read(&mut [0])? == 0, "more than {} bytes", self.bytes);
        Ok(())
    }
}
