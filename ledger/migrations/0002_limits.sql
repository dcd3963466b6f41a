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

-- The jobs of one slot class, kind and tenant are a range, in the order of their rank: the first of each
-- tenant is found without looking at the others.
DROP INDEX job_order;
CREATE INDEX job_turns ON job (slot, kind, lane, tenant, rank, id);
