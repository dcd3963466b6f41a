//! The checks of Elasticsearch and OpenSearch on the real servers: each that can be made to fire there fires, and a fresh server
//! is left in peace. The servers of the tests have no lifecycles, one node, and a heap that nothing fills; what needs more is
//! tried on lines of the documented form alone, which stand in the checks' files.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::{path::Path, time::Duration};

use common::{keys, look, not_evaluable, open, with_limit};
use fettler_checks::Level;
use fettler_model::Severity;
use fettler_test_servers::{SearchKind, SearchServer, wait_until};

const SHOWN_WITHIN: Duration = Duration::from_secs(60);
const KINDS: [SearchKind; 2] = [SearchKind::Elasticsearch, SearchKind::OpenSearch];

fn tell(server: &SearchServer, method: &str, path: &str, body: &str) {
    let (status, answer) = server.request(method, path, body).unwrap();
    assert!((200..300).contains(&status), "{method} {path}: {answer}");
}

fn found(server: &SearchServer, own: &Path) -> Vec<String> {
    let mut found = keys(&look(&server.url(), Level::Full, Some(own)));
    found.sort();
    found
}

fn until(server: &SearchServer, own: &Path, wanted: &[&str]) {
    let mut seen = Vec::new();
    let waited = wait_until("the findings", SHOWN_WITHIN, || {
        seen = found(server, own);
        seen == wanted
    });
    assert!(waited.is_ok(), "{seen:?} where {wanted:?} should be");
}

/// A folder of checks of one's own, in which the disk of the test machine is not looked at: it may be nearly full.
fn own_checks() -> tempfile::TempDir {
    let own = tempfile::tempdir().unwrap();
    with_limit(
        own.path(),
        "elasticsearch",
        "disk_watermarks",
        &[("row.free_bytes * 20 < row.total_bytes", "false")],
    );
    own
}

#[test]
fn a_fresh_server_gives_a_report_that_an_expert_would_sign() {
    let own = own_checks();
    for kind in KINDS {
        let server = SearchServer::start(kind, &[]).unwrap();
        let look = look(&server.url(), Level::Full, Some(own.path()));
        assert_eq!(keys(&look), [""; 0], "{kind:?}");
        assert_eq!(
            not_evaluable(&look),
            ["elasticsearch.backup_age", "elasticsearch.proof_age"],
            "{kind:?}: {:?}",
            look.findings
        );
        assert!((90..100).contains(&look.score.points), "{:?}", look.score);
    }
}

#[test]
fn each_check_of_indices_and_settings_fires() {
    let own = own_checks();
    for kind in KINDS {
        let server = SearchServer::start(kind, &[]).unwrap();
        tell(
            &server,
            "PUT",
            "/logs",
            r#"{"settings": {"number_of_replicas": 0}, "mappings": {"properties": {"text": {"type": "text", "fields": {"word": {"type": "keyword"}}}}}}"#,
        );
        tell(
            &server,
            "PUT",
            "/logs/_doc/1?refresh=true",
            r#"{"text": "a"}"#,
        );
        until(&server, own.path(), &[]);

        // One node never holds two copies.
        tell(
            &server,
            "PUT",
            "/logs/_settings",
            r#"{"index.number_of_replicas": 1}"#,
        );
        until(
            &server,
            own.path(),
            &["elasticsearch.shards_unassigned:logs"],
        );
        let finding = open(&look(&server.url(), Level::Basic, Some(own.path()))).remove(0);
        assert_eq!(finding.severity, Severity::Low);
        assert!(
            finding.fix.text.contains("already allocated to this node"),
            "{}",
            finding.fix.text
        );
        tell(
            &server,
            "PUT",
            "/logs/_settings",
            r#"{"index.number_of_replicas": 0}"#,
        );

        tell(
            &server,
            "PUT",
            "/logs/_settings",
            r#"{"index.blocks.read_only_allow_delete": true}"#,
        );
        until(&server, own.path(), &["elasticsearch.indices_blocked:logs"]);
        tell(
            &server,
            "PUT",
            "/logs/_settings",
            r#"{"index.blocks.read_only_allow_delete": null}"#,
        );

        tell(
            &server,
            "PUT",
            "/logs/_settings",
            r#"{"index.mapping.total_fields.limit": 2}"#,
        );
        until(
            &server,
            own.path(),
            &["elasticsearch.fields_nearly_full:logs"],
        );
        tell(
            &server,
            "PUT",
            "/logs/_settings",
            r#"{"index.mapping.total_fields.limit": null}"#,
        );

        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            r#"{"persistent": {"cluster.max_shards_per_node": 1, "cluster.routing.allocation.enable": "primaries"}}"#,
        );
        // Elasticsearch's own report sees the limit too, and is not repeated.
        until(
            &server,
            own.path(),
            &[
                "elasticsearch.allocation_off",
                "elasticsearch.shards_nearly_full",
            ],
        );
        // A primary that has no place is graver than a replica that has none.
        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            r#"{"persistent": {"cluster.max_shards_per_node": null, "cluster.routing.allocation.enable": "none"}}"#,
        );
        tell(
            &server,
            "PUT",
            "/homeless?wait_for_active_shards=0&timeout=1s",
            r#"{"settings": {"number_of_replicas": 0}}"#,
        );
        until(
            &server,
            own.path(),
            &[
                "elasticsearch.allocation_off",
                "elasticsearch.shards_unassigned:homeless",
            ],
        );
        let findings = open(&look(&server.url(), Level::Basic, Some(own.path())));
        assert_eq!(findings[0].severity, Severity::Critical, "{findings:?}");
        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            r#"{"persistent": {"cluster.routing.allocation.enable": null}}"#,
        );
        until(&server, own.path(), &[]);
    }
}

