//! JSON schemas of the values that are not plain structs, for the API descriptions. Their limits are the ones that the
//! code enforces.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, Ref, RefOr, SchemaFormat,
        schema::{OneOfBuilder, Schema, SchemaType, Type},
    },
};

use super::Sizes;
use crate::{
    call::{CallType, EndReason, NotifiedReason, Role, Status},
    ids::{CallId, DeviceId, NodeId, UserId},
    time::Timestamp,
};

/// A pattern without control characters.
pub const NO_CONTROL_PATTERN: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";

/// `callerInfo`, relayed unchanged.
pub enum CallerInfo {}

/// An offer or an answer, relayed unchanged.
pub enum SessionDescription {}

/// A candidate, or the end of candidates, relayed unchanged.
pub enum IceCandidate {}

/// A schema that is named in the document.
pub fn named<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

pub fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// One of these words.
pub fn word(words: impl IntoIterator<Item = &'static str>) -> ObjectBuilder {
    text().enum_values(Some(words))
}

impl ToSchema for UserId {}

impl PartialSchema for UserId {
    fn schema() -> RefOr<Schema> {
        text()
            .description(Some("1 to 128 bytes of UTF-8 without control characters."))
            .min_length(Some(1))
            .max_length(Some(Self::MAX_BYTES))
            .pattern(Some(NO_CONTROL_PATTERN))
            .into()
    }
}

impl ToSchema for CallId {}

impl PartialSchema for CallId {
    fn schema() -> RefOr<Schema> {
        text().format(Some(SchemaFormat::Custom("uuid".to_owned()))).into()
    }
}

impl ToSchema for NodeId {}

impl PartialSchema for NodeId {
    fn schema() -> RefOr<Schema> {
        text()
            .description(Some("One running process of this service."))
            .pattern(Some("^[0-9a-f]{32}$"))
            .into()
    }
}

impl ToSchema for Role {}

impl PartialSchema for Role {
    fn schema() -> RefOr<Schema> {
        word(["caller", "callee"]).description(Some("Which of the two parties.")).into()
    }
}

impl ToSchema for Timestamp {}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .description(Some("Unix time in milliseconds."))
            .minimum(Some(0))
            .into()
    }
}

impl ToSchema for CallType {}

impl PartialSchema for CallType {
    fn schema() -> RefOr<Schema> {
        word(Self::ALL.map(Self::as_str)).into()
    }
}

impl ToSchema for Status {
    fn name() -> Cow<'static, str> {
        "CallStatus".into()
    }
}

impl PartialSchema for Status {
    fn schema() -> RefOr<Schema> {
        word(Self::ALL.map(Self::as_str))
            .description(Some(
                "`pending`: it rings. `answered`: it goes on. `rejected`: it was declined. `missed`: it \
                 ended before an answer in any other way. `ended`: it ended after an answer.",
            ))
            .into()
    }
}

impl ToSchema for EndReason {}

impl PartialSchema for EndReason {
    fn schema() -> RefOr<Schema> {
        word(Self::ALL.map(Self::as_str)).description(Some("Why a call ended.")).into()
    }
}

impl ToSchema for NotifiedReason {
    fn name() -> Cow<'static, str> {
        "ToldReason".into()
    }
}

impl PartialSchema for NotifiedReason {
    fn schema() -> RefOr<Schema> {
        let elsewhere = [Self::AnsweredElsewhere, Self::DeclinedElsewhere, Self::ResumedElsewhere];
        let all = EndReason::ALL.map(Self::End).into_iter().chain(elsewhere);
        word(all.map(Self::as_str))
            .description(Some(
                "Why a call is over for this device. `…_elsewhere`: another device of the same user \
                 took it or declined it; or another socket of this device took it over.",
            ))
            .into()
    }
}

impl ToSchema for DeviceId {}

impl PartialSchema for DeviceId {
    fn schema() -> RefOr<Schema> {
        text()
            .description(Some(
                "Keep it for as long as your page or app lives, reconnects included.",
            ))
            .min_length(Some(1))
            .max_length(Some(Self::MAX_BYTES))
            .pattern(Some("^[A-Za-z0-9._-]*$"))
            .into()
    }
}

impl ToSchema for CallerInfo {}

impl PartialSchema for CallerInfo {
    fn schema() -> RefOr<Schema> {
        Self::sized(&Sizes::default())
    }
}

impl CallerInfo {
    /// The schema with the limits of `sizes`.
    pub fn sized(sizes: &Sizes) -> RefOr<Schema> {
        let most = sizes.caller_info_bytes;
        let limit = format!("At most {most} bytes of JSON. Any fields more are passed on.");
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some(limit))
            .property("name", text_with("What to show of the caller."))
            .property("pic", text_with("Where the caller's picture is."))
            .into()
    }
}

impl ToSchema for SessionDescription {}

impl PartialSchema for SessionDescription {
    fn schema() -> RefOr<Schema> {
        Self::sized(&Sizes::default())
    }
}

impl SessionDescription {
    /// The schema with the limits of `sizes`.
    pub fn sized(sizes: &Sizes) -> RefOr<Schema> {
        let sdp = text_with("Counted in bytes of UTF-8.").max_length(Some(sizes.sdp_bytes));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("As `RTCPeerConnection` makes it. Any fields more are passed on."))
            .property("type", text())
            .property("sdp", sdp)
            .required("type")
            .required("sdp")
            .into()
    }
}

impl ToSchema for IceCandidate {}

impl PartialSchema for IceCandidate {
    fn schema() -> RefOr<Schema> {
        Self::sized(&Sizes::default())
    }
}

impl IceCandidate {
    /// The schema with the limits of `sizes`.
    pub fn sized(sizes: &Sizes) -> RefOr<Schema> {
        let optional_text = || text().schema_type(or_null(Type::String));
        let line = ObjectBuilder::new()
            .schema_type(or_null(Type::Integer))
            .minimum(Some(0))
            .maximum(Some(u16::MAX));
        let candidate = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("candidate", text())
            .property("sdpMLineIndex", line)
            .property("sdpMid", optional_text())
            .property("usernameFragment", optional_text())
            .required("candidate");
        let most = sizes.candidate_bytes;
        let limit = format!(
            "As `RTCPeerConnection` makes it, at most {most} bytes of JSON; null or an empty \
             text is the end of candidates. Any fields more are passed on."
        );
        OneOfBuilder::new()
            .description(Some(limit))
            .item(candidate)
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(word([""]))
            .into()
    }
}

fn text_with(description: &str) -> ObjectBuilder {
    text().description(Some(description))
}

/// A type that may also be null.
pub fn or_null(of: Type) -> SchemaType {
    SchemaType::from_iter([of, Type::Null])
}
