-- What an attempt made outside and leaves to the job's next one, if it is lost or interrupted: it is nobody's
-- business to remove it before the job has ended (rule 6).
ALTER TABLE artefact ADD COLUMN until_job_ends INTEGER NOT NULL DEFAULT 0;

-- The oldest schema version whose programs can go on with a ledger that has taken this step: in a rolling upgrade
-- they run beside newer ones, and may start again. Who does not say it has no older one beside it.
ALTER TABLE ledger_schema ADD COLUMN usable_from BIGINT NOT NULL DEFAULT 9223372036854775807;
