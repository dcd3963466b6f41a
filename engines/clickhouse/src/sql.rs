//! Names and statements as ClickHouse writes them: quoting, and definitions in which databases get other names.
//!
//! A definition is never understood here, only cut into tokens: what a database is called stands in front of a `.`, whatever
//! is around it.

use std::borrow::Cow;

/// A name in backquotes.
pub(crate) fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('`');
    for letter in name.chars() {
        if matches!(letter, '`' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text.push('`');
    text
}

/// A table's name with that of its database.
pub(crate) fn table(database: &str, name: &str) -> String {
    format!("{}.{}", quoted(database), quoted(name))
}

/// A text in single quotes.
pub(crate) fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for letter in text.chars() {
        if matches!(letter, '\'' | '\\') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('\'');
    quoted
}

/// A name as a part of a stream's name: letters, digits, `_` and `-` as they are, other bytes as `%` and two digits.
pub(crate) fn in_stream_name(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// A piece of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// White space and comments.
    Blank(&'a str),
    /// A word or a number.
    Word(&'a str),
    /// A name in backquotes or double quotes, with them.
    Quoted(&'a str),
    /// A text in single quotes, with them.
    Text(&'a str),
    /// Any other character.
    Sign(&'a str),
}

impl<'a> Token<'a> {
    const fn text(self) -> &'a str {
        match self {
            Self::Blank(text)
            | Self::Word(text)
            | Self::Quoted(text)
            | Self::Text(text)
            | Self::Sign(text) => text,
        }
    }

    /// The name that the token is, if it may be one.
    fn name(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Word(text) => Some(Cow::Borrowed(text)),
            Self::Quoted(text) => Some(unquoted(text)),
            _ => None,
        }
    }
}

/// What stands in quotes.
fn unquoted(text: &str) -> Cow<'_, str> {
    let inner = &text[1..text.len().max(2) - 1];
    let quote = text.chars().next().unwrap_or('\'');
    if !inner.contains(['\\', quote]) {
        return Cow::Borrowed(inner);
    }
    let (mut plain, mut letters) = (String::new(), inner.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            // A quote that stands twice is one.
            other if other == quote => plain.extend(letters.next()),
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

fn tokens(sql: &str) -> Vec<Token<'_>> {
    let bytes = sql.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    let is_word =
        |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80;
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let rest = &sql[at..];
        if byte.is_ascii_whitespace() {
            at += rest
                .find(|letter: char| !letter.is_ascii_whitespace())
                .unwrap_or(rest.len());
            found.push(Token::Blank(&sql[start..at]));
        } else if rest.starts_with("--") {
            at += rest.find('\n').unwrap_or(rest.len());
            found.push(Token::Blank(&sql[start..at]));
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
            found.push(Token::Blank(&sql[start..at]));
        } else if matches!(byte, b'\'' | b'"' | b'`') {
            at += 1;
            while at < bytes.len() && (bytes[at] != byte || bytes.get(at + 1) == Some(&byte)) {
                at += if bytes[at] == b'\\' || bytes[at] == byte {
                    2
                } else {
                    1
                };
            }
            at = (at + 1).min(bytes.len());
            let text = &sql[start..at];
            found.push(if byte == b'\'' {
                Token::Text(text)
            } else {
                Token::Quoted(text)
            });
        } else if is_word(byte) {
            while at < bytes.len() && is_word(bytes[at]) {
                at += 1;
            }
            found.push(Token::Word(&sql[start..at]));
        } else {
            at += 1;
            found.push(Token::Sign(&sql[start..at]));
        }
    }
    found
}

/// A statement in which databases have other names: where a name stands before a `.` and a name, and where the text
/// of a dictionary or a join is named in quotes.
pub(crate) fn with_databases_renamed(sql: &str, rename: &dyn Fn(&str) -> Option<String>) -> String {
    let tokens = tokens(sql);
    let mut text = String::with_capacity(sql.len() + 32);
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| tokens[at]);
        let begins = before != Some(Token::Sign("."));
        let leads = tokens.get(at + 1) == Some(&Token::Sign("."))
            && tokens.get(at + 2).is_some_and(|next| next.name().is_some());
        if begins
            && leads
            && let Some(new) = token.name().and_then(|name| rename(&name))
        {
            text.push_str(&quoted(&new));
            continue;
        }
        if let Token::Text(quoted_text) = token
            && before == Some(Token::Sign("("))
            && at >= 2
            && let Token::Word(function) = tokens[at - 2]
            && (function.starts_with("dict") || function.starts_with("joinGet"))
        {
            let plain = unquoted(quoted_text);
            if let Some((database, name)) = plain.split_once('.')
                && let Some(new) = rename(database)
            {
                text.push_str(&literal(&format!("{new}.{name}")));
                continue;
            }
        }
        text.push_str(token.text());
    }
    text
}

/// The same engine without replication: `ReplicatedReplacingMergeTree('/path', '{replica}', version)` becomes
/// `ReplacingMergeTree(version)`.
pub(crate) fn without_replication(sql: &str) -> String {
    let tokens = tokens(sql);
    let mut text = String::with_capacity(sql.len());
    let mut at = 0;
    while at < tokens.len() {
        if let Token::Word(word) = tokens[at]
            && let Some(plain) = word.strip_prefix("Replicated")
            && plain.ends_with("MergeTree")
            && is_engine(&tokens[..at])
        {
            text.push_str(plain);
            at += 1;
            if tokens.get(at) == Some(&Token::Sign("(")) {
                let inside = arguments(&tokens[at + 1..]);
                at += 1 + inside.iter().map(|one| one.len()).sum::<usize>() + inside.len().max(1);
                // The place in Keeper and the replica's name come first, as texts.
                let places = inside
                    .iter()
                    .take(2)
                    .take_while(|one| one.iter().any(|token| matches!(token, Token::Text(_))))
                    .count();
                let kept: Vec<String> = inside
                    .iter()
                    .skip(if places == 2 { 2 } else { 0 })
                    .map(|one| one.iter().map(|token| token.text()).collect::<String>())
                    .map(|one| one.trim().to_owned())
                    .filter(|one| !one.is_empty())
                    .collect();
                if !kept.is_empty() {
                    text.push_str(&format!("({})", kept.join(", ")));
                }
            }
            continue;
        }
        text.push_str(tokens[at].text());
        at += 1;
    }
    text
}

/// The same definition of a table, in which MATERIALIZED columns are ones with a default, so that they take values.
pub(crate) fn with_materialized_as_default(sql: &str) -> String {
    let tokens = tokens(sql);
    let mut text = String::with_capacity(sql.len());
    for token in tokens {
        match token {
            Token::Word("MATERIALIZED") => text.push_str("DEFAULT"),
            other => text.push_str(other.text()),
        }
    }
    text
}

/// Whether the next token is an engine's name: behind `ENGINE =`, or at the beginning.
fn is_engine(before: &[Token<'_>]) -> bool {
    let mut solid = before
        .iter()
        .rev()
        .filter(|token| !matches!(token, Token::Blank(_)));
    match (solid.next(), solid.next()) {
        (None, _) => true,
        (Some(Token::Sign("=")), Some(Token::Word(word))) => word.eq_ignore_ascii_case("ENGINE"),
        _ => false,
    }
}

/// What stands between the commas up to the closing parenthesis.
fn arguments<'a, 'b>(tokens: &'b [Token<'a>]) -> Vec<&'b [Token<'a>]> {
    let (mut found, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign("(") => depth += 1,
            Token::Sign(")") if depth == 0 => {
                found.push(&tokens[from..at]);
                return found;
            }
            Token::Sign(")") => depth -= 1,
            Token::Sign(",") if depth == 0 => {
                found.push(&tokens[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// Whether a definition hides a secret, which the server shows to nobody but who may see it.
pub(crate) fn hides_a_secret(sql: &str) -> bool {
    tokens(sql)
        .iter()
        .any(|token| matches!(token, Token::Text("'[HIDDEN]'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(sql: &str) -> String {
        with_databases_renamed(sql, &|name| match name {
            "shop" | "o`dd" => Some(format!("p_{name}")),
            _ => None,
        })
    }

    #[test]
    fn names_of_databases_are_found_where_they_lead() {
        assert_eq!(
            renamed("CREATE VIEW shop.v AS SELECT shop, x.shop, 'shop.t' FROM shop.t /* shop.c */"),
            "CREATE VIEW `p_shop`.v AS SELECT shop, x.shop, 'shop.t' FROM `p_shop`.t /* shop.c */"
        );
        assert_eq!(renamed("FROM `o\\`dd`.`a.b`"), "FROM `p_o\\`dd`.`a.b`");
        assert_eq!(renamed("FROM `o``dd`.`` t"), "FROM `p_o\\`dd`.`` t");
        assert_eq!(
            renamed("SELECT 'it''s', '\\\\', shop.a"),
            "SELECT 'it''s', '\\\\', `p_shop`.a"
        );
        assert_eq!(
            renamed("dictGet('shop.d', 'shop.d', 1), f('shop.d')"),
            "dictGet('p_shop.d', 'shop.d', 1), f('shop.d')"
        );
        // A column of a table that is called like a database and has a database itself.
        assert_eq!(renamed("other.shop.x"), "other.shop.x");
    }

    #[test]
    fn what_was_renamed_and_renamed_back_is_the_same_but_for_quotes() {
        let sql = "CREATE TABLE shop.t (`a` String DEFAULT 'it\\'s shop.t') ENGINE = Memory";
        let back = with_databases_renamed(&renamed(sql), &|name| {
            name.strip_prefix("p_").map(str::to_owned)
        });
        assert_eq!(back, sql.replace("shop.t (", "`shop`.t ("));
    }

    #[test]
    fn replication_is_taken_out_of_an_engine_and_of_nothing_else() {
        for (from, to) in [
            (
                "ENGINE = ReplicatedMergeTree('/c/{shard}/t', '{replica}') ORDER BY a",
                "ENGINE = MergeTree ORDER BY a",
            ),
            (
                "ENGINE = ReplicatedReplacingMergeTree('/c', 'r', ver, deleted) ORDER BY (a, b)",
                "ENGINE = ReplacingMergeTree(ver, deleted) ORDER BY (a, b)",
            ),
            (
                "ENGINE = ReplicatedMergeTree ORDER BY a",
                "ENGINE = MergeTree ORDER BY a",
            ),
            (
                "ENGINE = ReplicatedMergeTree('/c', 'r', d, (a, intHash32(b)), 8192)",
                "ENGINE = MergeTree(d, (a, intHash32(b)), 8192)",
            ),
            (
                "ENGINE = ReplicatedSummingMergeTree() ORDER BY a",
                "ENGINE = SummingMergeTree ORDER BY a",
            ),
            (
                "`ReplicatedMergeTree` String",
                "`ReplicatedMergeTree` String",
            ),
        ] {
            assert_eq!(without_replication(from), to);
        }
    }

    #[test]
    fn a_materialized_column_can_take_values() {
        assert_eq!(
            with_materialized_as_default(
                "(`MATERIALIZED` UInt8 MATERIALIZED 1, b String DEFAULT 'MATERIALIZED')"
            ),
            "(`MATERIALIZED` UInt8 DEFAULT 1, b String DEFAULT 'MATERIALIZED')"
        );
    }

    #[test]
    fn quotes_hold_any_name() {
        assert_eq!(table("a`b", "c\\d"), "`a\\`b`.`c\\\\d`");
        assert_eq!(literal("it's"), "'it\\'s'");
        assert_eq!(in_stream_name("a.b/ü"), "a%2Eb%2F%C3%BC");
        assert!(hides_a_secret("MySQL('h', 'u', '[HIDDEN]')"));
        assert!(!hides_a_secret("DEFAULT '[HIDDEN] no'"));
    }
}
