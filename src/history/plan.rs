//! What `switchboard migrate` would do.

use std::{collections::HashSet, fmt};

use sqlx::migrate::Migrator;

/// The migrations that a database lacks, and the partitions that it will get. Displays as lines for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The version of the schema now. None: the database is empty.
    version: Option<i64>,
    /// Version and name of each migration, in order.
    pending: Vec<(i64, String)>,
    /// The months' partitions that are missing. Nodes make them, once the schema is there.
    partitions: Vec<Partition>,
}

/// A missing partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub name: String,
    /// Whether a table has this name that is not a partition.
    pub is_taken: bool,
    /// Whether this user may create it.
    pub may_be_made: bool,
}

impl Plan {
    pub fn new(known: &Migrator, applied: &HashSet<i64>, partitions: Vec<Partition>) -> Self {
        let pending = known.iter().filter(|migration| !applied.contains(&migration.version));
        let pending = pending.map(|one| (one.version, one.description.to_string())).collect();
        Self { version: applied.iter().copied().max(), pending, partitions }
    }

    /// Whether `switchboard migrate` would change the database.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn version(&self) -> Option<i64> {
        self.version
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, pending, partitions } = self;
        match (version, &pending[..]) {
            (None, _) => write!(f, "the database is empty: ")?,
            (Some(version), _) => write!(f, "the schema is at version {version}: ")?,
        }
        match pending.len() {
            0 => write!(f, "nothing is pending")?,
            1 => write!(f, "1 migration is pending")?,
            count => write!(f, "{count} migrations are pending")?,
        }
        for (version, name) in pending {
            write!(f, "\n  migration {version}: {name}")?;
        }
        for Partition { name, is_taken, may_be_made } in partitions {
            write!(f, "\n  partition {name}: ")?;
            match (is_taken, may_be_made) {
                (true, _) => write!(
                    f,
                    "a table has this name that is not a partition: attach it again, or rename it"
                )?,
                (false, true) => write!(f, "made by the nodes, while they run")?,
                (false, false) => write!(
                    f,
                    "cannot be made by this user, who has no right to create tables in the schema"
                )?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_pending() {
        let plan = |version: Option<i64>, pending: &[(i64, &str)]| Plan {
            version,
            pending: pending.iter().map(|(version, name)| (*version, (*name).to_owned())).collect(),
            partitions: Vec::new(),
        };
        let nothing = plan(Some(3), &[]);
        assert_eq!(nothing.to_string(), "the schema is at version 3: nothing is pending");
        assert!(!nothing.is_pending());
        let all = plan(None, &[(1, "calls"), (2, "heartbeats")]);
        assert_eq!(
            all.to_string(),
            "the database is empty: 2 migrations are pending\n  migration 1: calls\n  migration 2: heartbeats"
        );
        assert!(all.is_pending());
    }
}
