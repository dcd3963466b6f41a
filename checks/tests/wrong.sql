-- A schema in which much is wrong, each beside something alike that is not.
-- A sequence that is nearly burnt, one whose column ends before it does, one that has room, and one that begins anew.
CREATE TABLE burnt (id serial PRIMARY KEY);
SELECT setval('burnt_id_seq', 2100000000);
CREATE TABLE narrow (id integer);
CREATE SEQUENCE wide AS bigint OWNED BY narrow.id;
SELECT setval('wide', 1900000000);
CREATE TABLE fine (id bigserial PRIMARY KEY);
SELECT setval('fine_id_seq', 2100000000);
CREATE SEQUENCE round AS smallint CYCLE;
SELECT setval('round', 32767);
-- An index beside the same one of a constraint, and one that is alone.
CREATE TABLE twice (a int, b int, CONSTRAINT twice_key UNIQUE (a));
CREATE INDEX twice_again ON twice (a);
CREATE INDEX other ON twice (b);
-- Keys that nobody enforces, and a constraint that nobody held against old rows.
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (p int CONSTRAINT child_fk REFERENCES parent);
ALTER TABLE child DISABLE TRIGGER ALL;
CREATE TABLE loose (n int);
ALTER TABLE loose ADD CONSTRAINT positive CHECK (n > 0) NOT VALID;
-- Dead rows, no statistics, no vacuum.
CREATE TABLE dead (n int, t text) WITH (autovacuum_enabled = off);
INSERT INTO dead SELECT n, repeat('x', 80) FROM generate_series(1, 40000) n;
DELETE FROM dead WHERE n > 2000;
CREATE TABLE alive (n int, t text);
INSERT INTO alive SELECT n, repeat('x', 80) FROM generate_series(1, 20000) n;
ANALYZE alive;
CREATE UNLOGGED TABLE cache (n int);
INSERT INTO cache VALUES (1);
CREATE UNLOGGED TABLE empty_cache (n int);
CREATE TABLE same (n int);
INSERT INTO same VALUES (1), (1);
ALTER SYSTEM SET max_connections = 120;
SELECT pg_reload_conf();
-- Sorts that spill, and reads that miss.
SET work_mem = '64kB';
SET max_parallel_workers_per_gather = 0;
DO $$ BEGIN
    FOR i IN 1..150 LOOP
        PERFORM n FROM generate_series(1, 12000) n ORDER BY n DESC OFFSET 11999;
    END LOOP;
    FOR i IN 1..320 LOOP
        PERFORM count(*) FROM dead;
    END LOOP;
END $$;
