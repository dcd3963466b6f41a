//! What commands print: one document with `--json`, text for people otherwise. Results go to the
//! standard output; progress, notices and errors go to the standard error output, so that a pipe gets
//! the result alone.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::{args::Global, failure::Failure};

/// The width of text when nobody says how wide the terminal is.
const USUAL_WIDTH: usize = 100;

/// How this process prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    /// Whether more is to be told than usual.
    pub(crate) verbose: bool,
    /// Whether progress may be drawn and drawn over.
    pub(crate) draws: bool,
    colours: bool,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            draws: terminal && !global.quiet,
            colours: terminal && !plain,
        }
    }

    /// The result: the document with `--json`, the text otherwise.
    pub(crate) fn result(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.document(document);
        } else {
            let text = text();
            if !text.is_empty() {
                print(&mut std::io::stdout().lock(), text.trim_end());
            }
        }
    }

    /// A result that has a form of its own, which `--json` does not change.
    pub(crate) fn verbatim(self, text: &str) {
        print(&mut std::io::stdout().lock(), text);
    }

    fn document(self, document: &impl Serialize) {
        let text = serde_json::to_string_pretty(document)
            .expect("documents hold text, numbers and lists only");
        print(&mut std::io::stdout().lock(), &text);
    }

    /// Something that the reader may want to know and no program does.
    pub(crate) fn notice(self, text: &str) {
        if !self.quiet {
            print(&mut std::io::stderr().lock(), text);
        }
    }

    /// Something that must be seen, whatever was asked to be left out.
    pub(crate) fn loud(self, lines: &[&str]) {
        let mut text = String::from("\n");
        for (at, line) in lines.iter().enumerate() {
            let (before, after) = match (self.colours, at) {
                (true, 0) => ("\u{1b}[1;33m", "\u{1b}[0m"),
                _ => ("", ""),
            };
            text.push_str(&format!("  {before}!! {line}{after}\n"));
        }
        print(&mut std::io::stderr().lock(), &text);
    }

    /// A failure, on its way out.
    pub(crate) fn failure(self, failure: &Failure) {
        if self.json {
            self.document(&failure.to_json());
        }
        let text = crate::failure::told(failure, self.colours, USUAL_WIDTH);
        print(&mut std::io::stderr().lock(), text.trim_end());
    }
}

/// Prints a line. A reader that has gone away wants no more of it, and anything else that hinders
/// printing cannot be printed.
fn print(to: &mut impl Write, text: &str) {
    let _reader_gone = writeln!(to, "{text}").and_then(|()| to.flush());
}

/// A table without lines.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().map(|name| name.to_uppercase()));
    table.add_rows(rows);
    table
        .lines()
        .map(|line| {
            line.trim_end()
                .strip_prefix(' ')
                .unwrap_or(line.trim_end())
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names and values below each other.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| {
            let mut lines = value.lines();
            let first = lines.next().unwrap_or_default();
            let rest: String = lines
                .map(|line| format!("\n{:width$}  {line}", ""))
                .collect();
            format!("{name:width$}  {first}{rest}\n")
        })
        .collect()
}

/// A JSON value as one short text.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
