//! The map of ARCHITECTURE.md, held: the core's rooms are a star, and the core has no clock, socket, file or thread.

use std::fs;
use std::path::{Path, PathBuf};

/// A room and the rooms it may know. `node` may know all.
const ROOMS: [(&str, &[&str]); 9] = [
    ("addr", &[]),
    ("packet", &["addr"]),
    ("flow", &["addr", "packet"]),
    ("policy", &["addr", "packet"]),
    ("catalogue", &["addr", "packet"]),
    ("translate", &["addr", "packet"]),
    ("tunnel", &["addr", "packet"]),
    ("hub", &["addr"]),
    ("identity", &["addr"]),
];

/// What the core must not name. Boringtun reads a clock of its own: the tunnel room's head says so.
const OUTSIDE: [&str; 12] = [
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::thread",
    "std::process",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "std::env",
    "println!",
    "tokio",
    "async fn",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("entry").path()) {
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("tests.rs")) {
            continue; // A room's tests in a file of their own.
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The product code of a file: without its tests and comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("readable");
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn each_room_knows_only_the_rooms_below_it() {
    for (room, may_know) in ROOMS {
        for file in sources(&root().join(room)) {
            let code = code(&file);
            for other in ROOMS.map(|(other, _)| other).into_iter().chain(["node"]) {
                let allowed = other == room || may_know.contains(&other);
                assert!(allowed || !code.contains(&format!("crate::{other}")), "{} knows {other}", file.display());
            }
        }
    }
}

#[test]
fn the_core_has_no_clock_socket_file_or_thread() {
    for file in sources(&root()) {
        let code = code(&file);
        for word in OUTSIDE {
            assert!(!code.contains(word), "{} names {word}", file.display());
        }
    }
}