#[test]
fn a_repository_that_lost_its_snapshots_is_found() {
    let own = own_checks();
    let folder = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let place = folder.path().join(format!("{kind:?}"));
        let server =
            SearchServer::start(kind, &[("path.repo", &folder.path().display().to_string())])
                .unwrap();
        tell(
            &server,
            "PUT",
            "/logs",
            r#"{"settings": {"number_of_replicas": 0}}"#,
        );
        tell(
            &server,
            "PUT",
            "/_snapshot/kept",
            &format!(
                r#"{{"type": "fs", "settings": {{"location": "{}"}}}}"#,
                place.display()
            ),
        );
        tell(
            &server,
            "PUT",
            "/_snapshot/kept/first?wait_for_completion=true",
            "{}",
        );
        until(&server, own.path(), &[]);
        std::fs::remove_dir_all(&place).unwrap();
        wait_until("the loss to be found", SHOWN_WITHIN, || {
            found(&server, own.path())
                .iter()
                .any(|key| key == "elasticsearch.snapshots_failing:kept")
        })
        .unwrap_or_else(|_| panic!("{kind:?}: {:?}", found(&server, own.path())));
    }
}

#[test]
fn each_check_of_what_is_refused_fires() {
    let own = own_checks();
    for kind in KINDS {
        let server = SearchServer::start(
            kind,
            &[
                ("indexing_pressure.memory.limit", "2kb"),
                ("thread_pool.get.size", "1"),
                ("thread_pool.get.queue_size", "1"),
            ],
        )
        .unwrap();
        tell(
            &server,
            "PUT",
            "/logs",
            r#"{"settings": {"number_of_replicas": 0}}"#,
        );
        tell(
            &server,
            "PUT",
            "/logs/_doc/1?refresh=true",
            r#"{"text": "a"}"#,
        );
        until(&server, own.path(), &[]);
        let long = format!(r#"{{"text": "{}"}}"#, "x".repeat(4000));
        let (status, _) = server.request("PUT", "/logs/_doc/2", &long).unwrap();
        assert_eq!(status, 429);
        until(
            &server,
            own.path(),
            &["elasticsearch.indexing_pressure:node-1"],
        );
        // A request for less than the breaker of requests takes, where it takes next to nothing.
        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            r#"{"transient": {"indices.breaker.request.limit": "10b"}}"#,
        );
        let search = r#"{"size": 0, "aggs": {"a": {"terms": {"field": "text.keyword"}}}}"#;
        let _ = server.request("POST", "/logs/_search", search).unwrap();
        // With so little allowed even this may be answered by a refusal, and is done all the same.
        let _ = server
            .request(
                "PUT",
                "/_cluster/settings",
                r#"{"transient": {"indices.breaker.request.limit": null}}"#,
            )
            .unwrap();
        let wanted = [
            "elasticsearch.breakers_tripped:node-1 ",
            "elasticsearch.indexing_pressure:node-1",
        ];
        wait_until("the breaker to be found", SHOWN_WITHIN, || {
            let found = found(&server, own.path());
            wanted
                .iter()
                .all(|one| found.iter().any(|key| key.starts_with(one)))
        })
        .unwrap_or_else(|_| panic!("{kind:?}: {:?}", found(&server, own.path())));
        wait_until("requests to be refused", SHOWN_WITHIN, || {
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        for _ in 0..40 {
                            let _ = server.request("GET", "/logs/_doc/1?realtime=false", "");
                        }
                    });
                }
            });
            found(&server, own.path())
                .iter()
                .any(|key| key == "elasticsearch.requests_rejected:node-1 get")
        })
        .unwrap_or_else(|_| panic!("{kind:?}: {:?}", found(&server, own.path())));
    }
}

