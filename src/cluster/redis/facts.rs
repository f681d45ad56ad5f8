//! The formats of Redis' data: users' hashes and records, read and written.

use fred::types::Value;

use crate::{
    call::Call,
    cluster::{Edge, Unavailable},
    ids::{CallId, NodeId, UserId},
    protocol::Presence,
};

/// The version of the record format that this build writes. A build reads all earlier ones.
const RECORD_FORMAT: u8 = b'1';
/// The approximate size of a record.
const AROUND_BYTES: usize = 1024;

/// The field of a user's hash with the number of sockets on a node.
pub fn sockets_field(node: NodeId) -> String {
    format!("node:{node}")
}

/// A user's hash, and the nodes that watch the user if they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The user's latest call.
    pub claim: Option<CallId>,
    /// The nodes with sockets of the user, and the number of sockets.
    pub nodes: Vec<(NodeId, usize)>,
    pub watchers: Vec<NodeId>,
    pub order: u64,
}

impl Facts {
    /// Parses fields and values, one per line: no name contains a line break. Of a repeated field
    /// the later value counts. Unknown fields are ignored.
    pub fn read(lines: &str) -> Self {
        let mut facts = Self::default();
        let mut lines = lines.split('\n');
        while let (Some(field), Some(text)) = (lines.next(), lines.next()) {
            if field == "call" {
                facts.claim = text.parse().ok();
            } else if field == "order" {
                facts.order = text.parse().unwrap_or_default();
            } else if field == "watcher" {
                facts.watchers.extend(text.parse::<NodeId>());
            } else if let Some(node) = field.strip_prefix("node:").and_then(|id| id.parse().ok()) {
                facts.nodes.push((node, text.parse().unwrap_or_default()));
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

/// The text of a record: the format's version, then JSON.
pub fn write_record(call: &Call) -> String {
    let mut record = Vec::with_capacity(AROUND_BYTES);
    record.push(RECORD_FORMAT);
    serde_json::to_writer(&mut record, call).expect("a call is plain data");
    String::from_utf8(record).expect("JSON is text")
}

/// `''` is no record. A record that cannot be read fails the whole operation: to continue as if
/// there were none would break the rule of one call per user.
pub fn read_record(text: &str) -> Result<Option<Call>, Unavailable> {
    if text.is_empty() {
        return Ok(None);
    }
    let json = text.strip_prefix(char::from(RECORD_FORMAT)).ok_or(Unavailable)?;
    serde_json::from_str(json).map(Some).map_err(|error| {
        tracing::error!(%error, "a record in Redis cannot be read");
        Unavailable
    })
}

/// The records that this build can read. An unreadable one must not block the others.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceContext;

    /// A record of another build: an answered call whose caller is lost.
    const RECORD: &str = include_str!("../../../tests/golden/record_1.txt");
    /// The same call with steps of each shape, written by builds that keep a timeline.
    const WITH_TIMELINE: &str = include_str!("../../../tests/golden/record_1_timeline.txt");
    /// The same call, traced.
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
        let (sockets, id) = (sockets_field(node), node.to_string());
        let flat = ["order", "7", "mood", "good", &sockets, "2", "watcher", &id];
        let facts = Facts::read(&flat.join("\n"));
        let expected =
            Facts { claim: None, nodes: vec![(node, 2)], watchers: vec![node], order: 7 };
        assert_eq!(facts, expected);
    }
}
