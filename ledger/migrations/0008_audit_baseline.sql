-- What audits of a database compare with: its roles, grants, settings, access rules and schema as they were last accepted.
CREATE TABLE audit_baseline (
    database_id {id} NOT NULL,
    tenant TEXT NOT NULL,
    -- When it was first kept or last accepted, and by which job.
    kept BIGINT NOT NULL,
    job {id},
    snapshot TEXT NOT NULL,
    PRIMARY KEY (database_id)
) {clustered};