#[test]
fn each_check_with_a_limit_of_a_whole_machine_fires_with_a_lower_one() {
    for kind in KINDS {
        let own = tempfile::tempdir().unwrap();
        let server = SearchServer::start(
            kind,
            &[
                ("cluster.routing.allocation.disk.threshold_enabled", "true"),
                ("cluster.routing.allocation.disk.watermark.low", "900tb"),
                ("cluster.routing.allocation.disk.watermark.high", "2b"),
                (
                    "cluster.routing.allocation.disk.watermark.flood_stage",
                    "1b",
                ),
            ],
        )
        .unwrap();
        until(
            &server,
            own.path(),
            &["elasticsearch.disk_watermarks:node-1"],
        );
        let finding = open(&look(&server.url(), Level::Basic, None)).remove(0);
        assert!(matches!(
            finding.severity,
            Severity::Medium | Severity::Critical
        ));
        tell(
            &server,
            "PUT",
            "/_cluster/settings",
            r#"{"transient": {"cluster.routing.allocation.disk.watermark.low": "3b", "cluster.routing.allocation.disk.watermark.high": "2b", "cluster.routing.allocation.disk.watermark.flood_stage": "1b"}}"#,
        );
        tell(
            &server,
            "PUT",
            "/logs",
            r#"{"settings": {"number_of_replicas": 0}}"#,
        );
        let lines: String = (0..10)
            .map(|n| format!("{{\"index\": {{\"_id\": \"{n}\"}}}}\n{{\"text\": \"a\"}}\n"))
            .collect();
        tell(&server, "POST", "/logs/_bulk?refresh=true", &lines);
        tell(&server, "DELETE", "/logs/_doc/1?refresh=true", "");
        for (name, from, to) in [
            (
                "disk_watermarks",
                "row.free_bytes * 50 < row.total_bytes",
                "false",
            ),
            (
                "heap_nearly_full",
                "row.old_bytes * 100 > row.heap_bytes * 75",
                "row.old_bytes > 0",
            ),
            ("shards_large", "row.bytes > 53687091200", "row.bytes > 100"),
            (
                "tasks_pending",
                "row.pending > 0 && row.waited_milliseconds > 30000",
                "row.pending >= 0",
            ),
            (
                "collections_long",
                "row.up_seconds > 3600 && (row.collected_seconds * 50 > row.up_seconds",
                "(row.up_seconds > 1",
            ),
            (
                "files_nearly_full",
                "row.open_files * 10 > row.most_files * 8",
                "row.open_files > 1",
            ),
            ("versions_mixed", "row.versions > 1", "row.versions > 0"),
            (
                "slow_answers",
                "row.answered_in_milliseconds > 250",
                "row.answered_in_milliseconds > 0",
            ),
        ] {
            with_limit(own.path(), "elasticsearch", name, &[(from, to)]);
        }
        until(
            &server,
            own.path(),
            &[
                "elasticsearch.collections_long:node-1",
                "elasticsearch.files_nearly_full:node-1",
                "elasticsearch.heap_nearly_full:node-1",
                "elasticsearch.shards_large:logs[0]",
                "elasticsearch.slow_answers",
                "elasticsearch.tasks_pending",
                "elasticsearch.versions_mixed",
            ],
        );
        with_limit(
            own.path(),
            "elasticsearch",
            "deleted_documents",
            &[(
                "row.bytes > 1073741824 && row.deleted > row.documents",
                "row.bytes > 100 && row.deleted > 0",
            )],
        );
        wait_until("the index to be found", SHOWN_WITHIN, || {
            found(&server, own.path())
                .iter()
                .any(|key| key == "elasticsearch.deleted_documents:logs")
        })
        .unwrap_or_else(|_| panic!("{kind:?}: {:?}", found(&server, own.path())));
    }
}

#[test]
fn a_server_that_is_gone_is_told_in_time() {
    let own = own_checks();
    let mut server = SearchServer::start(SearchKind::Elasticsearch, &[]).unwrap();
    until(&server, own.path(), &[]);
    server.kill_9().unwrap();
    let look = look(&server.url(), Level::Full, Some(own.path()));
    assert_eq!(keys(&look), ["elasticsearch.reachable"]);
    assert_eq!(look.score.points, 0);
}
