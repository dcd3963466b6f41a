-- What should have been heard of and was not (P11): a row for as long as it is silent, so that it is told once,
-- whoever sees it first, and once more when it is heard of again.
CREATE TABLE silence (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    since BIGINT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) {clustered};
