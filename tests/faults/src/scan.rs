//! Looking for what must not be there: secrets in what is written anywhere (P9), processes and folders that nobody owns any
//! more (rule 6).

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Result, Trouble};

/// The variable that marks everything a fleet starts, with the fleet's own name.
pub const MARK: &str = "FETTLER_TEST_FAULTS_FLEET";

/// How long Redis may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Redis keys of one page.
const PAGE: &str = "1000";

/// A word that must not be found.
#[derive(Clone, Debug)]
pub struct Secret {
    /// What it is, for a person.
    pub name: &'static str,
    /// The word.
    pub bytes: Vec<u8>,
}

impl Secret {
    /// A secret text.
    #[must_use]
    pub fn text(name: &'static str, text: &str) -> Self {
        Self {
            name,
            bytes: text.as_bytes().to_vec(),
        }
    }
}

/// Which of the secrets stand in these bytes.
#[must_use]
pub fn found(secrets: &[Secret], bytes: &[u8]) -> Vec<&'static str> {
    secrets
        .iter()
        .filter(|secret| {
            !secret.bytes.is_empty() && memchr::memmem::find(bytes, &secret.bytes).is_some()
        })
        .map(|secret| secret.name)
        .collect()
}

/// All files below a folder.
///
/// # Errors
///
/// When a folder cannot be read; one that is not there has no files.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Trouble::io(format!("read {}", folder.display()))(error)),
    };
    let mut all = Vec::new();
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => all.extend(files(&entry.path())?),
            Ok(_) => all.push(entry.path()),
            // It was removed meanwhile.
            Err(_) => {}
        }
    }
    Ok(all)
}

/// The processes that this fleet, or anything of it, has started.
#[must_use]
pub fn processes(fleet: &str) -> Vec<(u32, String)> {
    let mark = format!("{MARK}={fleet}\0");
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    ids.filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut environment = std::fs::read(entry.path().join("environ")).ok()?;
        environment.push(0);
        let is_of_it = environment
            .windows(mark.len())
            .any(|window| window == mark.as_bytes());
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        is_of_it.then_some((id, command))
    })
    .collect()
}

/// Everything that Redis holds, in the order in which it tells it.
///
/// # Errors
///
/// When it does not answer.
pub fn redis_content(port: u16, password: &str) -> Result<Vec<u8>> {
    let trouble = Trouble::io("read what Redis holds");
    let read = || -> std::io::Result<Vec<u8>> {
        let mut redis = Resp::connect(port)?;
        redis.ask(&["AUTH", password])?;
        let mut all = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let page = redis.ask(&["SCAN", &cursor, "COUNT", PAGE])?;
            let mut texts = page.split(|byte| *byte == b'\n');
            cursor = String::from_utf8_lossy(texts.next().unwrap_or(b"0")).into_owned();
            for key in texts.filter(|key| !key.is_empty()) {
                let key = String::from_utf8_lossy(key).into_owned();
                all.extend_from_slice(key.as_bytes());
                all.push(b'\n');
                let kind = redis.ask(&["TYPE", &key])?;
                let reading: &[&str] = match kind.trim_ascii() {
                    b"string" => &["GET", &key],
                    b"hash" => &["HGETALL", &key],
                    b"zset" => &["ZRANGE", &key, "0", "-1", "WITHSCORES"],
                    b"list" => &["LRANGE", &key, "0", "-1"],
                    b"set" => &["SMEMBERS", &key],
                    // It was removed meanwhile.
                    _ => continue,
                };
                all.extend(redis.ask(reading)?);
            }
            if cursor == "0" {
                return Ok(all);
            }
        }
    };
    read().map_err(trouble)
}

/// The least of a Redis client: what is asked, and the texts of the answer, a line each.
struct Resp(std::io::BufReader<TcpStream>);

impl Resp {
    fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self(std::io::BufReader::new(stream)))
    }

    fn ask(&mut self, words: &[&str]) -> std::io::Result<Vec<u8>> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        self.answer(&mut answer)?;
        Ok(answer)
    }

    fn answer(&mut self, into: &mut Vec<u8>) -> std::io::Result<()> {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.0, &mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).unwrap_or(("", ""));
        let count = || rest.parse::<i64>().unwrap_or(-1);
        match kind {
            "*" => {
                for _ in 0..count().max(0) {
                    self.answer(into)?;
                }
            }
            "$" => {
                if let Ok(bytes) = usize::try_from(count()) {
                    let mut text = vec![0; bytes + 2];
                    self.0.read_exact(&mut text)?;
                    into.extend_from_slice(&text[..bytes]);
                    into.push(b'\n');
                }
            }
            "+" | ":" => {
                into.extend_from_slice(rest.as_bytes());
                into.push(b'\n');
            }
            _ => return Err(std::io::Error::other(format!("Redis answered {line:?}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_it_stands() {
        let secrets = [Secret::text("word", "hush"), Secret::text("nothing", "")];
        assert_eq!(found(&secrets, b"say hush now"), ["word"]);
        assert!(found(&secrets, b"say hus").is_empty());
        assert!(found(&secrets, b"").is_empty());
    }
}
