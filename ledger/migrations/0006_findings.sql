-- What looks at databases have found: a row for each finding for as long as its database is known, with what may be said of it now.
CREATE TABLE finding (
    database_id {id} NOT NULL,
    finding_key {id} NOT NULL,
    tenant TEXT NOT NULL,
    check_id TEXT NOT NULL,
    area TEXT NOT NULL,
    severity BIGINT NOT NULL,
    -- open, resolved, not_evaluable: whatever was said of it by people stands beside it.
    state TEXT NOT NULL,
    facts TEXT NOT NULL,
    opened BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    seen BIGINT NOT NULL,
    resolved BIGINT,
    times_opened BIGINT NOT NULL,
    suppressed_until BIGINT,
    suppressed_because TEXT,
    PRIMARY KEY (database_id, finding_key)
) {clustered};
CREATE INDEX finding_tenant ON finding (tenant, state);

-- How each came to be what it is.
CREATE TABLE finding_history (
    database_id {id} NOT NULL,
    finding_key {id} NOT NULL,
    at BIGINT NOT NULL,
    what TEXT NOT NULL,
    tenant TEXT NOT NULL,
    job {id},
    data TEXT NOT NULL,
    PRIMARY KEY (database_id, finding_key, at, what)
) {clustered};
