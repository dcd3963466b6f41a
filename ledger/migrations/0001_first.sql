-- The first shape of the ledger. The words in braces differ between the dialects (src/dialect.rs).
-- Times are microseconds since 1970 in UTC, ids are UUIDs as text, JSON is text.

CREATE TABLE tenant (
    id TEXT NOT NULL PRIMARY KEY,
    created BIGINT NOT NULL
);

CREATE TABLE database_record (
    id {id} NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    password TEXT,
    identity_key TEXT,
    labels TEXT NOT NULL,
    sandbox TEXT NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (tenant, name)
);

CREATE TABLE sealed_secret (
    id {id} NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant (id),
    sealed {blob} NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE policy (
    id {id} NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    database_id {id} REFERENCES database_record (id),
    spec TEXT NOT NULL,
    next_due BIGINT,
    last_job {id},
    created BIGINT NOT NULL,
    UNIQUE (tenant, name)
);
-- Finding what is due costs what is due, not what exists.
CREATE INDEX policy_next_due ON policy (next_due) WHERE next_due IS NOT NULL;
CREATE INDEX policy_database ON policy (database_id);

-- Rule 18: one row for each due time.
CREATE TABLE tick (
    policy {id} NOT NULL,
    due BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    decided BIGINT NOT NULL,
    PRIMARY KEY (policy, due)
) {clustered};

CREATE TABLE leader (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    term BIGINT NOT NULL,
    until BIGINT NOT NULL
);

-- A job while it lives. Nothing that a claim or a heartbeat changes is indexed (rule 9): those are
-- state, token, worker, started, lease_until, holds, progress.
--   rank: the order of claims, smaller first: the time from which the job's age counts, less one ageing
--         interval for each priority level. Two jobs never change their order as they age (rule 16).
--   lane: 0 claimable or running, 1 waits for the time `due`, 2 parked at the resource `parked_at`.
--   wait: why it is in lane 1 (src/codes.rs).
--   holds: the resource that its running attempt holds.
--   lost, died, isolated: rule 7.
CREATE TABLE job (
    id {id} NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    kind_version INTEGER NOT NULL,
    database_id {id},
    arguments TEXT NOT NULL,
    exclusion INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    rank BIGINT NOT NULL,
    submitted BIGINT NOT NULL,
    due BIGINT,
    deadline BIGINT,
    max_tries INTEGER NOT NULL,
    unique_key TEXT,
    retry_of {id},
    tags TEXT,
    lane INTEGER NOT NULL,
    parked_at TEXT,
    wait INTEGER NOT NULL,
    problem TEXT,
    tries INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    died INTEGER NOT NULL,
    isolated INTEGER NOT NULL,
    cancel BIGINT,
    state INTEGER NOT NULL,
    token BIGINT NOT NULL,
    worker TEXT,
    started BIGINT,
    lease_until BIGINT,
    holds TEXT,
    progress TEXT
) {hot};
CREATE INDEX job_order ON job (slot, kind, lane, rank, id);
CREATE INDEX job_due ON job (due) WHERE lane = 1;
CREATE INDEX job_parked ON job (parked_at, rank, id) WHERE lane = 2;
CREATE INDEX job_deadline ON job (deadline) WHERE deadline IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON job (tenant, unique_key) WHERE unique_key IS NOT NULL;

-- A job that has ended, with its last attempt folded in. Append-only until it is pruned by age or bytes.
-- (tx, seq) is its place in the events (rule 10).
CREATE TABLE history (
    id {id} NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    kind_version INTEGER NOT NULL,
    database_id {id},
    arguments TEXT NOT NULL,
    exclusion INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    submitted BIGINT NOT NULL,
    due BIGINT,
    deadline BIGINT,
    max_tries INTEGER NOT NULL,
    unique_key TEXT,
    retry_of {id},
    tags TEXT,
    problem TEXT,
    tries INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    cancel BIGINT,
    state INTEGER NOT NULL,
    token BIGINT NOT NULL,
    worker TEXT,
    started BIGINT,
    progress TEXT,
    ended BIGINT NOT NULL,
    outcome INTEGER,
    result TEXT,
    bytes BIGINT NOT NULL,
    tx BIGINT NOT NULL,
    seq BIGINT NOT NULL
) {clustered};
CREATE INDEX history_events ON history (tx, seq);

-- Attempts before the last one of an ended job: there are rows only for jobs whose first attempt did not end them.
CREATE TABLE attempt (
    job {id} NOT NULL,
    number INTEGER NOT NULL,
    token BIGINT NOT NULL,
    worker TEXT,
    started BIGINT NOT NULL,
    ended BIGINT NOT NULL,
    outcome INTEGER NOT NULL,
    problem TEXT,
    PRIMARY KEY (job, number)
) {clustered};

CREATE TABLE checkpoint (
    job {id} NOT NULL PRIMARY KEY,
    token BIGINT NOT NULL,
    saved BIGINT NOT NULL,
    data TEXT NOT NULL
);

CREATE TABLE job_log (
    job {id} NOT NULL,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (job, number)
) {clustered};

-- What only one job may hold at a time: a database, by its own identity (rule 17) or, until that is
-- known, by its record. The condition of a claim stands in the statement that takes the row (rule 3).
CREATE TABLE resource (
    name TEXT NOT NULL PRIMARY KEY,
    job {id},
    kind TEXT,
    since BIGINT NOT NULL
) {hot};

CREATE TABLE idempotency (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    request_hash {blob} NOT NULL,
    job {id} NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
) {clustered};
CREATE INDEX idempotency_created ON idempotency (created);

CREATE TABLE worker (
    id TEXT NOT NULL PRIMARY KEY,
    kinds TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    alive_until BIGINT NOT NULL,
    swept INTEGER NOT NULL
) {hot};

CREATE TABLE artefact (
    job {id} NOT NULL,
    token BIGINT NOT NULL,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    database_id {id},
    data TEXT NOT NULL,
    recorded BIGINT NOT NULL,
    PRIMARY KEY (job, token, name)
) {clustered};

CREATE TABLE backup (
    id {id} NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    place TEXT NOT NULL,
    database_id {id},
    finished BIGINT NOT NULL,
    facts TEXT NOT NULL,
    state TEXT NOT NULL,
    state_why TEXT,
    proof TEXT,
    proof_finished BIGINT
);
CREATE INDEX backup_tenant ON backup (tenant, finished);
CREATE INDEX backup_database ON backup (database_id, finished);

CREATE TABLE proof (
    backup {id} NOT NULL,
    finished BIGINT NOT NULL,
    facts TEXT NOT NULL,
    PRIMARY KEY (backup, finished)
) {clustered};

-- What happened beside the ends of jobs, which are events by their rows in the history.
CREATE TABLE event (
    tx BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    job {id},
    data TEXT NOT NULL,
    PRIMARY KEY (tx, seq)
) {clustered};

{positions};

INSERT INTO tenant (id, created) VALUES ('default', 0);
