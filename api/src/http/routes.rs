//! All routes, one by one. A route that is not here does not exist; one that is here has a guard and a place
//! in the OpenAPI document, and the tests that go through all routes find it there.

use axum::{
    http::{Method, StatusCode},
    routing::{delete, get, patch, post, put},
};
use fettler_ledger::{
    BackupRecord, BulkCancel, BulkReplay, DatabaseRecord, FindingRecord, JobRecord, LimitRecord,
    PauseRecord, PolicyRecord, TenantRecord, TokenRecord,
};
use serde_json::{Value, json};

use super::{
    Page,
    access::Permission,
    backups::{self, BackupsQuery, ProofList, StatisticsList, StatisticsQuery},
    control::{
        self, LimitInput, LimitList, Matching, PauseInput, PauseList, PriorityInput, ResumeAnswer,
        ResumeInput, ScopeQuery,
    },
    databases::{self, DatabaseInput, DatabasePatch, NamedQuery},
    events::{self, EventsQuery, JobEventsQuery},
    findings::{self, FindingHistory, FindingQuery, FindingsQuery, SuppressionInput},
    fleet::{self, Alive, KindDocument, KindList, METRICS_TEXT, WhoAmI, WorkerList},
    jobs::{
        self, Accepted, AttemptList, Batch, BatchAnswer, CancelAnswer, JobSubmission, JobsQuery,
        LogPage, LogQuery, TenantQuery,
    },
    policies::{self, PolicyDocument, PolicyInput, PolicyPatch},
    route::{Content, Route},
    tenants::{self, TenantInput, TenantsQuery},
    tokens::{self, NewTokenAnswer, TokenInput, TokenList},
};

const OK: StatusCode = StatusCode::OK;
const CREATED: StatusCode = StatusCode::CREATED;
const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;
const CONFLICT: StatusCode = StatusCode::CONFLICT;

const ID: &str = "0198a1b2-c3d4-7000-8000-000000000001";
const AT: &str = "2026-11-21T02:00:00Z";
const AMBIGUOUS: &str = "Several fit what was named.";

/// The list.
pub(crate) fn all() -> Vec<Route> {
    let mut routes = Vec::new();
    routes.extend(jobs());
    routes.extend(control());
    routes.extend(events());
    routes.extend(tenants());
    routes.extend(databases());
    routes.extend(policies());
    routes.extend(backups());
    routes.extend(findings());
    routes.extend(tokens());
    routes.extend(service());
    routes
}

fn job_example(state: &str) -> Value {
    json!({
        "id": ID, "tenant": "acme", "kind": "backup", "kind_version": 1, "database": ID, "arguments": {},
        "exclusion": "backup", "slot": "long", "priority": "normal", "submitted": AT, "not_before": null,
        "deadline": null, "max_tries": 5, "unique_key": null, "retry_of": null, "tags": ["nightly"],
        "state": state, "wait": {"reason": "ready"}, "attempt": 0, "tries": 0, "lost": 0, "isolated": false,
        "worker": null, "started": null, "ended": null, "lease_until": null, "cancel_requested": null,
        "progress": null, "result": null, "problem": null,
    })
}

