-- Who may use the HTTP interface. Of a token only a hash is kept: a copy of the ledger opens nothing.
--   tenant: whose things it sees; none sees all.
--   last_used: written at most once a minute, so that it is not indexed and costs next to nothing.
CREATE TABLE token (
    id {id} NOT NULL PRIMARY KEY,
    hash {blob} NOT NULL UNIQUE,
    name TEXT NOT NULL,
    tenant TEXT REFERENCES tenant (id),
    role TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT,
    last_used BIGINT
);
CREATE UNIQUE INDEX token_name ON token (COALESCE(tenant, ''), name);

-- The events of one job, for whoever follows it, and for pruning.
CREATE INDEX event_job ON event (job, tx, seq) WHERE job IS NOT NULL;
