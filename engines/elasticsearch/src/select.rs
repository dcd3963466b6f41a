//! What is meant: indices and data streams by name or by pattern, and the parts of a cluster by words of their own.

use crate::parts::Part;

/// What of a server or of a backup is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// These only; everything where there is none.
    only: Vec<String>,
    /// But not these.
    exclude: Vec<String>,
}

impl Selection {
    /// What a backup reads.
    pub(crate) fn of_backup(only: &[String], exclude: &[String]) -> Self {
        Self {
            only: only.to_vec(),
            exclude: exclude.to_vec(),
        }
    }

    /// What a restore puts back.
    pub(crate) fn of_restore(only: &[String]) -> Self {
        Self {
            only: only.to_vec(),
            exclude: Vec::new(),
        }
    }

    /// Whether an index or a data stream is meant.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| fits(pattern, name))
    }

    /// Whether its documents are left out.
    pub(crate) fn leaves_out(&self, name: &str) -> bool {
        self.exclude.iter().any(|pattern| fits(pattern, name))
    }

    /// Whether a part of the cluster is meant. The cluster's settings are only where they are named: they hold what is this
    /// cluster's alone.
    pub(crate) fn has_part(&self, part: Part) -> bool {
        if self.only.is_empty() {
            part != Part::Settings
        } else {
            self.only.iter().any(|name| name == part.word())
        }
    }

    /// The first name that names nothing, of what is there.
    pub(crate) fn names_nothing<'a>(&'a self, names: &[&str]) -> Option<&'a str> {
        self.only
            .iter()
            .find(|pattern| {
                Part::of_word(pattern).is_none() && !names.iter().any(|name| fits(pattern, name))
            })
            .map(String::as_str)
    }

    /// Whether nothing was named.
    pub(crate) fn is_everything(&self) -> bool {
        self.only.is_empty()
    }
}

/// Whether a name is what a pattern with `*` means.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    let mut rest = rest;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_what_it_says() {
        for (pattern, name, expected) in [
            ("logs-*", "logs-1", true),
            ("logs-*", "logs", false),
            ("*-2026", "a-2026", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("a*a", "a", false),
            ("*", "", true),
            ("shop", "shop", true),
            ("shop", "shops", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_selection_has_what_it_names() {
        let all = Selection::of_restore(&[]);
        assert!(all.has("x") && all.has_part(Part::Templates) && !all.has_part(Part::Settings));
        let some = Selection::of_restore(&["logs-*".to_owned(), "_settings".to_owned()]);
        assert!(some.has("logs-1") && !some.has("x"));
        assert!(some.has_part(Part::Settings) && !some.has_part(Part::Templates));
        assert_eq!(some.names_nothing(&["x"]), Some("logs-*"));
        assert_eq!(some.names_nothing(&["logs-2"]), None);
        let backup = Selection::of_backup(&["a*".to_owned()], &["ab".to_owned()]);
        assert!(backup.has("ab") && backup.leaves_out("ab") && !backup.leaves_out("ac"));
    }
}
