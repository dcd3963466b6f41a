-- A database with one of everything that is odd in PostgreSQL. `:rows` rows in the large table, `:megabytes` in the largest
-- value; `:tag` makes the names of roles unique on the server.
CREATE ROLE "owner :tag";
CREATE ROLE "reader :tag" LOGIN;
GRANT "reader :tag" TO "owner :tag";

ALTER DATABASE :"DBNAME" OWNER TO "owner :tag";
ALTER DATABASE :"DBNAME" SET search_path TO public, "Odd ""Schema""";
ALTER DATABASE :"DBNAME" SET work_mem TO '7MB';
ALTER ROLE "reader :tag" IN DATABASE :"DBNAME" SET statement_timeout TO '5s';
GRANT CONNECT ON DATABASE :"DBNAME" TO "reader :tag";
COMMENT ON DATABASE :"DBNAME" IS 'the database''s own comment';

CREATE SCHEMA "Odd ""Schema""" AUTHORIZATION "owner :tag";
CREATE SCHEMA shop;
COMMENT ON SCHEMA shop IS 'a schema';
GRANT USAGE ON SCHEMA shop TO "reader :tag";
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO "reader :tag";
CREATE EXTENSION citext SCHEMA shop;
CREATE EXTENSION hstore;

-- Types.
CREATE TYPE shop.mood AS ENUM ('sad', 'o''k', 'very "happy"');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN shop.moods AS shop.mood[];
CREATE TYPE shop.point3 AS (x float8, y float8, label text);
CREATE TYPE shop.nested AS (p shop.point3, m shop.mood, n shop.positive);
CREATE TYPE shop.moodrange AS RANGE (subtype = shop.mood);
CREATE TYPE shop.textrange AS RANGE (subtype = text, collation = "C");

CREATE TABLE shop.wide (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(20, 5), mon money,
    c "char", ch char(10), vc varchar(20), t text, nm name, by bytea,
    d date, tm time, tmtz timetz, ts timestamp, tstz timestamptz, iv interval,
    u uuid, j json, jb jsonb, jp jsonpath, x xml,
    inet inet, cidr cidr, mac macaddr, mac8 macaddr8,
    pt point, ln line, ls lseg, bx box, pa path, po polygon, ci circle,
    bt bit(7), vb varbit, tsv tsvector, tsq tsquery, lsn pg_lsn, snap pg_snapshot, tsnap txid_snapshot,
    o oid, rc regclass, rp regprocedure, rt regtype, rn regnamespace, rr regrole,
    ia int[], ta text[][], ma shop.mood[], pa3 shop.point3[], da shop.positive[], na shop.nested[],
    m shop.mood, dm shop.positive, dms shop.moods, p3 shop.point3, ne shop.nested,
    r4 int4range, rts tstzrange, mr int4multirange, rm shop.moodrange, rtx shop.textrange,
    hs hstore, ov oidvector, iv2 int2vector
);
INSERT INTO shop.wide (b, i2, i4, i8, f4, f8, n, n2, mon, c, ch, vc, t, nm, by, d, tm, tmtz, ts, tstz, iv, u, j, jb, jp, x,
    inet, cidr, mac, mac8, pt, ln, ls, bx, pa, po, ci, bt, vb, tsv, tsq, lsn, snap, tsnap, o, rc, rp, rt, rn, rr,
    ia, ta, ma, pa3, da, na, m, dm, dms, p3, ne, r4, rts, mr, rm, rtx, hs, ov, iv2)
