-- Look-ups by id are to go by the primary key. While statistics say that the table is empty (a queue that was drained when they
-- were made), PostgreSQL takes every index that has the column for as cheap, and read the whole of this one for each batch of
-- jobs. An expression breaks the ties of rank as well, and no look-up by id fits it. Its order is written `rank, id || ''`.
DROP INDEX job_turns;
CREATE INDEX job_turns ON job (slot, kind, lane, line, tenant, rank, (id || ''));
