//! Records of calls, and the sorted sets by which they fall due.

use std::time::Duration;

use fred::prelude::*;

use super::{
    RedisStore,
    facts::{Facts, list, read_record, readable, text, write_record},
    scripts::timed,
};
use crate::{
    call::{Call, ENDED_RETENTION},
    cluster::{
        Change, Committed, LONGEST_UNSTORED_LEASE, MAX_UNSTORED, Stored, TAKE_OVER_AFTER,
        Unavailable, Unstored,
        ports::{Part, Records, Repaired, Taken},
    },
    ids::{CallId, UserId},
    metrics::Command,
    time::Timestamp,
};

/// About so many keys are scanned at a time for what has to be repaired.
const REPAIRED_KEYS: usize = 1_000;
/// A record that nobody attends to expires this much later than its longest life.
const RECORD_MARGIN: Duration = Duration::from_hours(24);

fn ms(time: Timestamp) -> String {
    time.as_millis().to_string()
}

/// The position at which a scan continues.
fn position(next: String) -> Option<String> {
    Some(next).filter(|next| next != "0")
}

impl Records for RedisStore {
    async fn load(&self, id: CallId) -> Result<Option<Call>, Unavailable> {
        let record: Option<String> =
            timed(Command::Load, self.client.hget(self.keys.call(id), "r"))
                .await
                .map_err(|_| Unavailable)?;
        read_record(&record.unwrap_or_default())
    }

    async fn write(
        &self,
        change: Change,
        over: u64,
        take_over_at: Timestamp,
    ) -> Result<Committed, Unavailable> {
        let Change { call, claims } = &change;
        let claim_of = |user: &UserId| match claims.iter().find(|claim| claim.user == *user) {
            Some(claim) => claim.was.map_or(String::new(), |id| id.to_string()),
            None => "-".to_owned(),
        };
        let (caller, callee) = (&call.caller.user, &call.callee.user);
        let keys = vec![
            self.keys.call(call.id),
            self.keys.deadlines(),
            self.keys.user(caller),
            self.keys.user(callee),
            self.keys.unstored(),
            self.keys.stored(),
            self.keys.watchers(caller),
            self.keys.watchers(callee),
        ];
        let life = call.expires_at - call.created_at + RECORD_MARGIN;
        let arguments = vec![
            call.id.to_string(),
            over.to_string(),
            call.version.to_string(),
            write_record(call),
            u8::from(call.is_live()).to_string(),
            ms(call.deadline()),
            life.as_millis().to_string(),
            caller.as_str().to_owned(),
            callee.as_str().to_owned(),
            claim_of(caller),
            claim_of(callee),
            ms(take_over_at),
        ];
        let mut answer = list(self.run(&self.scripts.commit, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        if text(next()) != "ok" {
            let current = read_record(&text(next()))?;
            return Ok(Committed::Conflict(current.map(Box::new)));
        }
        let was_live = text(next());
        let (caller_facts, callee_facts) = (Facts::read(&text(next())), Facts::read(&text(next())));
        let edges = [(caller, &caller_facts), (callee, &callee_facts)].map(|(user, facts)| {
            let is_its = facts.claim == Some(call.id);
            let edge = facts.edge(user, is_its && call.is_live());
            let before = facts.presence(was_live == "1");
            let changed = is_its && (was_live == "?" || before != edge.presence);
            Some(edge).filter(|_| changed)
        });
        Ok(Committed::Stored(Stored {
            edges: edges.into_iter().flatten().collect(),
            callee_nodes: callee_facts.nodes.iter().map(|(node, _)| *node).collect(),
        }))
    }

    async fn live(&self, from: Option<&str>, limit: usize) -> Result<Part<Call>, Unavailable> {
        // An invalid cursor restarts the iteration.
        let from = from.filter(|from| from.parse::<u64>().is_ok()).unwrap_or("0");
        let keys = vec![self.keys.deadlines()];
        let arguments = vec![self.keys.call_prefix(), from.to_owned(), limit.to_string()];
        let mut answer = list(self.run(&self.scripts.live, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let from = text(next());
        Ok((readable(next()), position(from)))
    }

    async fn due(
        &self,
        now: Timestamp,
        lease: Timestamp,
        limit: usize,
    ) -> Result<Taken, Unavailable> {
        let keys = vec![self.keys.deadlines(), self.keys.unstored(), self.keys.stored()];
        let arguments = vec![self.keys.call_prefix(), ms(now), ms(lease), limit.to_string()];
        let mut answer = list(self.run(&self.scripts.due, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let has_more = text(next()) == "1";
        let calls = readable(next());
        Ok(Taken { calls, has_more, is_damaged: text(next()) == "1" })
    }

    async fn unstored(
        &self,
        now: Timestamp,
        limit: usize,
        forget: usize,
    ) -> Result<(Unstored, bool), Unavailable> {
        let keys = vec![self.keys.unstored(), self.keys.stored()];
        let arguments = vec![
            self.keys.call_prefix(),
            self.keys.user_prefix(),
            ms(now),
            TAKE_OVER_AFTER.as_millis().to_string(),
            LONGEST_UNSTORED_LEASE.as_millis().to_string(),
            ENDED_RETENTION.as_millis().to_string(),
            limit.to_string(),
            forget.to_string(),
            MAX_UNSTORED.to_string(),
            self.keys.watchers_prefix(),
        ];
        let mut answer = list(self.run(&self.scripts.unstored, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let has_more = text(next()) == "1";
        let [waiting, lost] = [(); 2].map(|()| text(next()).parse().unwrap_or_default());
        let calls = readable(next());
        Ok((Unstored { calls, has_more, waiting, lost }, text(next()) == "1"))
    }

    async fn mark_persisted(&self, persisted: &[(CallId, u64)]) -> Result<(), Unavailable> {
        let mut keys = vec![self.keys.unstored(), self.keys.stored()];
        keys.extend(persisted.iter().map(|(id, _)| self.keys.call(*id)));
        let versions =
            persisted.iter().flat_map(|(id, version)| [id.to_string(), version.to_string()]);
        self.run(&self.scripts.settle, keys, versions.collect()).await.map(drop)
    }

    async fn repair(&self, from: &str, now: Timestamp) -> Result<Repaired, Unavailable> {
        let keys = vec![
            self.keys.deadlines(),
            self.keys.unstored(),
            self.keys.stored(),
            self.keys.nodes(),
        ];
        let arguments = vec![
            self.keys.call_prefix(),
            self.keys.user_prefix(),
            self.keys.node_prefix(),
            self.keys.prefix.clone(),
            from.to_owned(),
            REPAIRED_KEYS.to_string(),
            ms(now),
            self.keys.watchers_prefix(),
        ];
        let mut answer = list(self.run(&self.scripts.mend, keys, arguments).await?).into_iter();
        let mut next = || answer.next().unwrap_or(Value::Null);
        let next_position = position(text(next()));
        let users = list(next()).into_iter().filter_map(|user| text(user).parse().ok()).collect();
        Ok(Repaired { next: next_position, users, displaced: readable(next()) })
    }
}
