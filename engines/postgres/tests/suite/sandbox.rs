//! Sandboxes: private servers that leave nothing behind, scratch databases on servers that others use, and no code
//! of the dump with a superuser's rights (rule 31).

use std::{path::Path, time::Duration};

use fettler_engine::{Artefact, DatabaseEngine, RestoreOptions, SandboxRequest, SandboxSpec};
use fettler_engine_postgres::PostgresEngine;
use fettler_model::Engine;
use fettler_test_servers::{PgMajor, PostgresServer, wait_until};

use crate::common::{Attempt, Memory, back_up, close, engine, mismatches, open_sandbox, target};

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
    // The folder itself may lie where the server's user has no right to remove it; what was in it is gone.
    wait_until(
        "the server to end with its worker",
        Duration::from_secs(20),
        || has_ended(&artefact) && !Path::new(&folder_of(&artefact)).join("data").exists(),
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
