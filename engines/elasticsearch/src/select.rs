//! What is meant: indices and data streams by name or by pattern, and the parts of a cluster by words of their own. A restore
//! may mean some documents alone: `shop?status:open` those that a query string finds, `shop?{"term": …}` those that a query
//! of the server's own language does. No name of an index holds a `?`.

use fettler_engine::EngineError;
use serde_json::{Value, json};

use crate::parts::Part;

/// What of a server or of a backup is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// These only; everything where there is none.
    only: Vec<String>,
    /// But not these.
    exclude: Vec<String>,
    /// Of each of `only`, which documents are meant; all where there is nothing.
    queries: Vec<Option<Value>>,
}

impl Selection {
    /// What a backup reads.
    pub(crate) fn of_backup(only: &[String], exclude: &[String]) -> Self {
        Self {
            only: only.to_vec(),
            exclude: exclude.to_vec(),
            queries: Vec::new(),
        }
    }

    /// Whether some documents of an index are meant, and others not.
    pub(crate) fn has_queries(&self) -> bool {
        self.queries.iter().any(Option::is_some)
    }

    /// What a restore puts back.
    ///
    /// # Errors
    ///
    /// [`EngineError::Missing`] (`query`) for what stands behind a `?` and is no query.
    pub(crate) fn of_restore(only: &[String]) -> Result<Self, EngineError> {
        let mut selection = Self::default();
        for one in only {
            let (pattern, query) = match one.split_once('?') {
                Some((pattern, text)) => (pattern, Some(query(one, text)?)),
                None => (one.as_str(), None),
            };
            selection.only.push(pattern.to_owned());
            selection.queries.push(query);
        }
        Ok(selection)
    }

    /// Which documents of an index or a data stream are meant: nothing where all are, otherwise one query for those that any of
    /// the queries means.
    pub(crate) fn query(&self, name: &str) -> Option<Value> {
        let mut several: Vec<&Value> = Vec::new();
        for (pattern, query) in self.only.iter().zip(&self.queries) {
            if fits(pattern, name) {
                several.push(query.as_ref()?);
            }
        }
        match several.as_slice() {
            [] => None,
            [one] => Some((*one).clone()),
            several => Some(json!({"bool": {"should": several, "minimum_should_match": 1}})),
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

/// Reads what stands behind the `?`.
fn query(whole: &str, text: &str) -> Result<Value, EngineError> {
    let unusable = |why: String| {
        EngineError::Missing {
        code: "query",
        what: format!("`{whole}` names no documents: {why}"),
        remedy: "write it as `--only 'shop?status:open AND total:>100'`, or as `--only 'shop?{\"term\": {\"status\": \"open\"}}'`".to_owned(),
    }
    };
    let text = text.trim();
    if text.is_empty() {
        return Err(unusable("nothing stands behind the `?`".to_owned()));
    }
    if !text.starts_with('{') {
        return Ok(json!({"query_string": {"query": text}}));
    }
    let query: Value = serde_json::from_str(text)
        .map_err(|error| unusable(format!("what begins with `{{` is not JSON: {error}")))?;
    if query.as_object().is_none_or(|query| query.len() != 1) {
        return Err(unusable(
            "a query is one name with what belongs to it".to_owned(),
        ));
    }
    Ok(query)
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
        let all = Selection::of_restore(&[]).unwrap();
        assert!(all.has("x") && all.has_part(Part::Templates) && !all.has_part(Part::Settings));
        let some = Selection::of_restore(&["logs-*".to_owned(), "_settings".to_owned()]).unwrap();
        assert!(some.has("logs-1") && !some.has("x"));
        assert!(some.has_part(Part::Settings) && !some.has_part(Part::Templates));
        assert_eq!(some.names_nothing(&["x"]), Some("logs-*"));
        assert_eq!(some.names_nothing(&["logs-2"]), None);
        let backup = Selection::of_backup(&["a*".to_owned()], &["ab".to_owned()]);
        assert!(backup.has("ab") && backup.leaves_out("ab") && !backup.leaves_out("ac"));
    }

    #[test]
    fn a_query_behind_a_name_means_some_of_its_documents() {
        let of = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|&one| one.to_owned()).collect();
            Selection::of_restore(&only)
        };
        let some = of(&[
            "shop?status:open AND at:>5",
            "logs-*?{\"ids\":{\"values\":[\"a?b\"]}}",
        ])
        .unwrap();
        assert!(some.has("shop") && some.has("logs-1") && !some.has("shop?status"));
        assert_eq!(
            some.query("shop"),
            Some(json!({"query_string": {"query": "status:open AND at:>5"}}))
        );
        assert_eq!(
            some.query("logs-1"),
            Some(json!({"ids": {"values": ["a?b"]}}))
        );
        // One that is named whole is whole, and of two queries either will do.
        let whole = of(&["shop?a:1", "sh*"]).unwrap();
        assert_eq!(whole.query("shop"), None);
        let either = of(&["shop?a:1", "sh*?b:2"]).unwrap().query("shop").unwrap();
        assert_eq!(either["bool"]["should"].as_array().unwrap().len(), 2);
        for wrong in [
            "shop?",
            "shop? ",
            "shop?{\"term\":",
            "shop?{}",
            "shop?{\"a\":{},\"b\":{}}",
        ] {
            let error = of(&[wrong]).unwrap_err().to_string();
            assert!(error.contains("shop?"), "{error}");
        }
    }
}
