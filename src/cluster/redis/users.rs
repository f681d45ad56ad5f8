//! Users: a hash for each, with the nodes that have its sockets; another with the nodes that watch
//! it; and for each node the set of its users.

use fred::{
    prelude::*,
    types::{ClusterHash, CustomCommand},
};

use super::{
    RedisStore,
    facts::{Facts, list, read_record, sockets_field, text},
    scripts::timed,
};
use crate::{
    cluster::{
        Edge, USERS_AT_ONCE, Unavailable,
        ports::{Calls, Entry, Lane, Marked, Part, User, Users, Watchers},
    },
    ids::UserId,
    metrics::Command,
    protocol::Presence,
};

/// The argument for a number of sockets that is not changed.
const AS_IT_IS: &str = "=";

impl RedisStore {
    fn client(&self, lane: Lane) -> &Client {
        match lane {
            Lane::Calls => &self.client,
            Lane::Presence => &self.presence,
        }
    }
}

impl Users for RedisStore {
    async fn read(
        &self,
        lane: Lane,
        users: &[UserId],
        watchers: Watchers,
    ) -> Result<Vec<User>, Unavailable> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let mut keys: Vec<String> = users.iter().map(|user| self.keys.user(user)).collect();
        if watchers == Watchers::Wanted {
            keys.extend(users.iter().map(|user| self.keys.watchers(user)));
        }
        let arguments = vec![self.keys.call_prefix(), users.len().to_string()];
        let answer = self.run_on(self.client(lane), &self.scripts.look, keys, arguments).await?;
        let mut answer = list(answer).into_iter();
        let mut all: Vec<User> = Vec::with_capacity(users.len());
        while let (Some(facts), Some(record)) = (answer.next(), answer.next()) {
            let call = match text(record).as_str() {
                "=" => all.last().and_then(|user| user.call.clone()),
                record => read_record(record)?,
            };
            let Facts { nodes, watchers, order, .. } = Facts::read(&text(facts));
            all.push(User { nodes, watchers, order, call });
        }
        Ok(all)
    }

    async fn mark(
        &self,
        lane: Lane,
        entries: &[(UserId, Entry)],
        calls: Calls,
        after: u64,
    ) -> Result<Vec<Marked>, Unavailable> {
        let mut keys = vec![self.keys.node(self.node), self.keys.nodes()];
        let mut arguments = vec![
            self.keys.call_prefix(),
            self.node.to_string(),
            sockets_field(self.node),
            u8::from(calls == Calls::Wanted).to_string(),
            after.to_string(),
        ];
        for (user, entry) in entries {
            keys.extend([self.keys.user(user), self.keys.watchers(user)]);
            arguments.push(user.as_str().to_owned());
            arguments.push(match entry.sockets {
                None => AS_IT_IS.to_owned(),
                Some(0) => String::new(),
                Some(count) => count.to_string(),
            });
            arguments.push("1"[..usize::from(entry.is_watched)].to_owned());
        }
        let answer = self.run_on(self.client(lane), &self.scripts.mark, keys, arguments).await?;
        std::iter::zip(entries, list(answer))
            .map(|((user, _), answer)| read_marked(user, list(answer)))
            .collect()
    }

    async fn of_this_node(&self, from: Option<&str>) -> Result<Part<UserId>, Unavailable> {
        let key = self.keys.node(self.node);
        let arguments = [&key, from.unwrap_or("0"), "COUNT", &USERS_AT_ONCE.to_string()];
        let scan = CustomCommand::new_static("SSCAN", ClusterHash::FirstKey, false);
        let scanned = self.client.custom(scan, arguments.map(str::to_owned).to_vec());
        let (next, members): (String, Vec<String>) =
            timed(Command::Other, scanned).await.map_err(|_| Unavailable)?;
        let users = members.into_iter().filter_map(|user| user.parse().ok());
        Ok((users.collect(), Some(next).filter(|next| next != "0")))
    }
}

/// Parses one user's part of the reply of `mark.lua`.
fn read_marked(user: &UserId, answer: Vec<Value>) -> Result<Marked, Unavailable> {
    let mut answer = answer.into_iter();
    let mut next = || answer.next().unwrap_or(Value::Null);
    let [is_live, was_online, is_online] = [(); 3].map(|()| text(next()) == "1");
    let order = text(next()).parse().map_err(|_| Unavailable)?;
    let watchers = list(next()).into_iter().filter_map(|node| text(node).parse().ok());
    let edge = Edge {
        user: user.clone(),
        presence: Presence::of(is_live, is_online),
        order,
        watchers: watchers.collect(),
    };
    let has_changed = Presence::of(is_live, was_online) != edge.presence;
    Ok(Marked { edge, has_changed, call: read_record(&text(next()))? })
}
