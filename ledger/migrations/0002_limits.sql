-- Turns between tenants (rule 16), limits (rules 3 and 4), pauses, and the terms under which a job runs.

-- weight: how many turns it has for a thousand of another's. ceiling: the highest priority of its jobs (src/codes.rs).
ALTER TABLE tenant ADD COLUMN weight INTEGER NOT NULL DEFAULT 1000;
ALTER TABLE tenant ADD COLUMN ceiling INTEGER NOT NULL DEFAULT 4;

-- Where tenants stand in the order of a slot class and level, in millionths of a turn. The row of the
-- tenant '' is the turn that is being served there.
CREATE TABLE turn (
    slot INTEGER NOT NULL,
    level INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    turn BIGINT NOT NULL,
    PRIMARY KEY (slot, level, tenant)
) {hot};

-- line: what a job asks of a worker beside its kind: a newer version, labels that reach its database; '' for
-- nothing (src/job/lines.rs). The jobs of one slot class, kind, line and tenant are a range, in the order of
-- their rank: the first of each tenant is found without looking at the others, nor at those that a worker
-- cannot run.
ALTER TABLE job ADD COLUMN line TEXT NOT NULL DEFAULT '';
DROP INDEX job_order;
CREATE INDEX job_turns ON job (slot, kind, lane, line, tenant, rank, id);

-- The versions of its kinds that a worker knows above the first, and its labels.
ALTER TABLE worker ADD COLUMN versions TEXT NOT NULL DEFAULT '{}';
ALTER TABLE worker ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
-- The labels that reach a database, as they stand in lines.
ALTER TABLE database_record ADD COLUMN route TEXT NOT NULL DEFAULT '';
CREATE INDEX database_route ON database_record (route) WHERE route <> '';

-- How many jobs of a scope (its name, such as tenant/acme) may run at once. running: the running rows that
-- hold a slot of it (job.holds), changed only under this row's lock, in the transaction that starts or ends
-- them, and counted anew now and then.
CREATE TABLE job_limit (
    name TEXT NOT NULL PRIMARY KEY,
    most BIGINT NOT NULL,
    running BIGINT NOT NULL,
    created BIGINT NOT NULL
) {hot};

CREATE TABLE pause (
    name TEXT NOT NULL PRIMARY KEY,
    since BIGINT NOT NULL,
    because TEXT
);

-- terms: under which a job runs, a JSON object: time-out, window, policy.
-- parked_at is a database's name, `limit:` or `pause:` and a name of the tables above; holds has the names
-- of what its attempt holds, a line each.
ALTER TABLE job ADD COLUMN terms TEXT;
ALTER TABLE history ADD COLUMN terms TEXT;
-- A database's own terms for jobs about it, a JSON object: window, labels of the workers that reach it, load.
ALTER TABLE database_record ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
