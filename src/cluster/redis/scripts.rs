//! Runs scripts and commands on Redis, with metrics of their duration and result.

use std::time::Instant;

use fred::{prelude::*, types::scripts::Script};

use crate::metrics::{self, Command};

/// A script, and the name under which its runs are counted.
pub struct Named {
    script: Script,
    command: Command,
}

/// The scripts, each from a file beside this one.
pub struct Scripts {
    pub look: Named,
    pub mark: Named,
    pub commit: Named,
    pub live: Named,
    pub due: Named,
    pub mend: Named,
    pub unstored: Named,
    pub settle: Named,
    pub bury: Named,
    pub unseen: Named,
    pub leave: Named,
    pub beat: Named,
    pub agree: Named,
}

impl Default for Scripts {
    fn default() -> Self {
        let named = |command, lua: &str| Named { script: Script::from_lua(lua), command };
        Self {
            look: named(Command::Look, include_str!("look.lua")),
            mark: named(Command::Mark, include_str!("mark.lua")),
            commit: named(Command::Commit, include_str!("commit.lua")),
            live: named(Command::Live, include_str!("live.lua")),
            due: named(Command::Due, include_str!("due.lua")),
            mend: named(Command::Other, include_str!("mend.lua")),
            unstored: named(Command::Unstored, include_str!("unstored.lua")),
            settle: named(Command::Settle, include_str!("settle.lua")),
            bury: named(Command::Bury, include_str!("bury.lua")),
            unseen: named(Command::Unseen, include_str!("unseen.lua")),
            leave: named(Command::Other, include_str!("leave.lua")),
            beat: named(Command::Beat, include_str!("beat.lua")),
            agree: named(Command::Other, include_str!("agree.lua")),
        }
    }
}

impl Named {
    pub async fn run<T: FromValue>(
        &self,
        client: &Client,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Result<T, Error> {
        // Boxed: otherwise each operation's future has room for everything that the library may
        // have to do.
        let ran = Box::pin(self.script.evalsha_with_reload(client, keys, arguments));
        timed(self.command, ran).await
    }
}

/// Measures the duration and the result of a request to Redis.
pub async fn timed<T>(
    command: Command,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let began = Instant::now();
    let answer = asked.await;
    metrics::REDIS.of(command).record(began.elapsed());
    if answer.is_err() {
        metrics::REDIS_ERRORS.of(command).increment(1);
    }
    answer
}
