//! The status page: one file that asks this interface for what it shows. At the socket who may connect is asked nothing more; at
//! a port of loopback, where everybody on the host may connect, each question for data needs the operator's token.

use super::{Problem, show};
use crate::agent::Agent;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use std::sync::Arc;
use std::sync::LazyLock;
use zeroize::Zeroizing;

/// Script, style and all: it loads nothing else, from nowhere.
const HTML: &str = include_str!("page.html");

/// What a browser may do with it: run this very script, use this very style, ask this agent.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| STANDARD.encode(digest(&SHA256, between(HTML, tag).as_bytes()));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

/// Where everybody on this host may connect.
pub fn page_routes(agent: Arc<Agent>, token: Zeroizing<String>) -> Router {
    let token = Arc::new(token);
    Router::new()
        .route("/v1/status", get(show::status))
        .route("/v1/services", get(show::services))
        .route("/v1/figures", get(show::figures))
        .route("/v1/flows", get(show::flows))
        .route("/v1/audit", get(show::audit_past))
        .layer(from_fn_with_state(token, authorize))
        .route("/", get(|| async { answer(HTML.replacen("<html", "<html data-entry", 1)) }))
        .layer(from_fn(refuse_led_browsers))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing but the status page here") })
        .with_state(agent)
}

/// At the socket.
pub async fn html() -> impl IntoResponse {
    answer(HTML.to_owned())
}

fn answer(html: String) -> impl IntoResponse {
    let policy = HeaderValue::from_str(&POLICY).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Html(html))
}

/// `Authorization: Bearer TOKEN`: in no address that is logged or kept, and nothing that a browser adds by itself.
async fn authorize(State(token): State<Arc<Zeroizing<String>>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match shown.and_then(|shown| shown.strip_prefix("Bearer ")) {
        Some(shown) if is_same(shown, &token) => next.run(request).await,
        Some(_) => Problem::new(StatusCode::UNAUTHORIZED, "this is not the token, expected that of page.token_file")
            .into_response(),
        None => Problem::new(StatusCode::UNAUTHORIZED, "no token, expected that of page.token_file").into_response(),
    }
}

/// In a time that says nothing of how much is the same: of both, hashes are compared.
fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (digest(&SHA256, one.as_bytes()), digest(&SHA256, other.as_bytes()));
    let differing =
        one.as_ref().iter().zip(other.as_ref()).fold(0, |differing, (one, other)| differing | (one ^ other));
    std::hint::black_box(differing) == 0
}

/// A page from elsewhere can lead a browser here, by a name of its own that it lets point to this host; and it can have it send
/// a form. Programs do neither.
pub async fn refuse_led_browsers(request: Request, next: Next) -> Response {
    if !is_called_here(request.headers()) {
        return Problem::new(StatusCode::FORBIDDEN, "called by a foreign name, expected localhost or 127.0.0.1")
            .into_response();
    }
    let only_looks = request.method() == Method::GET || request.method() == Method::HEAD;
    if !only_looks && request.headers().contains_key(header::ORIGIN) {
        return Problem::new(StatusCode::FORBIDDEN, "a browser may only look").into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Loopback, whatever the port (`ssh -L` may have another), or a name without a dot, as programs use at the socket: no such
/// name is anybody's on the internet.
fn is_called_here(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "127.0.0.1" || name == "::1" || !(name.contains('.') || name.contains(':'))
}

fn between<'t>(text: &'t str, tag: &str) -> &'t str {
    let from = text.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    from.split_once(&format!("</{tag}>")).map_or("", |(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_have_lead_here() {
        let is = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).expect("a header"));
            is_called_here(&headers)
        };
        assert!(["127.0.0.1:9108", "localhost:80", "[::1]:9108", "vp-agent", "vp"].into_iter().all(is));
        assert!(
            !["evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[fd00::1]:1", "localhost.evil.example"]
                .into_iter()
                .any(is)
        );
        assert!(is_called_here(&HeaderMap::new()), "HTTP/1.0 has none");
    }

    #[test]
    fn the_page_has_one_script_and_one_style_and_names_nothing_outside() {
        for tag in ["script", "style"] {
            assert_eq!((HTML.matches(&format!("<{tag}")).count(), between(HTML, tag).is_empty()), (1, false), "{tag}");
        }
        let links = ["src=", "href=", "@import", "url(", "innerHTML", "http://", "https://"];
        let found: Vec<&str> =
            links.into_iter().filter(|link| HTML.replace("http://www.w3.org/2000/svg", "").contains(link)).collect();
        assert!(found.is_empty(), "{found:?}");
        assert!(is_same("a token", "a token") && !is_same("a token", "a tokem") && !is_same("", "a"));
    }
}
