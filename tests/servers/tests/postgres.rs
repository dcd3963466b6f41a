//! PostgreSQL servers start, serve, stop, survive `kill -9`, and leave nothing behind.

use std::path::PathBuf;
use std::time::Duration;

use fettler_test_servers::{PgMajor, PostgresOptions, PostgresServer, ServerError, wait_until};

fn is_gone(pid: u32) -> bool {
    !PathBuf::from(format!("/proc/{pid}")).exists()
}

#[test]
fn each_version_starts_and_answers_over_tcp_and_socket() {
    for major in PgMajor::ALL {
        let server =
            PostgresServer::start(major, PostgresOptions::new().setting("work_mem", "7MB"))
                .unwrap();
        let version = server.psql("postgres", "SHOW server_version_num").unwrap();
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major.number());
        assert_eq!(
            server
                .psql("postgres", "SHOW work_mem; SELECT 1, 'a';")
                .unwrap(),
            "7MB\n1|a"
        );
        let by_socket = server
            .run(
                "psql",
                "postgres",
                &[
                    "-X",
                    "-A",
                    "-t",
                    "-d",
                    &server.socket_url("postgres"),
                    "-c",
                    "SELECT inet_server_addr() IS NULL",
                ],
            )
            .unwrap();
        assert_eq!(by_socket.trim(), "t");
        let dump = server.run("pg_dump", "postgres", &["--version"]).unwrap();
        assert!(
            dump.contains(&format!("(PostgreSQL) {}", major.number())),
            "{dump}"
        );
    }
}

#[test]
fn a_wrong_password_is_refused() {
    let server = PostgresServer::shared(PgMajor::V15);
    let wrong = server.url_as("postgres", "guess", "postgres");
    let error = server
        .run("psql", "postgres", &["-X", "-d", &wrong, "-c", "SELECT 1"])
        .unwrap_err();
    assert!(
        error.to_string().contains("password authentication failed"),
        "{error}"
    );
}

#[test]
fn a_failing_statement_is_an_error_with_the_servers_words() {
    let database = PostgresServer::shared(PgMajor::V18)
        .create_database("failing")
        .unwrap();
    let error = database
        .psql("SELECT 1; SELECT * FROM nowhere; SELECT 2;")
        .unwrap_err();
    assert!(matches!(error, ServerError::Command { .. }));
    assert!(
        error.to_string().contains("\"nowhere\" does not exist"),
        "{error}"
    );
}

#[test]
fn a_restart_keeps_port_and_data_and_kill_9_loses_nothing_committed() {
    let mut server = PostgresServer::start(PgMajor::V18, PostgresOptions::new()).unwrap();
    let port = server.port();
    server
        .psql(
            "postgres",
            "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)",
        )
        .unwrap();
    let first = server.pid().unwrap();
    server.restart().unwrap();
    assert_ne!(server.pid().unwrap(), first);
    server
        .psql(
            "postgres",
            "INSERT INTO kept VALUES (2); SET synchronous_commit = on; INSERT INTO kept VALUES (3)",
        )
        .unwrap();
    let second = server.pid().unwrap();
    server.kill_9().unwrap();
    assert!(is_gone(second));
    assert!(server.psql("postgres", "SELECT 1").is_err());
    server.start_again().unwrap();
    assert_eq!(server.port(), port);
    assert_eq!(
        server.psql("postgres", "SELECT sum(n) FROM kept").unwrap(),
        "6"
    );
    server.stop().unwrap();
    assert_eq!(server.pid(), None);
}

#[test]
fn a_dropped_server_is_gone_with_its_folder() {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new().durable()).unwrap();
    let (pid, folder) = (server.pid().unwrap(), server.data_dir());
    assert!(folder.exists() && !is_gone(pid));
    assert_eq!(server.psql("postgres", "SHOW fsync").unwrap(), "on");
    drop(server);
    assert!(is_gone(pid) && !folder.exists());
}

#[test]
fn databases_of_a_shared_server_are_apart_and_dropped() {
    let server = PostgresServer::shared(PgMajor::V15);
    assert!(std::ptr::eq(server, PostgresServer::shared(PgMajor::V15)));
    let one = server.create_database("a \"quoted\" name").unwrap();
    let two = server.create_database("a \"quoted\" name").unwrap();
    one.psql("CREATE TABLE here ()").unwrap();
    assert!(two.psql("SELECT FROM here").is_err());
    let count = |name: &str| {
        let name = name.replace('\'', "''");
        server
            .psql(
                "postgres",
                &format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'"),
            )
            .unwrap()
    };
    let name = one.name().to_owned();
    assert_eq!(count(&name), "1");
    drop(one);
    assert_eq!(count(&name), "0");
}

#[test]
fn tls_is_offered_where_it_is_asked_for_and_verifies() {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new().tls()).unwrap();
    let certificate = server.certificate().unwrap();
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.url("postgres"),
        certificate.display()
    );
    let answer = server
        .run(
            "psql",
            "postgres",
            &[
                "-X",
                "-A",
                "-t",
                "-d",
                &url,
                "-c",
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            ],
        )
        .unwrap();
    assert_eq!(answer.trim(), "t");
    let error = PostgresServer::start(PgMajor::V18, PostgresOptions::new().tls()).unwrap_err();
    assert!(matches!(error, ServerError::Unsupported(_)), "{error}");
}

#[test]
fn a_server_that_cannot_start_shows_the_end_of_its_log() {
    let error = PostgresServer::start(
        PgMajor::V15,
        PostgresOptions::new().setting("work_mem", "a lot"),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("invalid value for parameter \"work_mem\""),
        "{error}"
    );
}

#[test]
fn a_server_outlives_the_thread_that_started_it() {
    let server =
        std::thread::spawn(|| PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap())
            .join()
            .unwrap();
    // The thread is gone; a signal bound to it would have arrived by the time that a few statements have run.
    for _ in 0..5 {
        assert_eq!(server.psql("postgres", "SELECT 1").unwrap(), "1");
    }
}

/// The other half of `nothing_outlives_a_test_process_that_is_killed`, which runs this very binary.
#[test]
#[ignore = "started by another test"]
fn helper_that_starts_servers_and_waits_to_be_killed() {
    let server = PostgresServer::start(PgMajor::V15, PostgresOptions::new()).unwrap();
    println!(
        "\nready {} {}",
        server.pid().unwrap(),
        server.data_dir().display()
    );
    std::thread::park();
}

#[test]
fn nothing_outlives_a_test_process_that_is_killed() {
    use std::io::{BufRead, BufReader};
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "helper_that_starts_servers_and_waits_to_be_killed",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let ready = output
        .lines()
        .map(Result::unwrap)
        .find(|line| line.starts_with("ready "))
        .expect("the helper is ready");
    let mut words = ready.split(' ').skip(1);
    let pid: u32 = words.next().unwrap().parse().unwrap();
    let data_dir = PathBuf::from(words.next().unwrap());
    let process_folder = data_dir.ancestors().nth(2).unwrap();
    assert!(!is_gone(pid) && data_dir.exists());
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until("the server to end", Duration::from_secs(20), || {
        is_gone(pid)
    })
    .unwrap();
    wait_until("its folder to be removed", Duration::from_secs(20), || {
        !process_folder.exists()
    })
    .unwrap();
}
