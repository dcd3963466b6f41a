//! Sandboxes: private servers that leave nothing behind, scratch databases on servers that others use, and no code
//! of the dump with a superuser's rights (rule 31).

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fettler_engine::{
    Artefact, DatabaseEngine, RestoreOptions, SandboxRequest, SandboxSpec, testing::MemoryRecord,
};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::{Engine, JobId};
use fettler_test_servers::{PgMajor, PostgresServer, wait_until};

use crate::common::{
    Attempt, Memory, Watcher, back_up, close, engine, mismatches, open_sandbox, target,
};

fn folder_of(artefact: &Artefact) -> String {
    artefact.data["folder"].as_str().unwrap().to_owned()
}

fn process_of(artefact: &Artefact) -> u64 {
    artefact.data["process"][0].as_u64().unwrap()
}

fn has_ended(artefact: &Artefact) -> bool {
    let id = process_of(artefact);
    std::fs::read_to_string(format!("/proc/{id}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn is_gone(artefact: &Artefact) -> bool {
    has_ended(artefact) && !Path::new(&folder_of(artefact)).exists()
}

async fn small_backup(major: PgMajor) -> (Memory, fettler_engine::BackupReport) {
    let source = PostgresServer::shared(major)
        .create_database("small")
        .unwrap();
    source
        .psql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
        .unwrap();
    back_up(&engine(major), &source.url()).await
}

#[tokio::test]
async fn a_private_server_is_recorded_before_it_is_made_listens_on_no_network_and_goes() {
    for major in PgMajor::ALL {
        let (_, report) = small_backup(major).await;
        let engine = engine(major);
        let attempt = Attempt::new();
        let sandbox = open_sandbox(&engine, &attempt, &report).await;
        let [artefact] = sandbox.artefacts.as_slice() else {
            panic!("{:?}", sandbox.artefacts)
        };
        assert_eq!(*attempt.ledger.0.lock().unwrap(), [artefact.clone()]);
        assert!(artefact.name.contains(&attempt.context.attempt.to_string()));
        let id = process_of(artefact);
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        assert!(!status.contains("Uid:\t0"), "it runs as root");
        let sockets = std::fs::read_dir(format!("/proc/{id}/fd"))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter_map(|link| {
                link.to_string_lossy()
                    .strip_prefix("socket:[")
                    .map(|rest| rest.trim_end_matches(']').to_owned())
            })
            .collect::<Vec<_>>();
        for table in ["tcp", "tcp6"] {
            let listed = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap();
            for line in listed
                .lines()
                .skip(1)
                .filter(|line| line.split_whitespace().nth(3) == Some("0A"))
            {
                let inode = line.split_whitespace().nth(9).unwrap();
                assert!(
                    !sockets.iter().any(|socket| socket == inode),
                    "it listens: {line}"
                );
            }
        }
        close(&engine, &sandbox).await;
        assert!(is_gone(artefact));
        // Removing what is gone is no error.
        close(&engine, &sandbox).await;
    }
}

/// The other half of the test below: a worker that is killed.
#[tokio::test]
#[ignore = "started by another test"]
async fn helper_that_opens_a_sandbox_and_waits_to_be_killed() {
    let (_, report) = small_backup(PgMajor::V15).await;
    let attempt = Attempt::new();
    let sandbox = open_sandbox(&engine(PgMajor::V15), &attempt, &report).await;
    println!(
        "\nready {}",
        serde_json::to_string(&sandbox.artefacts[0]).unwrap()
    );
    std::future::pending::<()>().await;
}

fn killed_worker(remove_while_alive: bool) -> (std::process::Child, Artefact) {
    use std::io::{BufRead, BufReader};
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "sandbox::helper_that_opens_a_sandbox_and_waits_to_be_killed",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(worker.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find(|line| line.starts_with("ready "))
        .expect("the helper is ready");
    let artefact: Artefact = serde_json::from_str(line.trim_start_matches("ready ")).unwrap();
    assert!(!is_gone(&artefact));
    if !remove_while_alive {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    (worker, artefact)
}

#[tokio::test]
async fn a_private_server_ends_with_its_worker_and_can_be_removed_by_another_process() {
    let (_, artefact) = killed_worker(false);
    wait_until(
        "the server to end with its worker",
        Duration::from_secs(60),
        || has_ended(&artefact),
    )
    .unwrap();
    engine(PgMajor::V15)
        .remove_artefact(&artefact, None)
        .await
        .unwrap();
    assert!(is_gone(&artefact));

    let (mut worker, artefact) = killed_worker(true);
    engine(PgMajor::V15)
        .remove_artefact(&artefact, None)
        .await
        .unwrap();
    assert!(is_gone(&artefact));
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test]
async fn a_record_of_something_that_was_never_made_is_removed_without_an_error() {
    let folder = tempfile::tempdir().unwrap().path().join("pg-never-made");
    let artefact = Artefact {
        engine: Engine::Postgres,
        kind: "server".to_owned(),
        name: "x".to_owned(),
        data: serde_json::json!({"what": "server", "folder": folder, "process": [1, 1]}),
        until_job_ends: true,
    };
    PostgresEngine::default()
        .remove_artefact(&artefact, None)
        .await
        .unwrap();
}

/// Code of every kind that a restore runs, owned by a superuser at the source. Each notes with which rights it runs.
const SPY: &str = "
    CREATE SEQUENCE public.runs;
    CREATE FUNCTION public.spy(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            RAISE EXCEPTION 'the dump''s code runs as a superuser: % %', current_user, session_user;
        END IF;
        RETURN $1;
    END $$;
    CREATE DOMAIN public.spied AS int CHECK (public.spy(VALUE) > 0);
    CREATE TABLE public.code (id int CHECK (public.spy(id) > 0), g int GENERATED ALWAYS AS (public.spy(id)) STORED, d public.spied);
    CREATE INDEX code_index ON public.code (public.spy(id));
    CREATE MATERIALIZED VIEW public.code_view AS SELECT public.spy(id) FROM public.code WITH NO DATA;
    CREATE FUNCTION public.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy(1); END $$;
    CREATE EVENT TRIGGER code_trigger ON ddl_command_end EXECUTE FUNCTION public.on_ddl();";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_31_the_dumps_own_code_never_runs_as_a_superuser_in_a_private_sandbox() {
    for major in PgMajor::ALL {
        let source = PostgresServer::shared(major)
            .create_database("code")
            .unwrap();
        source.psql(SPY).unwrap();
        // The source's own superuser may insert only with the spy silenced.
        source
            .psql(
                "ALTER EVENT TRIGGER code_trigger DISABLE;
                 CREATE FUNCTION public.kept() RETURNS text LANGUAGE sql AS $$ SELECT pg_get_functiondef('public.spy'::regproc) $$;
                 CREATE TEMP TABLE saved AS SELECT pg_get_functiondef('public.spy'::regproc) AS def;
                 CREATE OR REPLACE FUNCTION public.spy(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
                 INSERT INTO public.code (id, d) SELECT n, n FROM generate_series(1, 100) n;
                 REFRESH MATERIALIZED VIEW public.code_view;
                 DO $do$ BEGIN EXECUTE (SELECT def FROM saved); END $do$;
                 ALTER EVENT TRIGGER code_trigger ENABLE;",
            )
            .unwrap();
        let engine = engine(major);
        let (backup, report) = back_up(&engine, &source.url()).await;
        let attempt = Attempt::new();
        let sandbox = open_sandbox(&engine, &attempt, &report).await;
        let restored = engine
            .restore(
                &attempt.context,
                &backup,
                &report,
                &sandbox.target,
                &RestoreOptions::default(),
            )
            .await
            .unwrap();
        let copy = engine
            .facts(&attempt.context, &sandbox.target, &report)
            .await
            .unwrap();
        close(&engine, &sandbox).await;
        assert_eq!(restored.failed_statements, Vec::<String>::new());
        assert_eq!(mismatches(&report.objects, &copy), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scratch_database_on_a_shared_server_is_restored_by_a_role_of_its_own_and_goes() {
    let server = PostgresServer::shared(PgMajor::V15);
    let source = server.create_database("shared").unwrap();
    let role = format!("somebody_{}", std::process::id());
    source
        .psql(&format!(
            "CREATE ROLE {role}; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 1000) n;
             ALTER TABLE t OWNER TO {role}; GRANT SELECT ON t TO PUBLIC; SELECT lo_from_bytea(9, '\\x01'); ALTER LARGE OBJECT 9 OWNER TO {role};
             CREATE FUNCTION who(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
                IF (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AND current_setting('fettler.sandbox', true) = 'shared'
                THEN RAISE EXCEPTION 'superuser'; END IF; RETURN $1; END $$;
             CREATE INDEX ON t (who(id));"
        ))
        .unwrap();
    let engine = engine(PgMajor::V15);
    let (backup, report) = back_up(&engine, &source.url()).await;
    let attempt = Attempt::new();
    let place = target(&server.url("postgres"));
    let request = SandboxRequest {
        spec: SandboxSpec::Server {
            url: place.url.clone(),
            password: None,
        },
        server: Some(place.clone()),
        identity: report.identity.clone(),
        estimated_bytes: report.identity.estimated_bytes,
        left: None,
    };
    let roles = || {
        server
            .psql("postgres", "SELECT count(*) FROM pg_roles")
            .unwrap()
    };
    let databases = || {
        server
            .psql(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname LIKE 'fettler_proof_%'",
            )
            .unwrap()
    };
    let sandbox = engine
        .open_sandbox(&attempt.context, &request)
        .await
        .unwrap();
    assert_eq!(attempt.ledger.0.lock().unwrap().len(), 1);
    let restored = engine
        .restore(
            &attempt.context,
            &backup,
            &report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    assert_eq!(restored.failed_statements, Vec::<String>::new());
    let copy = engine
        .facts(&attempt.context, &sandbox.target, &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &copy), Vec::<String>::new());
    let with = roles();
    for artefact in &sandbox.artefacts {
        engine
            .remove_artefact(artefact, Some(&place))
            .await
            .unwrap();
        engine
            .remove_artefact(artefact, Some(&place))
            .await
            .unwrap();
    }
    assert_eq!(databases(), "0");
    assert_ne!(roles(), with);
    source
        .psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
}

/// A table of many pieces, and one of few.
async fn wide_backup(server: &PostgresServer) -> (Memory, fettler_engine::BackupReport) {
    let source = server.create_database("wide").unwrap();
    source
        .psql(
            "CREATE TABLE wide (id int PRIMARY KEY, v text);
             INSERT INTO wide SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n;
             CREATE TABLE small (id int); INSERT INTO small VALUES (1), (2)",
        )
        .unwrap();
    back_up(&engine(PgMajor::V15), &source.url()).await
}

fn request_on(
    server: Option<&PostgresServer>,
    report: &fettler_engine::BackupReport,
    left: Option<Artefact>,
) -> SandboxRequest {
    let place = server.map(|server| target(&server.url("postgres")));
    SandboxRequest {
        spec: place
            .as_ref()
            .map_or(SandboxSpec::Automatic, |place| SandboxSpec::Server {
                url: place.url.clone(),
                password: None,
            }),
        server: place,
        identity: report.identity.clone(),
        estimated_bytes: report.identity.estimated_bytes,
        left,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_sandbox_that_was_left_is_gone_on_with() {
    let server = PostgresServer::shared(PgMajor::V15);
    let engine = engine(PgMajor::V15);
    let (mut backup, report) = wide_backup(server).await;
    let total: u64 = report.objects.iter().map(|object| object.bytes).sum();
    let options = RestoreOptions::default();
    for place in [None, Some(server)] {
        let job = JobId::new();
        let first = Attempt::of(job, 1);
        let sandbox = engine
            .open_sandbox(&first.context, &request_on(place, &report, None))
            .await
            .unwrap();
        assert!(!sandbox.continued);
        // It is dropped in the middle of its work, as a killed worker is.
        let reached = Arc::new(tokio::sync::Notify::new());
        let signal = Arc::clone(&reached);
        backup.read = Arc::new(AtomicU64::new(0));
        backup.on_read = Some(Watcher(Arc::new(move |_, bytes| {
            if bytes > total * 2 / 3 {
                signal.notify_one();
            }
            Ok(())
        })));
        tokio::select! {
            () = reached.notified() => {}
            answer = engine.restore(&first.context, &backup, &report, &sandbox.target, &options) => {
                panic!("it read everything: {answer:?}")
            }
        }
        engine.leave_sandbox(&sandbox).await.unwrap();
        let left = sandbox.artefacts[0].clone();
        assert!(left.until_job_ends);
        if place.is_none() {
            assert!(has_ended(&left) && Path::new(&folder_of(&left)).exists());
        }

        backup.read = Arc::new(AtomicU64::new(0));
        backup.on_read = None;
        let second = Attempt::of(job, 2);
        let request = request_on(place, &report, Some(left.clone()));
        let sandbox = engine
            .open_sandbox(&second.context, &request)
            .await
            .unwrap();
        assert!(sandbox.continued);
        assert_eq!(sandbox.artefacts[0].name, left.name);
        let restored = engine
            .restore(&second.context, &backup, &report, &sandbox.target, &options)
            .await
            .unwrap();
        assert_eq!(restored.failed_statements, Vec::<String>::new());
        let read = backup.read.load(Ordering::Relaxed);
        assert!(read < total, "{read} of {total} bytes were read again");
        let copy = engine
            .facts(&second.context, &sandbox.target, &report)
            .await
            .unwrap();
        assert_eq!(mismatches(&report.objects, &copy), Vec::<String>::new());
        let request = request_on(place, &report, None);
        for artefact in &sandbox.artefacts {
            engine
                .remove_artefact(artefact, request.server.as_ref())
                .await
                .unwrap();
        }
        assert!(place.is_some() || is_gone(&left));
    }
}

#[tokio::test]
async fn a_private_server_of_before_the_machine_started_anew_is_not_gone_on_with() {
    let (_, report) = small_backup(PgMajor::V15).await;
    let engine = engine(PgMajor::V15);
    let job = JobId::new();
    let first = Attempt::of(job, 1);
    let sandbox = open_sandbox(&engine, &first, &report).await;
    engine.leave_sandbox(&sandbox).await.unwrap();
    let mut left = sandbox.artefacts[0].clone();
    left.data["boot"] = "another".into();
    let second = Attempt::of(job, 2);
    let request = request_on(None, &report, Some(left));
    let fresh = engine
        .open_sandbox(&second.context, &request)
        .await
        .unwrap();
    assert!(!fresh.continued);
    close(&engine, &fresh).await;
    close(&engine, &sandbox).await;
    assert!(is_gone(&sandbox.artefacts[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_what_was_read_of_a_copy_is_not_read_again() {
    let server = PostgresServer::shared(PgMajor::V15);
    let engine = engine(PgMajor::V15);
    let (backup, report) = wide_backup(server).await;
    let job = JobId::new();
    let record = Arc::new(MemoryRecord::default());
    let mut attempt = Attempt::of(job, 1);
    attempt.context.checkpoints = record.clone();
    let request = request_on(Some(server), &report, None);
    let sandbox = engine
        .open_sandbox(&attempt.context, &request)
        .await
        .unwrap();
    engine
        .restore(
            &attempt.context,
            &backup,
            &report,
            &sandbox.target,
            &RestoreOptions::default(),
        )
        .await
        .unwrap();
    let found = engine
        .facts(&attempt.context, &sandbox.target, &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &found), Vec::<String>::new());
    // The next attempt does not see what changes where it need not look, and a proof that begins anew does.
    server
        .psql(&sandbox.artefacts[0].name, "DELETE FROM wide WHERE id = 1")
        .unwrap();
    let mut next = Attempt::of(job, 2);
    next.context.checkpoints = record;
    let again = engine
        .facts(&next.context, &sandbox.target, &report)
        .await
        .unwrap();
    assert_eq!(mismatches(&report.objects, &again), Vec::<String>::new());
    let anew = Attempt::of(job, 3);
    let anew = engine
        .facts(&anew.context, &sandbox.target, &report)
        .await
        .unwrap();
    assert_ne!(mismatches(&report.objects, &anew), Vec::<String>::new());
    for artefact in &sandbox.artefacts {
        engine
            .remove_artefact(artefact, request.server.as_ref())
            .await
            .unwrap();
    }
}
