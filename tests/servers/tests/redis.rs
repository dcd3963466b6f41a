//! Redis starts, keeps over `kill -9` only what it was asked to keep, and asks for its password.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use fettler_test_servers::{RedisOptions, RedisServer};

fn ask(port: u16, commands: &[&str]) -> Vec<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut answers = Vec::new();
    for command in commands {
        write!(stream, "{command}\r\n").unwrap();
        answers.push(lines.next().unwrap().unwrap());
    }
    answers
}

#[test]
fn a_server_without_persistence_forgets_everything_at_kill_9() {
    let mut server = RedisServer::start(RedisOptions::new()).unwrap();
    let port = server.port();
    assert_eq!(ask(port, &["SET a 1", "EXISTS a"]), ["+OK", ":1"]);
    server.kill_9().unwrap();
    assert_eq!(server.pid(), None);
    server.start_again().unwrap();
    assert_eq!(server.port(), port);
    assert_eq!(ask(port, &["EXISTS a", "SET a 2"]), [":0", "+OK"]);
    server.flush_all().unwrap();
    assert_eq!(ask(port, &["EXISTS a"]), [":0"]);
    server.stop().unwrap();
    assert_eq!(server.pid(), None);
}

#[test]
fn a_persistent_server_keeps_what_it_answered() {
    let mut server = RedisServer::start(RedisOptions::new().persistent()).unwrap();
    assert_eq!(ask(server.port(), &["SET a 1"]), ["+OK"]);
    server.kill_9().unwrap();
    server.start_again().unwrap();
    assert_eq!(ask(server.port(), &["EXISTS a"]), [":1"]);
}

#[test]
fn a_password_is_asked_for_and_stands_in_the_url() {
    let server = RedisServer::start(RedisOptions::new().password("Open7")).unwrap();
    assert!(ask(server.port(), &["PING"])[0].starts_with("-NOAUTH"));
    assert_eq!(
        ask(server.port(), &["AUTH Open7", "PING"]),
        ["+OK", "+PONG"]
    );
    assert_eq!(
        server.url(),
        format!("redis://:Open7@127.0.0.1:{}/", server.port())
    );
    server.flush_all().unwrap();
}
