//! What Redis knows, read from its answers.

use std::str::FromStr;

use fred::types::Value;

use crate::{
    call::Call,
    cluster::{Edge, Unavailable},
    ids::{CallId, NodeId, UserId},
    protocol::Presence,
};

/// The version of the record's format that this build writes. A build reads all that went before.
const RECORD_FORMAT: char = '1';

/// The field of a node in a user's hash for its number of sockets.
pub fn sockets_field(node: NodeId) -> String {
    format!("node:{node}")
}

/// The field of a node in a user's hash that says that it watches the user.
pub fn watch_field(node: NodeId) -> String {
    format!("watch:{node}")
}

/// A user's hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The user's latest call.
    pub claim: Option<CallId>,
    /// The nodes with sockets of the user, and how many.
    pub nodes: Vec<(NodeId, usize)>,
    pub watchers: Vec<NodeId>,
    pub order: u64,
}

impl Facts {
    /// Reads a flat list of fields and values. Fields that this build does not know are ignored.
    pub fn read(value: Value) -> Self {
        let mut facts = Self::default();
        let list = texts(value);
        for pair in list.chunks_exact(2) {
            let (field, text) = (pair[0].as_str(), pair[1].as_str());
            if field == "call" {
                facts.claim = text.parse().ok();
            } else if field == "order" {
                facts.order = text.parse().unwrap_or_default();
            } else if let Some(node) = node_in(field, "node:") {
                facts.nodes.push((node, text.parse().unwrap_or_default()));
            } else if let Some(node) = node_in(field, "watch:") {
                facts.watchers.push(node);
            }
        }
        facts
    }

    pub fn presence(&self, is_in_live_call: bool) -> Presence {
        Presence::of(is_in_live_call, !self.nodes.is_empty())
    }

    pub fn edge(&self, user: &UserId, is_in_live_call: bool) -> Edge {
        Edge {
            user: user.clone(),
            presence: self.presence(is_in_live_call),
            order: self.order,
            watchers: self.watchers.clone(),
        }
    }
}

fn node_in(field: &str, prefix: &str) -> Option<NodeId> {
    NodeId::from_str(field.strip_prefix(prefix)?).ok()
}

/// A record as it is kept: the format's version, then JSON.
pub fn write_record(call: &Call) -> String {
    let json = serde_json::to_string(call).expect("a call is plain data");
    format!("{RECORD_FORMAT}{json}")
}

/// `''` is no record. One that cannot be read is an error of the whole operation: to go on as if
/// there was none would break the rule of one call a user.
pub fn read_record(text: &str) -> Result<Option<Call>, Unavailable> {
    if text.is_empty() {
        return Ok(None);
    }
    let json = text.strip_prefix(RECORD_FORMAT).ok_or(Unavailable)?;
    serde_json::from_str(json).map(Some).map_err(|error| {
        tracing::error!(%error, "a record in Redis cannot be read");
        Unavailable
    })
}

/// Those of several records that this build can read. One that it cannot must not hold up the others.
pub fn readable(records: Value) -> Vec<Call> {
    let read = |record| read_record(&text(record)).ok().flatten();
    list(records).into_iter().filter_map(read).collect()
}

pub fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

pub fn text(value: Value) -> String {
    value.into_string().unwrap_or_default()
}

fn texts(value: Value) -> Vec<String> {
    list(value).into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceContext;

    /// What nodes of other versions have written: an answered call whose caller is lost.
    const RECORD: &str = include_str!("../../../tests/golden/record_1.txt");
    /// The same with steps of each shape, as builds write it that keep a timeline.
    const WITH_TIMELINE: &str = include_str!("../../../tests/golden/record_1_timeline.txt");
    /// The same of a call that is traced.
    const TRACED: &str = include_str!("../../../tests/golden/record_1_traced.txt");

    #[test]
    fn the_format_of_records_is_what_other_versions_write_and_read() {
        let call = read_record(RECORD.trim_end()).unwrap().unwrap();
        assert_eq!(call.caller.user.as_str(), "anna");
        assert_eq!(call.status(), crate::call::Status::Answered);
        assert!(call.caller.link.lost_until().is_some());
        assert_eq!(write_record(&call), RECORD.trim_end());
        assert_eq!(call.timeline, [], "builds before the timeline");
        let call = read_record(WITH_TIMELINE.trim_end()).unwrap().unwrap();
        assert_eq!(call.timeline.len(), 3);
        assert_eq!(call.traceparent, None);
        assert_eq!(write_record(&call), WITH_TIMELINE.trim_end());
        let call = read_record(TRACED.trim_end()).unwrap().unwrap();
        assert_eq!(call.traceparent.unwrap().root(), TraceContext::of(call.id));
        assert_eq!(write_record(&call), TRACED.trim_end());
    }

    #[test]
    fn a_record_of_a_later_build_is_read_as_far_as_it_is_known() {
        let later = RECORD.trim_end().replacen('{', r#"{"mood":["good"],"#, 1);
        assert_eq!(read_record(&later), read_record(RECORD.trim_end()));
        let traced = TRACED.trim_end().replacen("00-01a3", "mood-01a3", 1);
        assert_eq!(read_record(&traced), read_record(WITH_TIMELINE.trim_end()));
        assert_eq!(read_record("9{}"), Err(Unavailable));
        assert_eq!(read_record("1{"), Err(Unavailable));
        assert_eq!(read_record(""), Ok(None));
    }

    #[test]
    fn fields_of_a_later_build_are_passed_over() {
        let node: NodeId = "019a0000000070008000000000000001".parse().unwrap();
        let flat =
            ["order", "7", "mood", "good", &sockets_field(node), "2", &watch_field(node), "1"];
        let facts = Facts::read(Value::Array(flat.into_iter().map(Value::from).collect()));
        let expected =
            Facts { claim: None, nodes: vec![(node, 2)], watchers: vec![node], order: 7 };
        assert_eq!(facts, expected);
    }
}
