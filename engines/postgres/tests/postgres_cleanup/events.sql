-- Rows of every sort of type that is hard to write down, half of them older than 90 days.
CREATE TYPE mood AS ENUM ('so so', 'it''s "fine"');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN short AS varchar(5) CHECK (value <> 'never');
CREATE TABLE "Events" (
    gone int, id bigint GENERATED ALWAYS AS IDENTITY, region char(4), at timestamptz, "the text" text, m mood, p pair, d short,
    tags text[], doc jsonb, raw json, bytes bytea, num numeric(30, 10), f float8, g float4, span interval, r tstzrange,
    flag boolean, ip inet, bits bit(5), doubled bigint GENERATED ALWAYS AS (id * 2) STORED, plain date,
    PRIMARY KEY (region, id));
ALTER TABLE "Events" DROP COLUMN gone;
INSERT INTO "Events" (region, at, "the text", m, p, d, tags, doc, raw, bytes, num, f, g, span, r, flag, ip, bits, plain)
SELECT CASE g % 3 WHEN 0 THEN 'eu' WHEN 1 THEN 'us  ' ELSE 'asia' END,
    now() - interval '1 day' * (180.0 * (g - 0.5) / 4000),
    CASE g % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'tab\tnew\nline \\ back ''quote'' "q" \\N' ELSE repeat('ä', g % 700) END,
    CASE g % 4 WHEN 0 THEN NULL WHEN 1 THEN 'so so' ELSE 'it''s "fine"' END::mood, ROW(g, E'a,\\b"(')::pair,
    CASE g % 2 WHEN 0 THEN NULL ELSE 'abc' END, ARRAY['a', NULL, 'b,c', E'"\\'], jsonb_build_object('k', g, 'n', NULL), ' {"a" :  1} ',
    decode(md5(g::text), 'hex'), CASE g % 7 WHEN 0 THEN 'NaN'::numeric ELSE g / 7.0 END,
    CASE g % 11 WHEN 0 THEN 'Infinity'::float8 WHEN 1 THEN '-0'::float8 ELSE g / 3.0 END, g / 3.0, interval '1 mon 2 days 03:04:05.678' * g,
    tstzrange(now(), NULL), g % 2 = 0, '10.1.2.3/8', g::bit(5), current_date - g
FROM generate_series(1, 4000) g;
INSERT INTO "Events" (region, at) VALUES ('null', NULL);
