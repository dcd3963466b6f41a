//! Names of things inside PostgreSQL: quoting them for SQL, writing them for people, and matching them
//! with the patterns of `--exclude` and `--only`.

/// Quotes an identifier. Always quoted: which words are reserved differs between versions.
pub(crate) fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a schema and a name.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// Quotes a string; a backslash makes it an escape string, so that no setting of the server matters.
pub(crate) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// A name as people write it: quoted only where it must be.
pub(crate) fn display_ident(name: &str) -> String {
    let plain = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'$');
    if plain {
        name.to_owned()
    } else {
        quote_ident(name)
    }
}

/// A schema and a name as people write them.
pub(crate) fn display_name(schema: &str, name: &str) -> String {
    format!("{}.{}", display_ident(schema), display_ident(name))
}

/// What a user gave to choose tables: `table`, `schema.table`, `schema.*`, or a schema alone, each with
/// `*` for any run of letters and `?` for one. Quotes take a part as it is.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    parts: Vec<Vec<Piece>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Letter(char),
    AnyRun,
    AnyOne,
}

impl Pattern {
    /// Reads a pattern. Everything is one.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = vec![Vec::new()];
        let mut quoted = false;
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let part = parts.last_mut().expect("there is always a part");
            match letter {
                '"' if quoted && letters.peek() == Some(&'"') => {
                    letters.next();
                    part.push(Piece::Letter('"'));
                }
                '"' => quoted = !quoted,
                _ if quoted => part.push(Piece::Letter(letter)),
                '.' => parts.push(Vec::new()),
                '*' => part.push(Piece::AnyRun),
                '?' => part.push(Piece::AnyOne),
                other => part.push(Piece::Letter(other)),
            }
        }
        Self {
            text: text.to_owned(),
            parts,
        }
    }

    /// The pattern as the user wrote it.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it speaks of this table (or view, or sequence). A pattern of one part is the name of a
    /// schema or of something in any schema.
    pub(crate) fn matches(&self, schema: &str, name: &str) -> bool {
        match self.parts.as_slice() {
            [one] => fits(one, schema) || fits(one, name),
            [first, second] => fits(first, schema) && fits(second, name),
            _ => false,
        }
    }
}

fn fits(pattern: &[Piece], name: &str) -> bool {
    let letters: Vec<char> = name.chars().collect();
    // The usual walk with one place to come back to: the last run that may have been longer.
    let (mut at, mut letter) = (0, 0);
    let mut back = None;
    while letter < letters.len() {
        match pattern.get(at) {
            Some(Piece::AnyRun) => {
                back = Some((at, letter));
                at += 1;
            }
            Some(Piece::AnyOne) => {
                at += 1;
                letter += 1;
            }
            Some(Piece::Letter(wanted)) if *wanted == letters[letter] => {
                at += 1;
                letter += 1;
            }
            _ => {
                let Some((run, from)) = back else {
                    return false;
                };
                back = Some((run, from + 1));
                at = run + 1;
                letter = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|piece| *piece == Piece::AnyRun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_so_that_nothing_breaks_out() {
        assert_eq!(quote_ident(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(
            display_name("public", "Order lines"),
            r#"public."Order lines""#
        );
    }

    #[test]
    fn patterns_choose_tables_and_schemas() {
        let matches = |pattern: &str, schema, name| Pattern::parse(pattern).matches(schema, name);
        assert!(matches("public.log_*", "public", "log_2026"));
        assert!(!matches("public.log_*", "audit", "log_2026"));
        assert!(matches("orders", "shop", "orders"));
        assert!(matches("shop", "shop", "orders"));
        assert!(matches("shop.*", "shop", "orders"));
        assert!(matches("*.a*b*c", "x", "aXXbbYc"));
        assert!(!matches("*.a*b*c", "x", "aXXbbYcd"));
        assert!(matches(r#"public."a.b*""#, "public", "a.b*"));
        assert!(!matches(r#"public."a.b*""#, "public", "a.bc"));
        assert!(!matches("a.b.c", "a", "b"));
    }
}
