//! The commands in a stream of replication, as far as its offsets are concerned: where one ends, and where a transaction does.
//!
//! Every byte of the stream counts in its offsets, also those of `PING` and `REPLCONF GETACK`, which change nothing. A
//! transaction comes as `MULTI`, its commands, `EXEC`; nothing of another client lies between.

/// Digits of a number in the protocol, with its sign and the end of the line.
const LONGEST_HEADER: usize = 24;
/// Bytes of a command's name that are looked at; no name that matters is longer.
const NAME_BYTES: usize = 8;

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at} of the stream there is no command of the protocol")]
pub(crate) struct NoCommand {
    /// How many bytes were right.
    pub(crate) at: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The number of arguments of a command.
    Count,
    /// The length of an argument.
    Length,
    /// So many bytes of an argument and its line's end.
    Argument(u64),
}

/// Reads a stream in pieces that are cut anywhere.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    next: Next,
    header: Vec<u8>,
    /// Arguments of the command that have not come.
    left: u64,
    name: Vec<u8>,
    /// Whether the argument that comes is the command's name.
    is_name: bool,
    is_in_transaction: bool,
    read: u64,
    commands: u64,
    whole: u64,
}

impl Scanner {
    /// Reads from between two commands.
    pub(crate) fn new() -> Self {
        Self {
            next: Next::Count,
            header: Vec::new(),
            left: 0,
            name: Vec::new(),
            is_name: false,
            is_in_transaction: false,
            read: 0,
            commands: 0,
            whole: 0,
        }
    }

    /// How many bytes hold nothing but whole commands and whole transactions.
    pub(crate) fn whole(&self) -> u64 {
        self.whole
    }

    /// How many commands they are, those of transactions one by one.
    pub(crate) fn commands(&self) -> u64 {
        self.commands
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// Where they are no commands.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), NoCommand> {
        while !bytes.is_empty() {
            if let Next::Argument(left) = &mut self.next {
                let here = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                // The two bytes of the line's end are no part of a name.
                let of_name = usize::try_from(left.saturating_sub(2))
                    .unwrap_or(here)
                    .min(here);
                if self.is_name && self.name.len() < NAME_BYTES {
                    let room = NAME_BYTES - self.name.len();
                    self.name
                        .extend(bytes[..of_name.min(room)].to_ascii_uppercase());
                }
                *left -= here as u64;
                let is_over = *left == 0;
                self.read += here as u64;
                bytes = &bytes[here..];
                if is_over {
                    self.argument_ended();
                }
                continue;
            }
            let byte = bytes[0];
            bytes = &bytes[1..];
            self.read += 1;
            // A primary sends empty lines as signs of life.
            if self.header.is_empty() && byte == b'\n' && self.next == Next::Count {
                self.between_commands();
                continue;
            }
            self.header.push(byte);
            if byte == b'\n' {
                self.header_ended()?;
            } else if self.header.len() > LONGEST_HEADER {
                return Err(NoCommand { at: self.read });
            }
        }
        Ok(())
    }

    fn header_ended(&mut self) -> Result<(), NoCommand> {
        let wrong = NoCommand { at: self.read };
        let line = std::mem::take(&mut self.header);
        let line = line.strip_suffix(b"\r\n").ok_or(wrong)?;
        let (sign, number) = line.split_first().ok_or(wrong)?;
        let number: u64 = std::str::from_utf8(number)
            .ok()
            .and_then(|number| number.parse().ok())
            .ok_or(wrong)?;
        match (self.next, sign) {
            (Next::Count, b'*') if number > 0 => {
                self.left = number;
                self.is_name = true;
                self.name.clear();
                self.next = Next::Length;
            }
            (Next::Length, b'$') => {
                self.next = Next::Argument(number.checked_add(2).ok_or(wrong)?);
            }
            _ => return Err(wrong),
        }
        Ok(())
    }

    fn argument_ended(&mut self) {
        self.is_name = false;
        self.left -= 1;
        if self.left > 0 {
            self.next = Next::Length;
            return;
        }
        self.next = Next::Count;
        self.commands += 1;
        match self.name.as_slice() {
            b"MULTI" => self.is_in_transaction = true,
            b"EXEC" => self.is_in_transaction = false,
            _ => {}
        }
        self.between_commands();
    }

    fn between_commands(&mut self) {
        if !self.is_in_transaction {
            self.whole = self.read;
        }
    }
}

/// A command in the protocol's own form.
pub(crate) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_transaction_is_whole_at_its_end_only() {
        let mut scanner = Scanner::new();
        let begin = [command(&[b"SELECT", b"0"]), command(&[b"SET", b"a", b"1"])].concat();
        scanner.take(&begin).unwrap();
        assert_eq!(scanner.whole(), begin.len() as u64);
        scanner.take(&command(&[b"multi"])).unwrap();
        scanner
            .take(&command(&[b"SET", b"EXEC", b"MULTI"]))
            .unwrap();
        assert_eq!(scanner.whole(), begin.len() as u64);
        scanner.take(&command(&[b"EXEC"])).unwrap();
        assert!(scanner.whole() > begin.len() as u64 + 40);
        assert_eq!(scanner.commands(), 5);
    }

    #[test]
    fn what_is_no_command_is_told() {
        for wrong in [
            b"+OK\r\n".as_slice(),
            b"*0\r\n",
            b"*1\r\n:5\r\n",
            b"*-1\r\n",
            b"*1\n",
            b"SET a b\r\n",
            b"*1\r\n$18446744073709551615\r\n",
            b"*11111111111111111111111111111111",
        ] {
            let mut scanner = Scanner::new();
            assert!(scanner.take(wrong).is_err(), "{wrong:?}");
            assert_eq!(scanner.whole(), 0);
        }
    }

    proptest! {
        #[test]
        fn wherever_a_stream_is_cut_its_commands_are_found(
            stream in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..4)),
                1..20,
            ),
            piece in 1usize..50,
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            let mut commands = 0;
            for (is_transaction, values) in &stream {
                if *is_transaction {
                    bytes.extend(command(&[b"MULTI"]));
                    commands += 2;
                }
                for value in values {
                    bytes.extend(command(&[b"SET", value, b"\r\n"]));
                    commands += 1;
                    if !is_transaction {
                        ends.push(bytes.len() as u64);
                    }
                }
                if *is_transaction {
                    bytes.extend(command(&[b"EXEC"]));
                    ends.push(bytes.len() as u64);
                }
            }
            let mut scanner = Scanner::new();
            let mut read = 0;
            for piece in bytes.chunks(piece) {
                scanner.take(piece).unwrap();
                read += piece.len() as u64;
                let expected = ends.iter().copied().filter(|end| *end <= read).max();
                prop_assert_eq!(Some(scanner.whole()), expected);
            }
            prop_assert_eq!(scanner.commands(), commands);
        }
    }
}
