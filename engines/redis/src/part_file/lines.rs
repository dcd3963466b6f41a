//! Keys as lines of JSON.
//!
//! ```json
//! {"db":0,"key":"user:1","type":"hash","expires_at_ms":1700000000000,"value":[{"field":"name","value":"Ann"}]}
//! ```
//!
//! | type | value |
//! |---|---|
//! | `string` | a text |
//! | `list`, `set` | a list of texts |
//! | `zset` | a list of `{"member", "score"}` |
//! | `hash` | a list of `{"field", "value"}`, with `expires_at_ms` where a field has one |
//! | `stream` | a list of `{"id", "fields": [name, value, …]}`; `last_id`, `max_deleted_id`, `entries_added`, `groups` follow |
//! | of a module | `{"base64": payload}` |
//!
//! Bytes that are not UTF-8 stand as `{"base64": …}` wherever a text may stand, and so does a string of more than
//! [`LONGEST_TEXT`], which is written as it comes. Scores that JSON has no number for are `"inf"` and `"-inf"`.

use std::io::Write;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::records::{Element, Kind, RecordEvent, StreamId};

use super::{Failure, KeySink, Outward};

/// A string of so many bytes or fewer is looked at as a whole, so that it can stand as text.
const LONGEST_TEXT: u64 = 8 << 20;

/// Writes lines.
pub(super) struct Lines {
    to: Outward,
    line: Vec<u8>,
    state: State,
}

