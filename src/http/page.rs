//! The web page and the reference of the API, from files that are part of the binary.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{Uri, header};
use rust_embed::RustEmbed;

use super::problem::Problem;

/// What the page may load, and from where: this server alone.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; \
    media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// The files of the page. A debug build reads them from the folder, so that the page can be worked
/// on without building anew.
#[derive(RustEmbed)]
#[folder = "web/"]
struct Files;

/// Serves the file that the path names.
pub async fn file(uri: Uri) -> Response {
    let name = match uri.path() {
        "/" => "index.html",
        "/docs" => "docs.html",
        // Where existing pages expect the client library.
        "/socket.io/socket.io.js" | "/socket.io/socket.io.min.js" => "vendor/socket.io.min.js",
        path => path.trim_start_matches('/'),
    };
    let Some(file) = Files::get(name) else {
        return Problem::not_found("There is nothing here").into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, content_type(name)),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    ];
    (headers, Body::from(file.data)).into_response()
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        _ => "text/plain; charset=utf-8",
    }
}
