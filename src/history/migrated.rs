//! The report of a migration.

use std::{collections::HashSet, fmt};

/// Which migrations a database had, and which it has now. Displays as one sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    applied: usize,
    /// The version of the schema now.
    version: i64,
    was_empty: bool,
}

impl Migrated {
    pub fn new(before: HashSet<i64>, after: &HashSet<i64>) -> Self {
        Self {
            applied: after.difference(&before).count(),
            version: after.iter().copied().max().unwrap_or_default(),
            was_empty: before.is_empty(),
        }
    }
}

impl fmt::Display for Migrated {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { applied, version, was_empty } = self;
        match applied {
            0 => write!(f, "the schema is at version {version} already: nothing was changed"),
            _ if *was_empty => write!(f, "the schema was created, at version {version}"),
            1 => write!(f, "1 migration was applied: the schema is at version {version}"),
            _ => write!(f, "{applied} migrations were applied: the schema is at version {version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_was_done() {
        let said = |before: &[i64], after: &[i64]| {
            let set = |versions: &[i64]| versions.iter().copied().collect::<HashSet<_>>();
            Migrated::new(set(before), &set(after)).to_string()
        };
        assert_eq!(said(&[], &[1, 2]), "the schema was created, at version 2");
        assert_eq!(said(&[1], &[1, 2]), "1 migration was applied: the schema is at version 2");
        assert_eq!(said(&[1], &[1, 2, 3]), "2 migrations were applied: the schema is at version 3");
        assert_eq!(said(&[1], &[1]), "the schema is at version 1 already: nothing was changed");
    }
}
