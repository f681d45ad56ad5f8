//! The web page and the API reference, from files in the binary.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, Uri, header};
use rust_embed::RustEmbed;

use super::problem::Problem;

/// The content security policy: this server only.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; media-src 'self' blob:; object-src 'none'; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
/// The permissions policy: camera, microphone and screen only.
const PERMISSIONS: &str = "camera=(self), microphone=(self), display-capture=(self), geolocation=(), \
    payment=(), usb=()";

/// The files of the page. A debug build reads them from the folder, so that changes need no rebuild.
#[derive(RustEmbed)]
#[folder = "web/"]
struct Files;

/// Serves the file that the path names.
pub async fn file(uri: Uri) -> Response {
    let name = match uri.path() {
        "/" => "index.html",
        "/docs" => "docs.html",
        // The path at which existing pages load the client library.
        "/socket.io/socket.io.js" | "/socket.io/socket.io.min.js" => "vendor/socket.io.min.js",
        path => path.trim_start_matches('/'),
    };
    let Some(file) = Files::get(name) else {
        return Problem::not_found("There is nothing here").into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, content_type(name)),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (PERMISSIONS_POLICY, PERMISSIONS),
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
