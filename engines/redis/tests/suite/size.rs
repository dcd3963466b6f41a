//! Larger servers. `FETTLER_TEST_SCALE` multiplies the size: 1 is some twenty megabytes, 50 a gigabyte with values of
//! hundreds of megabytes.

use std::time::Instant;

use redis::{Connection, cmd, pipe};

use crate::common::{back_up, client, noise, prove_after, run, server};

fn scale() -> u64 {
    std::env::var("FETTLER_TEST_SCALE").map_or(1, |text| {
        text.parse().expect("FETTLER_TEST_SCALE is a number")
    })
}

fn fill(client: &mut Connection, scale: u64) {
    for at in 0..20 * scale {
        let mut batch = pipe();
        for key in at * 1000..(at + 1) * 1000 {
            batch
                .cmd("SET")
                .arg(format!("user:{key}:name"))
                .arg(noise(200, key))
                .ignore();
            batch
                .cmd("HSET")
                .arg(format!("user:{key}"))
                .arg("id")
                .arg(key)
                .arg("balance")
                .arg(key * 7)
                .ignore();
        }
        batch.exec(client).unwrap();
    }
    // One value of each type that goes back in parts.
    for at in 0..5 * scale {
        cmd("APPEND")
            .arg("one:string")
            .arg(noise(1 << 20, at))
            .exec(client)
            .unwrap();
        for (verb, key) in [
            ("SADD", "one:set"),
            ("RPUSH", "one:list"),
            ("HSET", "one:hash"),
            ("ZADD", "one:zset"),
        ] {
            let mut add = cmd(verb);
            add.arg(key);
            for item in at * 5000..(at + 1) * 5000 {
                match verb {
                    "HSET" => add.arg(item).arg(noise(50, item)),
                    "ZADD" => add.arg(item as f64 * 1.1).arg(noise(50, item)),
                    _ => add.arg(noise(50, item)),
                };
            }
            add.exec(client).unwrap();
        }
    }
    run(client, "PEXPIREAT one:hash 4102444800000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_larger_server_is_proven_and_one_changed_digit_in_it_is_found() {
    let source = server();
    fill(&mut client(&source.url()), scale());
    let began = Instant::now();
    let (backup, report) = back_up(&source.url()).await;
    println!("backed up in {:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(
        prove_after(&backup, &report, |_| ()).await,
        Vec::<String>::new()
    );
    println!("proven in {:?}", began.elapsed());
    let found = prove_after(&backup, &report, |copy| {
        run(copy, "HSET user:12345 balance 86416");
    })
    .await;
    assert!(
        found.iter().any(|what| what.contains("db0/hash")),
        "{found:?}"
    );
}
