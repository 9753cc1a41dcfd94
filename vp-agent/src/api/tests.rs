//! Refusals of a whole agent, in a network namespace that ends with the test's thread.

use super::*;
use crate::sys::enter_new_network_namespace;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use tower::ServiceExt;

const TEXT_MAX: usize = 1 << 20;

async fn ask(routes: &Router, method: &str, path: &str, body: String) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = routes.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), TEXT_MAX).await.unwrap();
    let error = serde_json::from_slice::<api::Error>(&body).map(|answer| answer.error);
    (status, error.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test]
async fn what_is_refused_has_a_status_and_one_line_that_says_why() {
    enter_new_network_namespace();
    let folder = tempfile::tempdir().unwrap();
    let (file, directory) = (folder.path().join("agent.yaml"), folder.path().display());
    let text = format!("site: factory\npool: [10.0.1.0/24]\ninterface: vp-test\nstate_dir: {directory}/state\n");
    std::fs::write(&file, text).unwrap();
    let running = Agent::start(&file).await.unwrap();
    let routes = routes(running.agent.clone());
    let long = format!("{{\"service\": \"{}\"}}", "x".repeat(REQUEST_BYTES_MAX));
    let cases = [
        ("GET", "/v1/everything", "", 404, "no such request"),
        ("GET", "/v1/map", "", 405, "POST is expected"),
        ("POST", "/v1/map", "{", 400, "EOF"),
        ("POST", "/v1/map", "[1]", 400, "expected"),
        ("POST", "/v1/expose", "{\"name\": 7}", 400, "expected a string"),
        ("POST", "/v1/map", &long, 400, "length limit"),
        ("POST", "/v1/map", "{\"service\": \"a\\nb\"}", 422, "service"),
        ("POST", "/v1/unmap", "{\"service\": \"web.cloud\"}", 422, "web.cloud is not mapped"),
        ("POST", "/v1/unexpose", "{\"name\": \"web\"}", 422, "web is not exposed"),
        ("POST", "/v1/ping", "{\"service\": \"web.cloud\"}", 422, "cloud is not a peer of this site"),
        ("POST", "/v1/explain", "{\"to\": \"web.cloud\", \"port\": \"tcp/0x50\"}", 422, "tcp/0x50"),
        ("GET", "/v1/flows?limit=many", "", 400, "invalid digit"),
        ("GET", "/v1/flows?service=-", "", 422, "service"),
        ("GET", "/v1/whois?address=plc", "", 422, "expected an IPv4 or IPv6 address"),
    ];
    for (method, path, body, status, words) in cases {
        let (code, error) = ask(&routes, method, path, body.to_owned()).await;
        assert_eq!(code, status, "{method} {path}: {error}");
        assert!(error.contains(words) && !error.contains('\n'), "{method} {path}: {error}");
    }
    assert_eq!(ask(&routes, "POST", "/v1/reload", String::new()).await.0, 200);
    std::fs::write(&file, "site: [").unwrap();
    let (code, error) = ask(&routes, "POST", "/v1/reload", String::new()).await;
    assert!(code == 422 && error.contains("agent.yaml:1:"), "{code} {error}");
    running.stop().await;
}
