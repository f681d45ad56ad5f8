//! Errors of the HTTP API: `application/problem+json` (RFC 9457).

use std::collections::BTreeMap;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{
        self, Content, HeaderBuilder, RefOr, ResponseBuilder,
        schema::{ObjectBuilder, Type},
    },
};

use crate::{auth::Unauthenticated, limits::TooMany};

const CONTENT_TYPE: &str = "application/problem+json";
/// `Retry-After` of temporary failures.
const RETRY_AFTER_S: u64 = 1;

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: &'static str,
    /// The status in words.
    #[schema(value_type = String)]
    title: &'static str,
    status: u16,
    /// The problem, in words.
    detail: String,
    /// The parameter at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
    /// `WWW-Authenticate`.
    #[serde(skip)]
    challenge: Option<&'static str>,
    /// `Retry-After`.
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            challenge: None,
            retry_after_s: None,
        }
    }

    pub fn bad_field(field: &str, detail: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 401.
    pub fn unauthenticated(why: Unauthenticated) -> Self {
        let challenge = match why {
            Unauthenticated::Missing => "Bearer",
            _ => "Bearer error=\"invalid_token\"",
        };
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, why.to_string()) }
    }

    /// 503: a dependency is unavailable.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        Self { retry_after_s: Some(RETRY_AFTER_S), ..problem }
    }

    /// 429.
    pub fn too_many(too_many: &TooMany) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, too_many.to_string());
        Self { retry_after_s: Some(too_many.retry_after_s()), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).expect("it was a status before");
        let content_type = HeaderValue::from_static(CONTENT_TYPE);
        let challenge = self.challenge.map(HeaderValue::from_static);
        let retry_after_s = self.retry_after_s;
        let mut response =
            (status, [(header::CONTENT_TYPE, content_type)], Json(self)).into_response();
        if let Some(challenge) = challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            // Refusing pipelined requests keeps a core busy.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

pub async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "This method is not known here")
}

/// Annotation of endpoints that validate parameters.
pub struct BadRequest;

impl IntoResponses for BadRequest {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let description = "A parameter is not what it should be: `field` names it";
        answered(StatusCode::BAD_REQUEST, description, |response| response)
    }
}

/// Annotation of endpoints that authenticate: all of `/v1`.
pub struct Unknown;

impl IntoResponses for Unknown {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let header =
            HeaderBuilder::new().schema(Some(text)).description(Some("`Bearer …`.")).build();
        let description = "In `jwt` mode only: there is no token, or it is not good";
        let mut responses = answered(StatusCode::UNAUTHORIZED, description, |response| {
            response.header("WWW-Authenticate", header)
        });
        let description = "In `jwt` mode only: too many tokens from this address were not good";
        responses.extend(answered(StatusCode::TOO_MANY_REQUESTS, description, retry_after));
        responses
    }
}

/// In an endpoint's annotation: it is limited. It stands after [`Unknown`], whose 429 it says too.
pub struct TooOften;

impl IntoResponses for TooOften {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let description = "This user or this address asks too often or, in `jwt` mode, too many tokens \
                           from this address were not good";
        answered(StatusCode::TOO_MANY_REQUESTS, description, retry_after)
    }
}

/// In an endpoint's annotation: not everybody may.
pub struct Forbidden;

impl IntoResponses for Forbidden {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let description = "In `jwt` mode only: the token does not allow this";
        answered(StatusCode::FORBIDDEN, description, |response| response)
    }
}

/// Annotation of endpoints whose item may not exist.
pub struct NotFound;

impl IntoResponses for NotFound {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        answered(StatusCode::NOT_FOUND, "There is none for this user", |response| response)
    }
}

/// Annotation of endpoints with a dependency that may be unavailable.
pub struct Unavailable;

impl IntoResponses for Unavailable {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let description = "Not right now: try again shortly";
        answered(StatusCode::SERVICE_UNAVAILABLE, description, retry_after)
    }
}

fn retry_after(response: ResponseBuilder) -> ResponseBuilder {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let header = HeaderBuilder::new()
        .schema(Some(seconds))
        .description(Some("After how many seconds to try again."))
        .build();
    response.header("Retry-After", header)
}

fn answered(
    status: StatusCode,
    description: &str,
    with: impl FnOnce(ResponseBuilder) -> ResponseBuilder,
) -> BTreeMap<String, RefOr<openapi::Response>> {
    let problem = openapi::Ref::from_schema_name(Problem::name());
    let response = ResponseBuilder::new()
        .description(description)
        .content(CONTENT_TYPE, Content::new(Some(problem)));
    BTreeMap::from([(status.as_str().to_owned(), with(response).build().into())])
}
