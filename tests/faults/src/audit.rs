//! What the ledger itself saw: triggers of the harness, in a schema of their own, note every claim, end, lost attempt,
//! checkpoint and line of a log, and which process wrote it (each logs in under a role of its own). So that two attempts
//! whose effects both stand show, whatever Fettler's own rows say (P2).

/// Makes the table and the triggers. Run once in each ledger, by the superuser.
pub const INSTALL: &str = r"
CREATE SCHEMA faults;
CREATE TABLE faults.seen (
    seq BIGSERIAL PRIMARY KEY,
    at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    writer TEXT NOT NULL,
    what TEXT NOT NULL,
    job TEXT NOT NULL,
    token BIGINT,
    state INT,
    outcome INT,
    note TEXT
);
CREATE INDEX seen_job ON faults.seen (job, seq);
CREATE FUNCTION faults.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_TABLE_NAME = 'job' THEN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO faults.seen (writer, what, job, token, state) VALUES (session_user, 'submit', NEW.id, NEW.token, NEW.state);
        ELSIF NEW.state = 1 AND (OLD.state <> 1 OR OLD.token <> NEW.token) THEN
            INSERT INTO faults.seen (writer, what, job, token, state, note) VALUES (session_user, 'claim', NEW.id, NEW.token, NEW.state, NEW.worker);
        ELSIF NEW.state = 0 AND OLD.state = 1 THEN
            INSERT INTO faults.seen (writer, what, job, token, state) VALUES (session_user, 'back', NEW.id, OLD.token, NEW.state);
        END IF;
    ELSIF TG_TABLE_NAME = 'history' THEN
        INSERT INTO faults.seen (writer, what, job, token, state, outcome, note)
        VALUES (session_user, 'end', NEW.id, NEW.token, NEW.state, NEW.outcome, NEW.worker);
    ELSIF TG_TABLE_NAME = 'attempt' THEN
        INSERT INTO faults.seen (writer, what, job, token, outcome, note)
        VALUES (session_user, 'attempt', NEW.job, NEW.token, NEW.outcome, NEW.worker);
    ELSIF TG_TABLE_NAME = 'checkpoint' THEN
        INSERT INTO faults.seen (writer, what, job, token) VALUES (session_user, 'checkpoint', NEW.job, NEW.token);
    ELSE
        INSERT INTO faults.seen (writer, what, job, outcome, note) VALUES (session_user, 'log', NEW.job, NEW.attempt, NEW.line);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER faults_job AFTER INSERT OR UPDATE ON job FOR EACH ROW EXECUTE FUNCTION faults.note();
CREATE TRIGGER faults_history AFTER INSERT ON history FOR EACH ROW EXECUTE FUNCTION faults.note();
CREATE TRIGGER faults_attempt AFTER INSERT ON attempt FOR EACH ROW EXECUTE FUNCTION faults.note();
CREATE TRIGGER faults_checkpoint AFTER INSERT OR UPDATE ON checkpoint FOR EACH ROW EXECUTE FUNCTION faults.note();
CREATE TRIGGER faults_log AFTER INSERT ON job_log FOR EACH ROW EXECUTE FUNCTION faults.note();
";

/// Jobs that ended more than once.
pub const ENDED_TWICE: &str = "SELECT job, count(*) AS times FROM faults.seen WHERE what = 'end' GROUP BY job HAVING count(*) > 1";

/// Tokens that did not rise from one claim of a job to the next.
pub const TOKENS_FELL: &str = "SELECT job, token, before FROM (
    SELECT job, token, lag(token) OVER (PARTITION BY job ORDER BY seq) AS before FROM faults.seen WHERE what = 'claim'
) claims WHERE token <= before";

/// Writes of an attempt that were taken although another process had claimed the job since. Those who take jobs back and
/// those who cancel or expire them write in nobody's name: outcome 4 is lost, 5 cancelled.
pub const ZOMBIE_WRITES: &str = "SELECT w.job, w.what, w.writer, w.note, c.writer AS holder FROM faults.seen w
    JOIN LATERAL (
        SELECT writer, token FROM faults.seen c WHERE c.job = w.job AND c.what = 'claim' AND c.seq < w.seq
        ORDER BY c.seq DESC LIMIT 1
    ) c ON true
    WHERE (w.what IN ('end', 'attempt') AND w.outcome IN (0, 1, 2, 3) AND w.writer <> c.writer)
       OR (w.what = 'checkpoint' AND (w.token <> c.token OR w.writer <> c.writer))
       OR (w.what = 'log' AND w.writer <> c.writer)";

/// The whole record, a JSON document a line, in the order of the writes.
pub const RECORD: &str = "SELECT row_to_json(s) FROM (SELECT seq, at, writer, what, job, token, state, outcome, note FROM faults.seen ORDER BY seq) s";
