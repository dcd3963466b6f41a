//! A file of statements, as one that a user gives: which is where one ends and the next begins.

/// How many statements are taken, at most.
pub const MOST_STATEMENTS: usize = 500;
/// How long one may be, in bytes.
pub const MOST_STATEMENT_BYTES: usize = 16_384;

/// The statements of a text, each without the semicolon that ends it. A line that begins with `--` is a remark, and so is what
/// stands between `/*` and `*/`; neither begins inside of quotes.
#[must_use]
pub fn statements(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut one = String::new();
    let mut quote: Option<char> = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if let Some(open) = quote {
            if letter == open {
                quote = None;
            }
            one.push(letter);
            continue;
        }
        match (letter, letters.peek()) {
            ('-', Some('-')) => while letters.next_if(|next| *next != '\n').is_some() {},
            ('/', Some('*')) => {
                let mut last = ' ';
                for next in letters.by_ref() {
                    if last == '*' && next == '/' {
                        break;
                    }
                    last = next;
                }
                one.push(' ');
            }
            (';', _) => all.push(std::mem::take(&mut one)),
            ('\'' | '"' | '`', _) => {
                quote = Some(letter);
                one.push(letter);
            }
            _ => one.push(letter),
        }
    }
    all.push(one);
    all.iter()
        .map(|one| one.trim().to_owned())
        .filter(|one| !one.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semicolon_ends_a_statement_outside_of_quotes_and_remarks() {
        let text =
            "-- one; two\nSELECT ';--' FROM \"a;b\";\n/* ; */ SELECT 2 -- last;\n;;\nSELECT 3";
        assert_eq!(
            statements(text),
            ["SELECT ';--' FROM \"a;b\"", "SELECT 2", "SELECT 3"]
        );
    }
}
