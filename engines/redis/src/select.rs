//! Which keys are meant: by database and by pattern, as the server's own patterns mean it.

use fettler_engine::EngineError;

/// The word that names the functions of a backup.
const FUNCTIONS: &str = "functions";
/// The word that names the users of a backup.
const USERS: &str = "acl";

/// Keys of one database: all, or those that a pattern fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) database: u32,
    pub(crate) pattern: Option<Vec<u8>>,
}

/// What of a server or of a backup is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// These only; all where nothing is named.
    only: Option<Vec<Part>>,
    /// But not these.
    exclude: Vec<Part>,
    /// Whether the functions are meant.
    pub(crate) functions: bool,
    /// Whether the users are meant.
    pub(crate) users: bool,
}

impl Selection {
    /// What a backup reads: one database or all, without what is excluded.
    pub(crate) fn of_backup(
        database: Option<u32>,
        exclude: &[String],
    ) -> Result<Self, EngineError> {
        Ok(Self {
            only: database.map(|database| {
                vec![Part {
                    database,
                    pattern: None,
                }]
            }),
            exclude: exclude
                .iter()
                .map(|text| part(text))
                .collect::<Result<_, _>>()?,
            functions: true,
            users: true,
        })
    }

    /// What a restore puts back: everything but the users, or what is named.
    pub(crate) fn of_restore(only: &[String]) -> Result<Self, EngineError> {
        if only.is_empty() {
            return Ok(Self {
                functions: true,
                ..Self::default()
            });
        }
        let mut selection = Self {
            only: Some(Vec::new()),
            ..Self::default()
        };
        for text in only {
            match text.as_str() {
                FUNCTIONS => selection.functions = true,
                USERS => selection.users = true,
                text => selection.only.get_or_insert_default().push(part(text)?),
            }
        }
        Ok(selection)
    }

    /// Whether a key is meant.
    pub(crate) fn has(&self, database: u32, key: &[u8]) -> bool {
        let fits = |part: &Part| {
            part.database == database
                && part
                    .pattern
                    .as_ref()
                    .is_none_or(|pattern| fits(pattern, key))
        };
        self.only
            .as_ref()
            .is_none_or(|parts| parts.iter().any(fits))
            && !self.exclude.iter().any(fits)
    }

    /// Whether anything of a database may be meant.
    pub(crate) fn may_have(&self, database: u32) -> bool {
        self.only
            .as_ref()
            .is_none_or(|parts| parts.iter().any(|part| part.database == database))
    }

    /// Whether all keys of a database are meant.
    pub(crate) fn has_all_of(&self, database: u32) -> bool {
        let whole = |part: &Part| part.database == database && part.pattern.is_none();
        self.only
            .as_ref()
            .is_none_or(|parts| parts.iter().any(whole))
            && !self.exclude.iter().any(|part| part.database == database)
    }

    /// Whether everything is meant.
    pub(crate) fn is_everything(&self) -> bool {
        self.only.is_none()
    }

    /// The parts that were named.
    pub(crate) fn parts(&self) -> &[Part] {
        self.only.as_deref().unwrap_or_default()
    }
}

/// Reads `db3` or `db3/user:*`.
fn part(text: &str) -> Result<Part, EngineError> {
    let (database, pattern) = match text.split_once('/') {
        Some((database, pattern)) => (database, Some(pattern)),
        None => (text, None),
    };
    let number = database
        .strip_prefix("db")
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    match (number, pattern) {
        (Some(database), pattern) if pattern != Some("") => Ok(Part {
            database,
            pattern: pattern
                .filter(|pattern| *pattern != "*")
                .map(|pattern| pattern.as_bytes().to_vec()),
        }),
        _ => Err(EngineError::Missing {
            code: "selection",
            what: format!("{text:?} names no keys"),
            remedy: "write `db3` for a database, `db3/user:*` for the keys of a database that a pattern fits, `functions`, or `acl` for the users"
                .to_owned(),
        }),
    }
}

/// Whether a pattern fits a key, as the server's `KEYS` means it: `*`, `?`, `[a-z]`, `[^a]`, `\` before what is meant
/// as it is. Takes time in the product of both lengths at most.
pub(crate) fn fits(pattern: &[u8], key: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where to go on when what came after the last star did not fit.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, seen));
            continue;
        }
        let one = (at < pattern.len())
            .then(|| key.get(seen))
            .flatten()
            .and_then(|byte| fits_one(&pattern[at..], *byte));
        match (one, star) {
            (Some(length), _) => {
                at += length;
                seen += 1;
            }
            (None, _) if at == pattern.len() && seen == key.len() => return true,
            (None, Some((after, from))) if from < key.len() => {
                star = Some((after, from + 1));
                (at, seen) = (after, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// How many bytes of the pattern stand for this byte, if they do.
fn fits_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', meant, ..] => (*meant == byte).then_some(2),
        [b'[', rest @ ..] => {
            let negated = rest.first() == Some(&b'^');
            let (mut at, mut found) = (usize::from(negated), false);
            loop {
                match &rest[at..] {
                    // One that is never closed ends with the pattern.
                    [] => return (found != negated).then_some(1 + at),
                    [b']', ..] => return (found != negated).then_some(2 + at),
                    [b'\\', meant, ..] => {
                        found |= *meant == byte;
                        at += 2;
                    }
                    [from, b'-', to, ..] => {
                        found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                        at += 3;
                    }
                    [meant, ..] => {
                        found |= *meant == byte;
                        at += 1;
                    }
                }
            }
        }
        [meant, ..] => (*meant == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_what_the_server_means() {
        for (pattern, key, expected) in [
            ("user:*", "user:1", true),
            ("user:*", "user:", true),
            ("user:*", "users", false),
            ("*:name", "a:b:name", true),
            ("*:name", "a:name:b", false),
            ("h?llo", "hallo", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hello", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("", "", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "aXbYb", false),
            ("**", "x", true),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), key.as_bytes()),
                expected,
                "{pattern} {key}"
            );
        }
    }

    #[test]
    fn a_selection_has_what_it_names() {
        let names = [
            "db3".to_owned(),
            "db0/user:*".to_owned(),
            "functions".to_owned(),
        ];
        let selection = Selection::of_restore(&names).unwrap();
        assert!(selection.has(3, b"x") && selection.has(0, b"user:1"));
        assert!(!selection.has(0, b"x") && !selection.has(1, b"user:1"));
        assert!(selection.has_all_of(3) && !selection.has_all_of(0) && selection.may_have(0));
        assert!(selection.functions && !selection.users);
        let all = Selection::of_restore(&[]).unwrap();
        assert!(all.has(9, b"x") && all.functions && !all.users && all.is_everything());
        let excluded = Selection::of_backup(Some(2), &["db2/tmp:*".to_owned()]).unwrap();
        assert!(excluded.has(2, b"x") && !excluded.has(2, b"tmp:1") && !excluded.has(0, b"x"));
    }

    #[test]
    fn what_names_no_keys_is_refused() {
        for text in ["user:*", "db", "dbx/y", "db0/", "3"] {
            assert!(Selection::of_restore(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