fn jobs() -> Vec<Route> {
    let submission =
        json!({"kind": "backup", "database": "shop", "arguments": {"tags": ["nightly"]}});
    let accepted = json!({"id": ID, "existing": false});
    vec![
        Route::of(Method::POST, "/api/v1/jobs", "submitJob", post(jobs::submit))
            .does("Submit a job")
            .note("The job is kept when 202 is answered: it ends in a final state, whatever dies meanwhile. A restore needs the permission `restore`, a job that deletes backups the permission `configure`.")
            .needs(Permission::ANY_JOB)
            .parameters::<TenantQuery>()
            .idempotent()
            .body::<JobSubmission>(submission.clone())
            .answers::<Accepted>(ACCEPTED, "The job is kept.", accepted.clone())
            .with_header("Location", "Where the job is."),
        Route::get("/api/v1/jobs", "listJobs", get(jobs::list))
            .does("List jobs, newest first")
            .note("A job that waits says why (`wait`).")
            .parameters::<JobsQuery>()
            .answers::<Page<JobRecord>>(OK, "A page of jobs.", json!({"items": [job_example("queued")], "next": ID})),
        Route::of(Method::POST, "/api/v1/jobs/batch", "submitJobs", post(jobs::submit_batch))
            .does("Submit up to 1,000 jobs")
            .note("Each row is judged by itself: a bad one fails alone.")
            .needs(Permission::ANY_JOB)
            .parameters::<TenantQuery>()
            .body::<Batch>(json!({"rows": [{"idempotency_key": "shop-1", "job": submission}]}))
            .answers::<BatchAnswer>(
                OK,
                "What became of each row, in their order.",
                json!({"results": [{"status": 202, "accepted": accepted.clone()}]}),
            ),
        Route::get("/api/v1/jobs/{job}", "getJob", get(jobs::get))
            .does("Look at a job")
            .answers::<JobRecord>(OK, "The job.", job_example("queued"))
            .refuses(CONFLICT, AMBIGUOUS),
        Route::of(Method::POST, "/api/v1/jobs/{job}/cancel", "cancelJob", post(jobs::cancel))
            .does("Cancel a job")
            .note("May be repeated. A running job is asked to stop, and stops at its next checkpoint.")
            .needs(Permission::ANY_JOB)
            .answers::<CancelAnswer>(
                OK,
                "It was queued and is cancelled, or it had ended before.",
                json!({"id": ID, "cancel": "cancelled", "state": "cancelled"}),
            )
            .answers::<CancelAnswer>(
                ACCEPTED,
                "It runs, and is asked to stop.",
                json!({"id": ID, "cancel": "requested", "state": "running"}),
            )
            .refuses(CONFLICT, AMBIGUOUS),
        Route::of(Method::POST, "/api/v1/jobs/{job}/retry", "retryJob", post(jobs::retry))
            .does("Do an ended job again, as a new one")
            .needs(Permission::ANY_JOB)
            .idempotent()
            .answers::<Accepted>(ACCEPTED, "The new job is kept.", accepted)
            .with_header("Location", "Where the new job is.")
            .refuses(CONFLICT, "The job has not ended, or several fit what was named."),
        Route::get("/api/v1/jobs/{job}/attempts", "listAttempts", get(jobs::attempts))
            .does("List the attempts of a job, oldest first")
            .answers::<AttemptList>(
                OK,
                "The attempts.",
                json!({"attempts": [{"number": 1, "token": 4_294_967_297_i64, "worker": "north-7", "started": AT, "ended": null, "outcome": null, "problem": null}]}),
            )
            .refuses(CONFLICT, AMBIGUOUS),
        Route::get("/api/v1/jobs/{job}/logs", "readLog", get(jobs::logs))
            .does("Read the log that is kept with a job")
            .parameters::<LogQuery>()
            .answers::<LogPage>(
                OK,
                "A page of lines.",
                json!({"lines": [{"number": 1, "at": AT, "attempt": 1, "line": "reading 12 tables"}], "next": null}),
            )
            .refuses(CONFLICT, AMBIGUOUS),
    ]
}

