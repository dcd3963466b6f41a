-- What was seen of a database's load, each time that tuning looked: counters, to tell what is used and what is not over a time.
CREATE TABLE tuning_sample (
    database_id {id} NOT NULL,
    at BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (database_id, at)
) {clustered};

-- What tuning has changed, each with its way back, written before the change is made.
CREATE TABLE tuning_action (
    database_id {id} NOT NULL,
    action_id {id} NOT NULL,
    tenant TEXT NOT NULL,
    job {id} NOT NULL,
    state TEXT NOT NULL,
    facts TEXT NOT NULL,
    changed BIGINT NOT NULL,
    PRIMARY KEY (database_id, action_id)
) {clustered};
