//! Which objects are meant: `shop`, `shop.orders`, `shop.log_*`, `shop.events/202601`, `access`.

use fettler_engine::EngineError;

/// The word for users, roles, quotas and row policies.
const ACCESS: &str = "access";

/// What a backup leaves out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excluded(Vec<String>);

impl Excluded {
    pub(crate) fn of(patterns: &[String]) -> Result<Self, EngineError> {
        for pattern in patterns {
            if pattern.is_empty() || pattern.contains('/') {
                return Err(invalid(pattern));
            }
        }
        Ok(Self(patterns.to_vec()))
    }

    /// Whether a table's rows are left out.
    pub(crate) fn has(&self, full_name: &str) -> bool {
        self.0.iter().any(|pattern| names(pattern, full_name))
    }
}

/// What of a table is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    Nothing,
    Everything,
    /// Partitions by their id or by how the server shows them.
    Partitions(Vec<String>),
}

/// What a restore brings back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    only: Vec<String>,
}

impl Selection {
    pub(crate) fn of(only: &[String]) -> Result<Self, EngineError> {
        if let Some(empty) = only.iter().find(|pattern| {
            pattern.is_empty() || pattern.ends_with('/') || pattern.starts_with('/')
        }) {
            return Err(invalid(empty));
        }
        Ok(Self {
            only: only.to_vec(),
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.only.is_empty()
    }

    /// Whether users and what belongs to them are asked for.
    pub(crate) fn has_access(&self) -> bool {
        self.only.iter().any(|pattern| pattern == ACCESS)
    }

    /// What is restored of a table.
    pub(crate) fn of_table(&self, full_name: &str) -> Chosen {
        if self.only.is_empty() {
            return Chosen::Everything;
        }
        let mut partitions = Vec::new();
        for pattern in self.only.iter().filter(|pattern| *pattern != ACCESS) {
            if names(pattern, full_name) {
                return Chosen::Everything;
            }
            // A table's name may hold a slash; a partition's may too.
            for (at, _) in pattern.match_indices('/') {
                if names(&pattern[..at], full_name) {
                    partitions.push(pattern[at + 1..].to_owned());
                }
            }
        }
        if partitions.is_empty() {
            Chosen::Nothing
        } else {
            Chosen::Partitions(partitions)
        }
    }

    /// The patterns that fit none of these tables.
    pub(crate) fn unused<'a>(&'a self, tables: &[String]) -> Vec<&'a str> {
        self.only
            .iter()
            .filter(|pattern| *pattern != ACCESS)
            .filter(|pattern| {
                let alone = Self {
                    only: vec![(*pattern).clone()],
                };
                tables
                    .iter()
                    .all(|table| alone.of_table(table) == Chosen::Nothing)
            })
            .map(String::as_str)
            .collect()
    }
}

/// Whether a pattern names a table, by itself or with its database.
fn names(pattern: &str, full_name: &str) -> bool {
    let is_of_database = full_name
        .strip_prefix(pattern)
        .is_some_and(|rest| rest.starts_with('.'));
    is_of_database || fits(pattern, full_name)
}

/// Whether a pattern, in which `*` stands for anything, fits.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn invalid(pattern: &str) -> EngineError {
    EngineError::Missing {
        code: "selection",
        what: format!("{pattern:?} selects nothing in ClickHouse"),
        remedy: "write `shop`, `shop.orders`, `shop.log_*`, for a restore also `shop.events/202601` (a partition) or `access`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_tables_patterns_and_partitions_are_chosen() {
        let chosen = |only: &[&str], table: &str| {
            let only: Vec<String> = only.iter().map(|one| (*one).to_owned()).collect();
            Selection::of(&only).unwrap().of_table(table)
        };
        assert_eq!(chosen(&[], "shop.a"), Chosen::Everything);
        assert_eq!(chosen(&["shop"], "shop.a"), Chosen::Everything);
        assert_eq!(chosen(&["shop"], "shopping.a"), Chosen::Nothing);
        assert_eq!(chosen(&["shop.a*e"], "shop.apple"), Chosen::Everything);
        assert_eq!(chosen(&["shop.a*e"], "shop.apples"), Chosen::Nothing);
        assert_eq!(
            chosen(&["shop.a/202601", "shop.a/202602"], "shop.a"),
            Chosen::Partitions(vec!["202601".to_owned(), "202602".to_owned()])
        );
        assert_eq!(chosen(&["access"], "access.a"), Chosen::Nothing);
    }

    #[test]
    fn what_fits_nothing_is_told() {
        let only = [
            "shop.a".to_owned(),
            "shop.x".to_owned(),
            "access".to_owned(),
        ];
        let selection = Selection::of(&only).unwrap();
        assert_eq!(selection.unused(&["shop.a".to_owned()]), ["shop.x"]);
        assert!(Selection::of(&[String::new()]).is_err());
    }
}