VALUES
    (true, -32768, 2147483647, -9223372036854775808, '-Infinity', 'NaN', 'Infinity', -12345.67891, '$1,234.56', 'x', 'padded', E'tab\t', E'line\nand \\. back\\slash', 'a name', '\x00ff5c0a',
     '0044-03-15 BC', '24:00', '23:59:59.999999+14:59', '4714-11-24 00:00:00 BC', 'infinity', '-178000000 years 11 mons 3 days 04:05:06.789', gen_random_uuid(), '{"a" : [1, 2,  "dup"], "a":null}', '{"n": 1e400, "s": "\u00e9"}', '$.a[*] ? (@ > 1)', '<a b="c">x</a>',
     '10.1.2.3/8', '::/0', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '(1.5,-2)', '{1,-1,0}', '[(0,0),(1,1)]', '(2,2),(1,1)', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(1,1),5>',
     '1010101', '111000', 'a fat cat:3A', 'fat & (cat | !rat:AB)', '16/B374D848', '10:20:10,14,15', '10:20:10', 4294967295, 'shop.wide', 'pg_catalog.length(text)', 'shop.mood', 'shop', '"owner :tag"',
     '[0:2]={1,NULL,3}', '{{a,"b,c"},{"NULL",NULL}}', '{sad,"very \"happy\""}', ARRAY[ROW(1, 'Infinity', 'l')::shop.point3, NULL], '{1,2}', ARRAY[ROW(ROW(1, 2, 'x'), 'sad', 3)::shop.nested],
     'sad', 7, '{sad}', ROW(1, NULL, ''), ROW(NULL, 'o''k', 1), '[1,5)', '(,2020-01-01]', '{[1,3),[7,9)}', '[sad,"o''k"]', '[a,b)', 'a=>1,b=>NULL', '1 2 3', '4 5'),
    (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (false, 0, 0, 0, '0', '-0', 'NaN', 0, '0', '', '', '', '', '', '', 'infinity', '00:00', '00:00-15:59', '-infinity', '-infinity', '0', '00000000-0000-0000-0000-000000000000', '[]', 'null', '$', '',
     '::1', '10/8', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', '(NaN,Infinity)', '{0,1,0}', '[(0,0),(0,0)]', '(0,0),(0,0)', '((0,0))', '((0,0))', '<(0,0),0>',
     '0000000', '', '', '', '0/0', '1:1:', '1:1:', 0, '-', NULL, '-', '-', '-', '{}', '{}', '{}', '{}', '{}', '{}', 'very "happy"', 1, '{}', ROW(NULL, NULL, NULL), ROW(NULL, NULL, NULL),
     'empty', 'empty', '{}', 'empty', '(,)', '', '', '');
COMMENT ON TABLE shop.wide IS E'a table\nof two lines';
COMMENT ON COLUMN shop.wide.n IS 'its column';

-- Only types that are copied in binary.
CREATE TABLE shop.binary_only (id int PRIMARY KEY, m shop.mood, d shop.positive, a int[], r int4range, mr int4multirange, p shop.point3, j jsonb, b bytea, n numeric, ts timestamptz, iv interval, rt shop.textrange);
INSERT INTO shop.binary_only
SELECT n, (enum_range(NULL::shop.mood))[1 + n % 3], n, ARRAY[n, NULL, -n], int4range(n, n + 2), int4multirange(int4range(n, n + 1)), ROW(n, n / 3.0, 'l' || n)::shop.point3,
    jsonb_build_object('n', n), int4send(n), n / 7.0, '2020-01-01'::timestamptz + n * interval '1 s', n * interval '1 mon 1 us', shop.textrange(n::text, NULL)
FROM generate_series(1, 3000) n;

-- A large one, whose pages are split into ranges, with dead rows and a dropped column.
CREATE TABLE public.large (id bigint, gone text, payload text, made timestamptz DEFAULT now()) WITH (fillfactor = 90);
INSERT INTO public.large (id, gone, payload) SELECT n, 'gone', md5(n::text) || repeat('.', (n % 200)::int) FROM generate_series(1, :rows) n;
DELETE FROM public.large WHERE id % 10 = 0;
ALTER TABLE public.large DROP COLUMN gone;
ALTER TABLE public.large ADD PRIMARY KEY (id);
CREATE INDEX "large expr" ON public.large (lower(payload), (id % 7)) WHERE id > 5;
CREATE STATISTICS public.large_stats ON id, made FROM public.large;

-- One value that is larger than any buffer.
CREATE TABLE public.huge (id int, v text, b bytea);
ALTER TABLE public.huge ALTER v SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
INSERT INTO public.huge VALUES (1, repeat('0123456789abcdef', :megabytes * 65536), '\x01'), (2, 'small', NULL);

-- Generated, identity, serial, sequences.
CREATE TABLE public.generated (a int, b int GENERATED ALWAYS AS (a * 2) STORED, c int GENERATED BY DEFAULT AS IDENTITY (START 100 INCREMENT BY 10), e serial);
INSERT INTO public.generated (a) SELECT generate_series(1, 10);
CREATE TABLE public.all_generated (a int GENERATED ALWAYS AS (1 + 1) STORED);
INSERT INTO public.all_generated DEFAULT VALUES;
CREATE SEQUENCE public.unused START 7;
CREATE SEQUENCE public.descending INCREMENT -1 MINVALUE -100 MAXVALUE -1 CYCLE;
SELECT nextval('public.descending'), nextval('public.descending');

-- Partitions, also ones that a copy puts elsewhere, and inheritance.
CREATE TABLE public.parts (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE public.parts_2025 PARTITION OF public.parts FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE public.parts_2026 PARTITION OF public.parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id);
CREATE TABLE public.parts_2026_other PARTITION OF public.parts_2026 DEFAULT;
CREATE TABLE public.parts_default PARTITION OF public.parts DEFAULT;
INSERT INTO public.parts SELECT n, '2024-06-01'::date + n, 'p' || n FROM generate_series(1, 900) n;
CREATE TABLE public.by_enum (m shop.mood, v int) PARTITION BY HASH (m);
CREATE TABLE public.by_enum_0 PARTITION OF public.by_enum FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE public.by_enum_1 PARTITION OF public.by_enum FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE public.by_enum_2 PARTITION OF public.by_enum FOR VALUES WITH (MODULUS 3, REMAINDER 2);
INSERT INTO public.by_enum SELECT (enum_range(NULL::shop.mood))[1 + n % 3], n FROM generate_series(1, 300) n;
CREATE TABLE public.parent (id int, v text);
CREATE TABLE public.child (extra int) INHERITS (public.parent);
INSERT INTO public.parent VALUES (1, 'parent'); INSERT INTO public.child VALUES (2, 'child', 3);

-- Foreign keys in a circle, and to itself.
CREATE TABLE public.chicken (id int PRIMARY KEY, egg int);
CREATE TABLE public.egg (id int PRIMARY KEY, chicken int REFERENCES public.chicken DEFERRABLE INITIALLY DEFERRED, twin int REFERENCES public.egg);
INSERT INTO public.chicken VALUES (1, 1), (2, 2); INSERT INTO public.egg VALUES (1, 2, 2), (2, 1, 1);
ALTER TABLE public.chicken ADD FOREIGN KEY (egg) REFERENCES public.egg;
ALTER TABLE public.chicken ADD CONSTRAINT not_checked CHECK (id > 1) NOT VALID;

-- Triggers, rules, functions, views, policies.
CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- Name: not a heading; Type: TABLE; Schema: public; Owner: nobody
    RAISE EXCEPTION 'must not run while rows are restored';
END $body$;
CREATE TRIGGER touched BEFORE INSERT ON public.chicken FOR EACH ROW EXECUTE FUNCTION public.touch();
CREATE RULE no_eggs AS ON INSERT TO public.egg DO INSTEAD NOTHING;
CREATE PROCEDURE public.proc(INOUT a int) LANGUAGE sql AS 'SELECT a + 1';
CREATE FUNCTION public.new_style(a int) RETURNS int BEGIN ATOMIC SELECT a + 1; END;
CREATE AGGREGATE public.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE VIEW public.seen AS SELECT id, payload FROM public.large WHERE id < 100 WITH CHECK OPTION;
CREATE MATERIALIZED VIEW public.counted AS SELECT count(*) AS n FROM public.large;
CREATE MATERIALIZED VIEW public.a_first AS SELECT n + 1 AS n FROM public.counted;
CREATE UNIQUE INDEX ON public.a_first (n);
CREATE MATERIALIZED VIEW public.empty AS SELECT 1 AS one WITH NO DATA;
CREATE TABLE public.secrets (owner name, v text);
INSERT INTO public.secrets VALUES ('nobody', 'hidden'), (current_user, 'mine');
ALTER TABLE public.secrets ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.secrets FORCE ROW LEVEL SECURITY;
ALTER TABLE public.secrets OWNER TO "owner :tag";
CREATE POLICY own ON public.secrets FOR SELECT TO "reader :tag" USING (owner = current_user);
GRANT SELECT (v), INSERT ON public.secrets TO "reader :tag" WITH GRANT OPTION;

-- Names that need quoting, tables without columns and without rows.
CREATE TABLE "Odd ""Schema"""."Order; DROP TABLE x -- é" ("a ""b""" int, "select" text, "Üñï" int, "with space" int DEFAULT 5);
INSERT INTO "Odd ""Schema"""."Order; DROP TABLE x -- é" VALUES (1, 'x', 2);
COMMENT ON TABLE "Odd ""Schema"""."Order; DROP TABLE x -- é" IS 'it''s';
CREATE TABLE public.no_columns ();
INSERT INTO public.no_columns DEFAULT VALUES; INSERT INTO public.no_columns DEFAULT VALUES;
CREATE TABLE public.no_rows (id int PRIMARY KEY, v text);
CREATE UNLOGGED TABLE public.unlogged (v int); INSERT INTO public.unlogged VALUES (1);
CREATE TABLE public.blanks (v text); INSERT INTO public.blanks VALUES (''), (NULL), ('\N'), ('\.'), (E'\\'), (E'\r\n');

-- Foreign data, text search, collations, operators, casts, publications.
CREATE FOREIGN DATA WRAPPER elsewhere OPTIONS (a 'b');
CREATE SERVER there FOREIGN DATA WRAPPER elsewhere;
CREATE FOREIGN TABLE public.far (id int) SERVER there;
CREATE TEXT SEARCH CONFIGURATION public.plain (COPY = simple);
CREATE COLLATION public.c_like (provider = libc, locale = 'C');
CREATE FUNCTION public.same_mood(shop.mood, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text = $2';
CREATE OPERATOR public.=~= (LEFTARG = shop.mood, RIGHTARG = text, FUNCTION = public.same_mood);
CREATE CAST (shop.point3 AS text) WITH INOUT;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION "some" FOR TABLE public.large, public.parent;

-- Large objects.
SELECT lo_from_bytea(100001, '\x0102030405'), lo_from_bytea(100002, decode(repeat('ab', 5000), 'hex')), lo_from_bytea(100003, '');
SELECT lo_create(100004);
SELECT lo_put(100004, 1000000, '\xff');
SELECT lo_from_bytea(200000 + n, sha256(int4send(n))) FROM generate_series(1, 50) n;
ALTER LARGE OBJECT 100002 OWNER TO "owner :tag";
GRANT SELECT ON LARGE OBJECT 100001 TO "reader :tag";
COMMENT ON LARGE OBJECT 100003 IS 'an empty one';

CREATE FUNCTION public.watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'seen %', tg_tag; END $$;
CREATE EVENT TRIGGER watcher ON ddl_command_end WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION public.watch();
COMMENT ON EVENT TRIGGER watcher IS 'an event trigger';
