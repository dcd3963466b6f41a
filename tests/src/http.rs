//! The least of an HTTP client: one request, one answer, no library between the test and what is on the wire.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// Longer than an answer takes on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Sends a GET; gives back the status and the body.
///
/// # Errors
///
/// When nobody answers, or not in HTTP.
pub fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    send(address, "GET", path, &[], "")
}

/// Sends a request; gives back the status and the body.
///
/// # Errors
///
/// When nobody answers, or not in HTTP.
pub fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    write!(stream, "{head}\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    match (status, body) {
        (Some(status), Some(body)) => Ok((status, body.to_owned())),
        _ => Err(std::io::Error::other(format!("no HTTP: {answer:?}"))),
    }
}