fn control() -> Vec<Route> {
    let pause = json!({"scope": "tenant/acme", "since": AT, "because": "moving house"});
    let limit = json!({"scope": "server/db1:5432", "most": 2, "running": 1, "created": AT});
    let matching = json!({"kind": "backup", "tag": "nightly", "dry_run": true});
    let own = "A token of one tenant names its own tenant, databases and policies; the rest belongs to the operators of the fleet.";
    let bulk = "Without a `kind` it needs the permission `configure`. Very many take more than one request: where the answer has a `next`, the same request with it as `after` goes on.";
    vec![
        Route::of(Method::POST, "/api/v1/jobs/{job}/priority", "setPriority", post(control::priority))
            .does("Give a job that waits another priority; its age stays")
            .needs(Permission::ANY_JOB)
            .body::<PriorityInput>(json!({"priority": "high"}))
            .answers::<JobRecord>(OK, "The job as it is now.", job_example("queued"))
            .refuses(CONFLICT, "The job does not wait any more, or several fit what was named."),
        Route::of(Method::POST, "/api/v1/jobs/cancel", "cancelJobs", post(control::cancel))
            .does("Cancel all jobs that fit")
            .note(bulk)
            .needs(Permission::ANY_JOB)
            .body::<Matching>(matching.clone())
            .answers::<BulkCancel>(OK, "What was done, or would be.", json!({"cancelled": 12, "asked": 1, "next": null}))
            .refuses(StatusCode::NOT_FOUND, "There is no such tenant."),
        Route::of(Method::POST, "/api/v1/jobs/replay", "replayJobs", post(control::replay))
            .does("Submit all jobs again that fit and did not succeed")
            .note(format!("The dead ones, where no states are named. A job that was replayed like this within seven days is left out. {bulk}"))
            .needs(Permission::ANY_JOB)
            .body::<Matching>(matching)
            .answers::<BulkReplay>(OK, "What was done, or would be.", json!({"submitted": 3, "already": 0, "refused": 0, "first_refusal": null, "next": null}))
            .refuses(StatusCode::NOT_FOUND, "There is no such tenant."),
        Route::get("/api/v1/pauses", "listPauses", get(control::pauses))
            .does("List what is paused")
            .answers::<PauseList>(OK, "The pauses.", json!({"pauses": [pause]})),
        Route::of(Method::POST, "/api/v1/pauses", "pause", post(control::pause))
            .does("Let no more jobs of a scope start; those that run go on")
            .note(own)
            .needs(Permission::Configure)
            .body::<PauseInput>(json!({"scope": "tenant/acme", "because": "moving house"}))
            .answers::<PauseRecord>(OK, "The pause.", pause)
            .refuses(StatusCode::NOT_FOUND, "There is no such thing, or it is another tenant's."),
        Route::of(Method::POST, "/api/v1/pauses/resume", "resume", post(control::resume))
            .does("Let the jobs of a scope start again, in their order")
            .note(own)
            .needs(Permission::Configure)
            .body::<ResumeInput>(json!({"scope": "tenant/acme"}))
            .answers::<ResumeAnswer>(OK, "They start.", json!({"resumed": "tenant/acme", "woken": 3}))
            .refuses(StatusCode::NOT_FOUND, "There is no such thing, or it is another tenant's."),
        Route::get("/api/v1/limits", "listLimits", get(control::limits))
            .does("List what is limited")
            .answers::<LimitList>(OK, "The limits.", json!({"limits": [limit]})),
        Route::of(Method::PUT, "/api/v1/limits", "setLimit", put(control::set_limit))
            .does("Set how many jobs of a scope run at once")
            .note("A token of one tenant limits its own databases; the rest belongs to the operators of the fleet.")
            .needs(Permission::Configure)
            .body::<LimitInput>(json!({"scope": "server/db1:5432", "most": 2}))
            .answers::<LimitRecord>(OK, "The limit.", limit)
            .refuses(StatusCode::NOT_FOUND, "There is no such thing, or it is another tenant's."),
        Route::of(Method::DELETE, "/api/v1/limits", "removeLimit", delete(control::remove_limit))
            .does("Let as many jobs of a scope run as there are slots")
            .needs(Permission::Configure)
            .parameters::<ScopeQuery>()
            .answer(NO_CONTENT, "It is gone.", Content::Nothing),
    ]
}

fn events() -> Vec<Route> {
    let stream = "Events as they happen: `id`, `event` (its kind) and `data` (an EventDocument). Comments keep the connection alive.";
    let resume = "A stream ends after 15 minutes, or when the process stops; send the last `id` as `Last-Event-ID` to go on after it, and none is missed. The number of open streams is limited (429).";
    vec![
        Route::get("/api/v1/events", "followEvents", get(events::all))
            .does("Follow what happens, as server-sent events")
            .note(resume)
            .parameters::<EventsQuery>()
            .answer(OK, stream, Content::Text("text/event-stream")),
        Route::get("/api/v1/jobs/{job}/events", "followJob", get(events::of_job))
            .does("Follow a job until it ends, as server-sent events")
            .note(format!("Events named `job` hold the job as it is, whenever that changed (state, reason for waiting, progress); they have no id. {resume} The stream ends after the event of the job's end."))
            .parameters::<JobEventsQuery>()
            .answer(OK, stream, Content::Text("text/event-stream"))
            .answer(NO_CONTENT, "The job has ended, and nothing came after that event.", Content::Nothing)
            .refuses(CONFLICT, AMBIGUOUS),
    ]
}

