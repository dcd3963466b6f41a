//! P4 for Redis, through the binary: backed up, proven in a private server, restored into another one, and equal to the
//! source by the server's own digest. Types and odd values are the engine's own suite's matter.

#![allow(clippy::unwrap_used)]

use fettler_tests::{
    Installation, Size,
    servers::{RedisOptions, RedisServer},
};
use redis::{Connection, cmd, pipe};
use rstest::rstest;

fn start() -> RedisServer {
    let options = RedisOptions::new()
        .password("s3cretOfRedis")
        .setting("enable-debug-command", "yes")
        .setting("repl-diskless-sync-delay", "0");
    RedisServer::start(options).unwrap()
}

fn client(server: &RedisServer) -> Connection {
    redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap()
}

fn digest(server: &RedisServer) -> String {
    cmd("DEBUG")
        .arg("DIGEST")
        .query(&mut client(server))
        .unwrap()
}

#[rstest]
fn p4_p9_a_redis_server_comes_back_and_its_password_stands_nowhere(
    #[values(Size::Embedded, Size::Fleet)] size: Size,
) {
    let (source, copy) = (start(), start());
    let mut writer = client(&source);
    let mut batch = pipe();
    for user in 0..20_000 {
        batch
            .cmd("HSET")
            .arg(format!("user:{user}"))
            .arg("balance")
            .arg(user * 7)
            .ignore();
    }
    batch.exec(&mut writer).unwrap();
    cmd("ZADD")
        .arg("scores")
        .arg("-0")
        .arg("zero")
        .exec(&mut writer)
        .unwrap();

    let fettler = Installation::of_size(size);
    let made = fettler.json(&["backup", &source.url()]);
    assert_eq!(made["engine"], "redis", "{made:#}");
    let proof = fettler.json(&["prove", "latest"]);
    assert_eq!(proof["proven"], true, "{proof:#}");

    fettler
        .run(&["restore", "latest", "--to", &copy.url(), "--json"])
        .done();
    assert_eq!(digest(&source), digest(&copy));

    // A file, from which a server starts.
    let mut started = start();
    let (_, folder): (String, String) = cmd("CONFIG")
        .arg("GET")
        .arg("dir")
        .query(&mut client(&started))
        .unwrap();
    started.kill_9().unwrap();
    let to = format!("rdb:{folder}/dump.rdb");
    fettler.run(&["restore", "latest", "--to", &to]).done();
    started.start_again().unwrap();
    assert_eq!(digest(&source), digest(&started));
    let refused = fettler.run(&["restore", "latest", "--to", &to]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("--overwrite"), "{}", refused.stderr);
    let refused = fettler.run(&["backup", &to]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("name a server"),
        "{}",
        refused.stderr
    );

    // P9: the password is nowhere in what Fettler wrote.
    let found = std::process::Command::new("grep")
        .args(["-rlF", "s3cretOfRedis"])
        .args(fettler.folders())
        .output()
        .unwrap();
    assert!(
        found.stdout.is_empty(),
        "the password stands in {}",
        String::from_utf8_lossy(&found.stdout)
    );

    cmd("SET")
        .arg("another")
        .arg("key")
        .exec(&mut writer)
        .unwrap();
    let second = fettler.json(&["backup", &source.url()]);
    assert_eq!(second["parent"], made["backup"]);
}
