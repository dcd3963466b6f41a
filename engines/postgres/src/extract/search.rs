//! `tsvector` and `tsquery` as text.

use super::value::{Bytes, Malformed, Read};

/// A lexeme in quotes, with quotes and backslashes doubled.
fn put_lexeme(lexeme: &[u8], to: &mut Vec<u8>) {
    to.push(b'\'');
    for byte in lexeme {
        if matches!(byte, b'\'' | b'\\') {
            to.push(*byte);
        }
        to.push(*byte);
    }
    to.push(b'\'');
}

/// The letters of weights; D is the usual one and not written in vectors.
const WEIGHTS: [u8; 4] = *b"DCBA";

/// Adds a `tsvector`.
pub(super) fn put_tsvector(bytes: &mut Bytes<'_>, to: &mut Vec<u8>) -> Read<()> {
    for number in 0..bytes.count()? {
        if number > 0 {
            to.push(b' ');
        }
        put_lexeme(bytes.terminated()?, to);
        for place in 0..bytes.u16()? {
            to.push(if place == 0 { b':' } else { b',' });
            // Two bits of weight, then the place.
            let entry = bytes.u16()?;
            to.extend_from_slice((entry & 0x3fff).to_string().as_bytes());
            let weight = usize::from(entry >> 14);
            if weight > 0 {
                to.push(WEIGHTS[weight]);
            }
        }
    }
    Ok(())
}

/// A node of a query.
enum Node {
    Value {
        weights: u8,
        is_prefix: bool,
        lexeme: Vec<u8>,
    },
    Not(Box<Self>),
    /// Operator, left, right, and for a phrase the distance.
    Two(Operator, Box<Self>, Box<Self>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    And,
    Or,
    Phrase(u16),
}

impl Operator {
    /// How strongly it binds: as the server's own table has it.
    const fn priority(self) -> u8 {
        match self {
            Self::Or => 1,
            Self::And => 2,
            Self::Phrase(_) => 3,
        }
    }
}

/// How strongly a negation binds.
const NOT_PRIORITY: u8 = 4;
/// A query is at most so deep, so that reading it cannot exhaust the stack.
const DEEPEST: u32 = 2_000;

fn read_node(bytes: &mut Bytes<'_>, depth: u32) -> Read<Node> {
    if depth > DEEPEST {
        return Err(Malformed("a query that is too deep"));
    }
    match bytes.u8()? {
        1 => Ok(Node::Value {
            weights: bytes.u8()?,
            is_prefix: bytes.u8()? != 0,
            lexeme: bytes.terminated()?.to_vec(),
        }),
        2 => {
            let operator = match bytes.u8()? {
                1 => return Ok(Node::Not(Box::new(read_node(bytes, depth + 1)?))),
                2 => Operator::And,
                3 => Operator::Or,
                4 => Operator::Phrase(bytes.u16()?),
                _ => return Err(Malformed("an operator that is not known")),
            };
            // The right operand stands first.
            let right = read_node(bytes, depth + 1)?;
            let left = read_node(bytes, depth + 1)?;
            Ok(Node::Two(operator, Box::new(left), Box::new(right)))
        }
        _ => Err(Malformed("a node that is not known")),
    }
}

/// Adds a `tsquery`.
pub(super) fn put_tsquery(bytes: &mut Bytes<'_>, to: &mut Vec<u8>) -> Read<()> {
    if bytes.u32()? == 0 {
        return Ok(());
    }
    let root = read_node(bytes, 0)?;
    put_node(&root, 0, false, to);
    Ok(())
}

/// Adds a node below an operator of this priority; `is_right_of_phrase` as in the server's `infix`.
fn put_node(node: &Node, parent: u8, is_right_of_phrase: bool, to: &mut Vec<u8>) {
    match node {
        Node::Value {
            weights,
            is_prefix,
            lexeme,
        } => {
            put_lexeme(lexeme, to);
            if *is_prefix || *weights > 0 {
                to.push(b':');
                if *is_prefix {
                    to.push(b'*');
                }
                for (bit, letter) in [(3, b'A'), (2, b'B'), (1, b'C'), (0, b'D')] {
                    if weights & (1 << bit) != 0 {
                        to.push(letter);
                    }
                }
            }
        }
        Node::Not(inner) => {
            let needs_brackets = NOT_PRIORITY < parent;
            if needs_brackets {
                to.extend_from_slice(b"( ");
            }
            to.push(b'!');
            put_node(inner, NOT_PRIORITY, false, to);
            if needs_brackets {
                to.extend_from_slice(b" )");
            }
        }
        Node::Two(operator, left, right) => {
            let priority = operator.priority();
            let is_phrase = matches!(operator, Operator::Phrase(_));
            let needs_brackets = priority < parent || (is_phrase && is_right_of_phrase);
            if needs_brackets {
                to.extend_from_slice(b"( ");
            }
            put_node(left, priority, false, to);
            match operator {
                Operator::And => to.extend_from_slice(b" & "),
                Operator::Or => to.extend_from_slice(b" | "),
                Operator::Phrase(1) => to.extend_from_slice(b" <-> "),
                Operator::Phrase(distance) => {
                    to.extend_from_slice(format!(" <{distance}> ").as_bytes());
                }
            }
            put_node(right, priority, is_phrase, to);
            if needs_brackets {
                to.extend_from_slice(b" )");
            }
        }
    }
}