fn tenants() -> Vec<Route> {
    let tenant = json!({"id": "acme", "created": AT, "weight": 1.0, "priority_ceiling": "highest"});
    vec![
        Route::get("/api/v1/tenants", "listTenants", get(tenants::list))
            .does("List tenants by name")
            .note("A token of one tenant sees its own only.")
            .parameters::<TenantsQuery>()
            .answers::<Page<TenantRecord>>(
                OK,
                "A page of tenants.",
                json!({"items": [tenant], "next": null}),
            ),
        Route::of(
            Method::POST,
            "/api/v1/tenants",
            "addTenant",
            post(tenants::add),
        )
        .does("Add a tenant")
        .needs(Permission::ConfigureFleet)
        .body::<TenantInput>(json!({"id": "acme"}))
        .answers::<TenantRecord>(CREATED, "The tenant.", tenant.clone())
        .with_header("Location", "Where the tenant is.")
        .refuses(CONFLICT, "There is one already."),
        Route::get("/api/v1/tenants/{tenant}", "getTenant", get(tenants::get))
            .does("Look at a tenant")
            .answers::<TenantRecord>(OK, "The tenant.", tenant),
        Route::of(
            Method::DELETE,
            "/api/v1/tenants/{tenant}",
            "removeTenant",
            delete(tenants::remove),
        )
        .does("Remove a tenant that has nothing any more")
        .needs(Permission::ConfigureFleet)
        .answer(NO_CONTENT, "It is gone.", Content::Nothing)
        .refuses(
            CONFLICT,
            "It still has databases, policies or jobs that have not ended.",
        ),
    ]
}

fn databases() -> Vec<Route> {
    let database = json!({
        "id": ID, "tenant": "acme", "name": "shop", "url": "postgres://fettler@db/shop",
        "password": format!("sealed:{ID}"), "identity_key": null, "labels": {"zone": "dmz"},
        "sandbox": {"kind": "automatic"}, "created": AT,
    });
    vec![
        Route::get("/api/v1/databases", "listDatabases", get(databases::list))
            .does("List databases by tenant and name")
            .parameters::<NamedQuery>()
            .answers::<Page<DatabaseRecord>>(OK, "A page of databases.", json!({"items": [database], "next": null})),
        Route::of(Method::POST, "/api/v1/databases", "addDatabase", post(databases::add))
            .does("Look after a database")
            .note("A password in the URL is sealed for its tenant, and does not come back. What a tenant's token may name is limited: docs/api.md.")
            .needs(Permission::Configure)
            .parameters::<TenantQuery>()
            .body::<DatabaseInput>(json!({"name": "shop", "url": "postgres://fettler:secret@db/shop", "labels": {"zone": "dmz"},
                "terms": {"window": {"from": "22:00", "to": "04:00", "time_zone": "Europe/Berlin"}, "load": {"connections": 80}}}))
            .answers::<DatabaseRecord>(CREATED, "The database.", database.clone())
            .with_header("Location", "Where the database is.")
            .with_header("ETag", "Send it as `If-Match` with a change.")
            .refuses(CONFLICT, "There is one of this name already."),
        Route::get("/api/v1/databases/{database}", "getDatabase", get(databases::get))
            .does("Look at a database")
            .parameters::<TenantQuery>()
            .answers::<DatabaseRecord>(OK, "The database.", database.clone())
            .with_header("ETag", "Send it as `If-Match` with a change.")
            .refuses(CONFLICT, AMBIGUOUS),
        Route::of(Method::PATCH, "/api/v1/databases/{database}", "editDatabase", patch(databases::edit))
            .does("Change a database")
            .note("What is not given stays. With another place the password has to be given anew.")
            .needs(Permission::Configure)
            .parameters::<TenantQuery>()
            .on_condition()
            .body::<DatabasePatch>(json!({"labels": {"zone": "lan"}}))
            .answers::<DatabaseRecord>(OK, "The database as it is now.", database)
            .with_header("ETag", "Send it as `If-Match` with the next change.")
            .refuses(CONFLICT, "The name is taken, or several fit what was named."),
        Route::of(Method::DELETE, "/api/v1/databases/{database}", "removeDatabase", delete(databases::remove))
            .does("Stop looking after a database; its backups stay")
            .needs(Permission::Configure)
            .parameters::<TenantQuery>()
            .on_condition()
            .answer(NO_CONTENT, "It is gone.", Content::Nothing)
            .refuses(CONFLICT, "Policies or jobs that have not ended are about it."),
    ]
}

