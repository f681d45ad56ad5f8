//! What values look like in the documents that describe the API: the JSON schemas of those that are
//! no plain structs. Their limits are the ones that the code checks.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, RefOr, SchemaFormat,
        schema::{Schema, Type},
    },
};

use crate::{
    call::{CallType, EndReason, Role, Status, Told},
    ids::{CallId, DeviceId, NodeId, UserId},
    time::Timestamp,
};

/// No text with a control character.
pub const NO_CONTROL_PATTERN: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";

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

impl ToSchema for DeviceId {}

impl PartialSchema for DeviceId {
    fn schema() -> RefOr<Schema> {
        text()
            .description(Some("What a client calls its own device."))
            .pattern(Some("^[A-Za-z0-9._-]{1,64}$"))
            .into()
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
    fn name() -> std::borrow::Cow<'static, str> {
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

impl ToSchema for Told {
    fn name() -> std::borrow::Cow<'static, str> {
        "ToldReason".into()
    }
}

impl PartialSchema for Told {
    fn schema() -> RefOr<Schema> {
        let elsewhere = [
            Self::AnsweredElsewhere,
            Self::DeclinedElsewhere,
            Self::BusyElsewhere,
            Self::ResumedElsewhere,
        ];
        let all = EndReason::ALL.map(Self::End).into_iter().chain(elsewhere);
        word(all.map(Self::as_str))
            .description(Some(
                "Why a call is over for this device. `…_elsewhere`: another device of the same user \
                 took it, declined it or was busy; or another socket of this device took it over.",
            ))
            .into()
    }
}
