//! Which collections are meant: by database and by pattern.

use fettler_engine::EngineError;

/// What of a server or of a backup is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The database that the URL of a source names.
    database: Option<String>,
    /// These only; all where nothing is named.
    only: Vec<Part>,
    /// But not these.
    exclude: Vec<Part>,
}

/// `shop`, or `shop.orders`, either with `*` for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    text: String,
    database: String,
    collection: Option<String>,
}

impl Selection {
    /// What a backup reads: one database or all. Of what is excluded definitions are kept and documents are not.
    pub(crate) fn of_backup(
        database: Option<&str>,
        exclude: &[String],
    ) -> Result<Self, EngineError> {
        Ok(Self {
            database: database.map(str::to_owned),
            only: Vec::new(),
            exclude: parts(exclude)?,
        })
    }

    /// What a restore puts back: everything, or what is named.
    pub(crate) fn of_restore(only: &[String]) -> Result<Self, EngineError> {
        Ok(Self {
            only: parts(only)?,
            ..Self::default()
        })
    }

    /// Whether a database is meant by the source's URL.
    pub(crate) fn has_database(&self, database: &str) -> bool {
        self.database.as_ref().is_none_or(|only| only == database)
    }

    /// Whether a collection is meant.
    pub(crate) fn has(&self, database: &str, collection: &str) -> bool {
        self.has_database(database)
            && (self.only.is_empty()
                || self.only.iter().any(|part| part.fits(database, collection)))
    }

    /// Whether the documents of a collection are left out.
    pub(crate) fn is_excluded(&self, database: &str, collection: &str) -> bool {
        self.exclude
            .iter()
            .any(|part| part.fits(database, collection))
    }

    /// The first that was named and fits none of these.
    pub(crate) fn unknown(&self, there: &[(&str, &str)]) -> Option<&str> {
        self.only
            .iter()
            .find(|part| {
                !there
                    .iter()
                    .any(|(database, collection)| part.fits(database, collection))
            })
            .map(|part| part.text.as_str())
    }
}

impl Part {
    fn fits(&self, database: &str, collection: &str) -> bool {
        fits(&self.database, database)
            && self
                .collection
                .as_ref()
                .is_none_or(|pattern| fits(pattern, collection))
    }
}

fn parts(texts: &[String]) -> Result<Vec<Part>, EngineError> {
    texts.iter().map(|text| part(text)).collect()
}

/// Reads `shop` or `shop.orders`: a database's name has no dot, a collection's may have some.
fn part(text: &str) -> Result<Part, EngineError> {
    let (database, collection) = match text.split_once('.') {
        Some((database, collection)) => (database, Some(collection)),
        None => (text, None),
    };
    if database.is_empty() || collection == Some("") {
        return Err(EngineError::Missing {
            code: "selection",
            what: format!("{text:?} names no collections"),
            remedy: "write `shop` for a database, `shop.orders` for a collection, `shop.log_*` for those that a pattern fits"
                .to_owned(),
        });
    }
    Ok(Part {
        text: text.to_owned(),
        database: database.to_owned(),
        collection: collection.map(str::to_owned),
    })
}

/// Whether a pattern with `*` fits a name. Takes time in the product of both lengths at most.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, seen));
        } else if pattern.get(at) == Some(&name[seen]) {
            at += 1;
            seen += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (at, seen) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_what_it_means() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("log_*", "log_1", true),
            ("log_*", "logs", false),
            ("*.files", "fs.files", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "aXbYb", false),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_selection_has_what_it_names() {
        let names = ["shop".to_owned(), "web.log.*".to_owned()];
        let selection = Selection::of_restore(&names).unwrap();
        assert!(selection.has("shop", "orders") && selection.has("web", "log.1"));
        assert!(!selection.has("web", "users") && !selection.has("shop2", "x"));
        let there = [("shop", "orders")];
        assert_eq!(selection.unknown(&there), Some("web.log.*"));
        assert!(Selection::of_restore(&[]).unwrap().has("any", "thing"));
        let excluded = Selection::of_backup(Some("shop"), &["shop.tmp_*".to_owned()]).unwrap();
        assert!(excluded.has("shop", "tmp_1") && excluded.is_excluded("shop", "tmp_1"));
        assert!(!excluded.has("web", "x"));
    }

    #[test]
    fn what_names_no_collection_is_refused() {
        for text in ["", ".x", "shop."] {
            assert!(Selection::of_restore(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