fn policies() -> Vec<Route> {
    let spec = json!({"kind": "backup", "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "prove": "weekly"});
    let policy = json!({
        "id": ID, "tenant": "acme", "name": "nightly", "database": ID,
        "spec": {
            "kind": "backup", "arguments": null, "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "catch_up": "once",
            "overlap": "skip", "window": null, "jitter_seconds": 0, "priority": "normal", "keep": null,
            "prove": "weekly", "paused": false,
        },
        "next_due": AT, "last_job": null, "created": AT,
    });
    let document = json!({
        "policy": policy, "upcoming": [AT],
        "ticks": [{"policy": ID, "due": AT, "outcome": {"outcome": "job", "job": ID}, "decided": AT}],
    });
    vec![
        Route::get("/api/v1/policies", "listPolicies", get(policies::list))
            .does("List policies by tenant and name")
            .parameters::<NamedQuery>()
            .answers::<Page<PolicyRecord>>(
                OK,
                "A page of policies.",
                json!({"items": [policy], "next": null}),
            ),
        Route::of(
            Method::POST,
            "/api/v1/policies",
            "addPolicy",
            post(policies::add),
        )
        .does("Add a policy")
        .needs(Permission::Configure)
        .parameters::<TenantQuery>()
        .body::<PolicyInput>(json!({"name": "nightly", "database": "shop", "spec": spec}))
        .answers::<PolicyDocument>(
            CREATED,
            "The policy, with its next due times.",
            document.clone(),
        )
        .with_header("Location", "Where the policy is.")
        .with_header("ETag", "Send it as `If-Match` with a change.")
        .refuses(CONFLICT, "There is one of this name already."),
        Route::get("/api/v1/policies/{policy}", "getPolicy", get(policies::get))
            .does("Look at a policy, its next due times and what became of the last ones")
            .parameters::<TenantQuery>()
            .answers::<PolicyDocument>(OK, "The policy.", document.clone())
            .with_header("ETag", "Send it as `If-Match` with a change."),
        Route::of(
            Method::PATCH,
            "/api/v1/policies/{policy}",
            "editPolicy",
            patch(policies::edit),
        )
        .does("Change a policy")
        .note("What is not given stays; `spec` is given whole.")
        .needs(Permission::Configure)
        .parameters::<TenantQuery>()
        .on_condition()
        .body::<PolicyPatch>(json!({"spec": spec}))
        .answers::<PolicyDocument>(OK, "The policy as it is now.", document)
        .with_header("ETag", "Send it as `If-Match` with the next change.")
        .refuses(CONFLICT, "The name is taken."),
        Route::of(
            Method::DELETE,
            "/api/v1/policies/{policy}",
            "removePolicy",
            delete(policies::remove),
        )
        .does("Remove a policy; its jobs and backups stay")
        .needs(Permission::Configure)
        .parameters::<TenantQuery>()
        .on_condition()
        .answer(NO_CONTENT, "It is gone.", Content::Nothing),
    ]
}

fn findings() -> Vec<Route> {
    let finding = json!({
        "database": ID, "tenant": "acme", "key": "postgres.inactive_slots:left", "check": "postgres.inactive_slots",
        "engine": "postgres", "area": "health", "dimension": "replication", "severity": "medium", "object": "left",
        "title": "Nobody reads the physical slot left", "evidence": {"slot_name": "left", "active": false},
        "why": "While it is there, the server keeps WAL for it.",
        "fix": {"text": "Drop the slot.", "commands": ["SELECT pg_drop_replication_slot('left')"]},
        "references": ["PostgreSQL documentation: Replication Slots"], "status": {"state": "open"},
        "opened": AT, "changed": AT, "seen": AT, "times_opened": 1,
    });
    let step = json!({
        "key": "postgres.inactive_slots:left", "at": AT, "step": "opened", "job": ID,
        "data": {"severity": "medium", "title": "Nobody reads the physical slot left"},
    });
    let key = json!({
        "database": "shop", "key": "postgres.inactive_slots:left", "because": "moved next week", "until": AT,
    });
    vec![
        Route::get("/api/v1/findings", "listFindings", get(findings::list))
            .does("List what looks at databases have found, the gravest first")
            .parameters::<FindingsQuery>()
            .answers::<Page<FindingRecord>>(
                OK,
                "A page of findings.",
                json!({"items": [finding], "next": null}),
            ),
        Route::get("/api/v1/databases/{database}/findings/history", "findingHistory", get(findings::history))
            .does("Say how a finding came to be what it is")
            .parameters::<FindingQuery>()
            .answers::<FindingHistory>(OK, "Its steps.", json!({"steps": [step]}))
            .refuses(StatusCode::NOT_FOUND, "There is no such database.")
            .refuses(CONFLICT, AMBIGUOUS),
        Route::of(Method::POST, "/api/v1/findings/suppress", "suppressFinding", post(findings::suppress))
            .does("Set a finding aside, or take that back where no reason is given")
            .note("It costs no points and is not listed as open until its time is over; it is followed all the same.")
            .needs(Permission::Configure)
            .body::<SuppressionInput>(key)
            .answers::<FindingRecord>(OK, "The finding as it is now.", finding)
            .refuses(StatusCode::NOT_FOUND, "There is no such database or finding.")
            .refuses(CONFLICT, AMBIGUOUS),
    ]
}

fn backups() -> Vec<Route> {
    let proof = json!({
        "backup": ID, "verdict": "proven", "finished": AT, "restore_seconds": 12.5, "fingerprints_compared": 48,
        "mismatches": [],
    });
    let backup = json!({
        "place": "s3://backups/fleet",
        "facts": {
            "id": ID, "tenant": "acme", "database": ID, "database_name": "shop", "engine": "postgres", "parent": null,
            "started": AT, "finished": AT, "bytes_read": 2_000_000, "bytes_new": 2_000_000, "bytes_stored": 600_000,
            "streams": 12, "tags": ["nightly"], "warnings": [],
        },
        "state": "complete", "state_why": null, "last_proof": proof,
    });
    let statistics = json!({"repositories": [{
        "place": "s3://backups/fleet", "backups": 7, "damaged": 0, "proven": 2, "bytes_read": 14_000_000,
        "bytes_stored": 900_000, "oldest": AT, "newest": AT,
    }]});
    vec![
        Route::get("/api/v1/backups", "listBackups", get(backups::list))
            .does("List backups, newest first, as the catalogue knows them")
            .parameters::<BackupsQuery>()
            .answers::<Page<BackupRecord>>(
                OK,
                "A page of backups.",
                json!({"items": [backup], "next": null}),
            ),
        Route::get("/api/v1/backups/{backup}", "getBackup", get(backups::get))
            .does("Look at a backup")
            .answers::<BackupRecord>(OK, "The backup.", backup)
            .refuses(CONFLICT, AMBIGUOUS),
        Route::get(
            "/api/v1/backups/{backup}/proofs",
            "listProofs",
            get(backups::proofs),
        )
        .does("List the proofs of a backup, newest first")
        .answers::<ProofList>(OK, "The proofs.", json!({"proofs": [proof]}))
        .refuses(CONFLICT, AMBIGUOUS),
        Route::get(
            "/api/v1/repository/statistics",
            "repositoryStatistics",
            get(backups::statistics),
        )
        .does("Count what repositories hold, by the catalogue")
        .parameters::<StatisticsQuery>()
        .answers::<StatisticsList>(OK, "The figures.", statistics),
    ]
}

fn tokens() -> Vec<Route> {
    let token = json!({
        "id": ID, "name": "ci", "tenant": "acme", "role": "operator", "created": AT, "expires": null, "last_used": AT,
    });
    vec![
        Route::get("/api/v1/tokens", "listTokens", get(tokens::list))
            .does("List who has access")
            .needs(Permission::SeeTokens)
            .parameters::<StatisticsQuery>()
            .answers::<TokenList>(OK, "The tokens, without their texts.", json!({"tokens": [token]})),
        Route::of(Method::POST, "/api/v1/tokens", "addToken", post(tokens::add))
            .does("Make a token")
            .note("Its text is answered once, and kept nowhere.")
            .needs(Permission::Configure)
            .body::<TokenInput>(json!({"name": "ci", "role": "operator", "tenant": "acme"}))
            .answers::<NewTokenAnswer>(CREATED, "The token.", json!({"token": token, "text": "fettler_…"}))
            .with_header("Location", "Where the token is.")
            .refuses(StatusCode::NOT_FOUND, "There is no such tenant.")
            .refuses(CONFLICT, "There is one of this name already."),
        Route::get("/api/v1/tokens/{token}", "getToken", get(tokens::get))
            .does("Look at a token")
            .needs(Permission::SeeTokens)
            .answers::<TokenRecord>(OK, "The token, without its text.", token),
        Route::of(Method::DELETE, "/api/v1/tokens/{token}", "removeToken", delete(tokens::remove))
            .does("Take a token away")
            .note("The next request that bears it is refused; streams that are open end within 15 minutes.")
            .needs(Permission::Configure)
            .answer(NO_CONTENT, "It is gone.", Content::Nothing),
    ]
}

fn service() -> Vec<Route> {
    let kind = json!({
        "kind": "verify", "version": 1, "slot": "long", "exclusion": "free", "max_tries": 5, "permission": "run",
        "arguments": {"type": "object"},
    });
    vec![
        Route::get("/api/v1/kinds", "listKinds", get(fleet::kinds))
            .does("List the kinds of jobs, with what they take")
            .answers::<KindList>(OK, "The kinds.", json!({"kinds": [kind]})),
        Route::get("/api/v1/kinds/{kind}", "getKind", get(fleet::kind))
            .does("Look at a kind of job")
            .answers::<KindDocument>(OK, "The kind.", kind),
        Route::get("/api/v1/workers", "listWorkers", get(fleet::workers))
            .does("List the workers of the fleet")
            .needs(Permission::LookAtFleet)
            .answers::<WorkerList>(
                OK,
                "The workers.",
                json!({"workers": [{"id": "north-7", "kinds": ["backup"], "first_seen": AT, "last_seen": AT, "alive_until": AT}], "alive": 1}),
            ),
        Route::get("/api/v1/whoami", "whoAmI", get(fleet::who_am_i))
            .does("Say who the bearer of this token is, and what it may do")
            .answers::<WhoAmI>(
                OK,
                "The token.",
                json!({"name": "ci", "tenant": "acme", "role": "operator", "permissions": ["look", "run"], "version": "0.1.0"}),
            ),
        Route::get("/healthz", "health", get(fleet::healthz))
            .does("Whether the process lives")
            .note("Never depends on work, nor on the ledger.")
            .needs(Permission::Public)
            .answers::<Alive>(OK, "It lives.", fleet::alive_example()),
        Route::get("/readyz", "readiness", get(fleet::readyz))
            .does("Whether requests can be answered")
            .needs(Permission::Public)
            .answers::<Alive>(OK, "They can.", fleet::alive_example()),
        Route::get("/metrics", "metrics", get(fleet::metrics))
            .does("Figures for Prometheus")
            .needs(Permission::LookAtFleet)
            .answer(OK, "The figures.", Content::Text(METRICS_TEXT)),
        Route::get("/api/openapi.json", "openapi", get(fleet::openapi))
            .does("This document")
            .needs(Permission::Public)
            .answers::<Value>(OK, "An OpenAPI 3.1 document.", None),
    ]
}