/// What the value that is being written is.
enum State {
    /// Whole in memory before it is written.
    Text(Vec<u8>),
    /// As it comes, three bytes at a time.
    Base64(Vec<u8>),
    /// A list; whether something stands in it.
    List(bool),
    /// Groups of a stream: whether one is there, whether its consumers have begun, whether something stands in the innermost
    /// list.
    Groups {
        has_group: bool,
        consumers: Consumers,
        is_begun: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Consumers {
    NotYet,
    Begun,
    /// One is open.
    Open,
}

impl Lines {
    pub(super) fn new(to: Outward) -> Self {
        Self {
            to,
            line: Vec::new(),
            state: State::List(false),
        }
    }

    fn put(&mut self, text: &str) {
        self.line.extend_from_slice(text.as_bytes());
    }

    /// Writes out what is there, so that a value of any size takes little memory.
    fn settle(&mut self) -> Result<(), Failure> {
        if self.line.len() >= super::PIECE_BYTES {
            self.to.write_all(&self.line)?;
            self.line.clear();
        }
        Ok(())
    }

    /// A comma where something stands in the list already.
    fn comma(&mut self) {
        let begun = match &mut self.state {
            State::List(begun)
            | State::Groups {
                is_begun: begun, ..
            } => begun,
            State::Text(_) | State::Base64(_) => return,
        };
        if std::mem::replace(begun, true) {
            self.line.push(b',');
        }
    }

    fn close_consumer(&mut self) {
        if let State::Groups { consumers, .. } = &mut self.state {
            let was = *consumers;
            if was == Consumers::Open {
                *consumers = Consumers::Begun;
                self.put("]}");
            }
        }
    }

    fn close_group(&mut self) {
        self.close_consumer();
        if let State::Groups {
            has_group,
            consumers,
            ..
        } = &self.state
        {
            let end = match (*has_group, *consumers) {
                (false, _) => "",
                // No consumers were told of.
                (true, Consumers::NotYet) => "],\"consumers\":[]}",
                (true, _) => "]}",
            };
            self.put(end);
        }
    }

    fn element(&mut self, element: &Element<'_>) {
        match element {
            Element::StringPiece(bytes) | Element::ModulePiece(bytes) => match &mut self.state {
                State::Text(text) => text.extend_from_slice(bytes),
                State::Base64(rest) => {
                    rest.extend_from_slice(bytes);
                    let whole = rest.len() / 3 * 3;
                    let text = STANDARD.encode(&rest[..whole]);
                    rest.drain(..whole);
                    self.put(&text);
                }
                _ => {}
            },
            Element::Item(bytes) | Element::Member(bytes) => {
                self.comma();
                put_text(bytes, &mut self.line);
            }
            Element::Scored { member, score } => {
                self.comma();
                self.put("{\"member\":");
                put_text(member, &mut self.line);
                self.put(&format!(",\"score\":{}}}", number(*score)));
            }
            Element::Field {
                field,
                value,
                expiry,
            } => {
                self.comma();
                self.put("{\"field\":");
                put_text(field, &mut self.line);
                self.put(",\"value\":");
                put_text(value, &mut self.line);
                if let Some(moment) = expiry {
                    self.put(&format!(",\"expires_at_ms\":{moment}"));
                }
                self.put("}");
            }
            Element::Entry { id, fields } => {
                self.comma();
                self.put(&format!("{{\"id\":\"{}\",\"fields\":[", shown(*id)));
                for (at, bytes) in fields.iter().enumerate() {
                    if at > 0 {
                        self.put(",");
                    }
                    put_text(bytes, &mut self.line);
                }
                self.put("]}");
            }
            group => self.group(group),
        }
    }

    /// What a stream holds beside its entries.
    fn group(&mut self, element: &Element<'_>) {
        match element {
            Element::StreamFacts {
                last_id,
                max_deleted_id,
                entries_added,
                ..
            } => {
                self.put(&format!(
                    "],\"last_id\":\"{}\",\"max_deleted_id\":\"{}\",\"entries_added\":{entries_added},\"groups\":[",
                    shown(*last_id),
                    shown(*max_deleted_id)
                ));
                self.state = State::Groups {
                    has_group: false,
                    consumers: Consumers::NotYet,
                    is_begun: false,
                };
            }
            Element::Group {
                name,
                last_id,
                entries_read,
                ..
            } => {
                self.close_group();
                if let State::Groups {
                    has_group: true, ..
                } = self.state
                {
                    self.put(",");
                }
                self.put("{\"name\":");
                put_text(name, &mut self.line);
                self.put(&format!(",\"last_id\":\"{}\"", shown(*last_id)));
                if let Some(read) = entries_read {
                    self.put(&format!(",\"entries_read\":{read}"));
                }
                self.put(",\"pending\":[");
                self.state = State::Groups {
                    has_group: true,
                    consumers: Consumers::NotYet,
                    is_begun: false,
                };
            }
            Element::Pending {
                id,
                delivered,
                deliveries,
            } => {
                self.comma();
                self.put(&format!(
                    "{{\"id\":\"{}\",\"delivered_at_ms\":{delivered},\"deliveries\":{deliveries}}}",
                    shown(*id)
                ));
            }
            Element::Consumers(_) => {
                self.put("],\"consumers\":[");
                self.state = State::Groups {
                    has_group: true,
                    consumers: Consumers::Begun,
                    is_begun: false,
                };
            }
            Element::Consumer {
                name, seen, active, ..
            } => {
                let was_open = matches!(
                    self.state,
                    State::Groups {
                        consumers: Consumers::Open,
                        ..
                    }
                );
                self.close_consumer();
                if was_open {
                    self.put(",");
                }
                self.put("{\"name\":");
                put_text(name, &mut self.line);
                self.put(&format!(",\"seen_at_ms\":{seen}"));
                if let Some(active) = active {
                    self.put(&format!(",\"active_at_ms\":{active}"));
                }
                self.put(",\"pending\":[");
                self.state = State::Groups {
                    has_group: true,
                    consumers: Consumers::Open,
                    is_begun: false,
                };
            }
            Element::ConsumerPending(id) => {
                self.comma();
                self.put(&format!("\"{}\"", shown(*id)));
            }
            _ => {}
        }
    }
}

impl KeySink for Lines {
    fn take(&mut self, event: RecordEvent<'_>) -> Result<(), Failure> {
        match event {
            RecordEvent::Begin(head, size) => {
                self.put(&format!("{{\"db\":{},\"key\":", head.database));
                put_text(head.key, &mut self.line);
                self.put(",\"type\":");
                put_text(head.kind.name().as_bytes(), &mut self.line);
                if let Some(moment) = head.expiry {
                    self.put(&format!(",\"expires_at_ms\":{moment}"));
                }
                self.put(",\"value\":");
                self.state = match head.kind {
                    Kind::String if size.bytes <= LONGEST_TEXT => State::Text(Vec::new()),
                    Kind::String | Kind::Module(_) => {
                        self.put("{\"base64\":\"");
                        State::Base64(Vec::new())
                    }
                    _ => {
                        self.put("[");
                        State::List(false)
                    }
                };
            }
            RecordEvent::Element(element) => self.element(&element),
            RecordEvent::End => {
                self.close_group();
                match std::mem::replace(&mut self.state, State::List(false)) {
                    State::Text(text) => put_text(&text, &mut self.line),
                    State::Base64(rest) => {
                        let text = STANDARD.encode(rest);
                        self.put(&text);
                        self.put("\"}");
                    }
                    State::List(_) | State::Groups { .. } => self.put("]"),
                }
                self.put("}\n");
            }
        }
        self.settle()
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.to.write_all(&self.line)?;
        self.to.flush()?;
        Ok(())
    }
}

fn shown(id: StreamId) -> String {
    format!("{}-{}", id.milliseconds, id.sequence)
}

/// A score in digits that read as the same number again.
fn number(score: f64) -> String {
    if score.is_infinite() {
        (if score > 0.0 { "\"inf\"" } else { "\"-inf\"" }).to_owned()
    } else {
        format!("{score:?}")
    }
}

fn put_text(bytes: &[u8], to: &mut Vec<u8>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            to.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
        }
        Err(_) => {
            to.extend_from_slice(
                format!("{{\"base64\":\"{}\"}}", STANDARD.encode(bytes)).as_bytes(),
            );
        }
    }
}
