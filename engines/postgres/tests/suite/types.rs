//! Every type that is copied in binary comes back as it was, and none of them lets two servers disagree on
//! the bytes of equal rows.

use fettler_engine::DatabaseEngine;
use fettler_test_servers::{PgMajor, PostgresServer};

use crate::common::{Attempt, back_up, engine_of_both, mismatches, restore, target};

/// A type and values of it.
pub const VALUES: [(&str, &[&str]); 64] = [
    ("bool", &["t", "f"]),
    ("bytea", &["\\x", "\\x00ff"]),
    ("\"char\"", &["", "x"]),
    ("name", &["a"]),
    ("int8", &["-9223372036854775808"]),
    ("int2", &["-32768"]),
    ("int4", &["2147483647"]),
    ("text", &["", "é\n\t\\"]),
    ("oid", &["4294967295"]),
    ("tid", &["(4294967295,65535)"]),
    ("xid", &["7"]),
    ("cid", &["7"]),
    ("json", &["{\"b\" : 1, \"b\":2}"]),
    ("point", &["(NaN,-Infinity)"]),
    ("lseg", &["[(0,0),(1,1)]"]),
    ("path", &["[(0,0),(1,1)]", "((0,0),(1,1))"]),
    ("box", &["(1,1),(0,0)"]),
    ("polygon", &["((0,0),(1,1),(2,0))"]),
    ("line", &["{1,2,3}"]),
    ("float4", &["NaN", "-0", "1e-45", "3.4028235e38"]),
    ("float8", &["NaN", "-Infinity", "5e-324", "0.1"]),
    ("circle", &["<(0,0),1>"]),
    ("money", &["-92233720368547758.08"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("inet", &["::1", "10.1.2.3/8"]),
    ("cidr", &["::/0", "10.0.0.0/8"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("char(5)", &["ab"]),
    ("varchar(5)", &["abcde"]),
    ("date", &["infinity", "4713-01-01 BC", "5874897-12-31"]),
    ("time(3)", &["24:00", "23:59:59.999"]),
    (
        "timestamp",
        &[
            "-infinity",
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
        ],
    ),
    ("timestamptz", &["infinity", "0044-03-15 12:00:00+00 BC"]),
    (
        "interval",
        &["-178000000 years", "1 mon -1 day 00:00:00.000001"],
    ),
    ("timetz", &["23:59:59.999999-15:59"]),
    ("bit(9)", &["101010101"]),
    ("varbit", &["", "1"]),
    (
        "numeric",
        &["NaN", "Infinity", "-0.0000000000000000001", "1e1000"],
    ),
    ("numeric(10,-2)", &["12300"]),
    ("uuid", &["ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    ("pg_lsn", &["FFFFFFFF/FFFFFFFF"]),
    ("tsvector", &["a:1A,2B 'b c'"]),
    ("tsquery", &["a:*A <-> (b | !c)"]),
    ("jsonb", &["null", "{\"a\": [1e1000, \"\\u00e9\"]}"]),
    ("txid_snapshot", &["10:20:10,15"]),
    ("jsonpath", &["strict $.a[last]?(@ like_regex \"x\")"]),
    ("xid8", &["18446744073709551615"]),
    ("pg_snapshot", &["10:20:10,15"]),
    ("refcursor", &["c"]),
    ("int4[]", &["{}", "[5:6]={1,NULL}", "{{1,2},{3,4}}"]),
    ("text[]", &["{\"a,\\\"b\",NULL,\"NULL\",\"\"}"]),
    ("numeric[]", &["{NaN,1.50}"]),
    ("timestamptz[]", &["{infinity,\"2020-01-01 00:00:00+00\"}"]),
    ("int4range[]", &["{\"[1,3)\",empty}"]),
    ("int4range", &["empty", "(,)", "[1,2)"]),
    ("numrange", &["[1.5,2.50]"]),
    ("tstzrange", &["(-infinity,infinity)"]),
    ("int4multirange", &["{}", "{[1,2),[5,)}"]),
    ("mood", &["sad", "o'k"]),
    ("domain_of_mood", &["sad"]),
    ("domain_of_domain", &["7"]),
    ("pair", &["(1,\"a\"\"b\")", "(,)"]),
    ("moodrange", &["[sad,\"o'k\"]"]),
    ("domain_of_array", &["{1,2}"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_each_binary_type_comes_back_from_15_to_15_and_to_18() {
    let (old, new) = (
        PostgresServer::shared(PgMajor::V15),
        PostgresServer::shared(PgMajor::V18),
    );
    let source = old.create_database("types").unwrap();
    let mut sql = String::from(
        "CREATE TYPE mood AS ENUM ('sad', 'o''k'); CREATE DOMAIN domain_of_mood AS mood; CREATE DOMAIN inner_domain AS int CHECK (VALUE > 0);
         CREATE DOMAIN domain_of_domain AS inner_domain; CREATE DOMAIN domain_of_array AS int[];
         CREATE TYPE pair AS (a int, b text); CREATE TYPE moodrange AS RANGE (subtype = mood);",
    );
    for (number, (name, values)) in VALUES.iter().enumerate() {
        sql.push_str(&format!("CREATE TABLE t{number} (v {name});"));
        sql.push_str(&format!("INSERT INTO t{number} VALUES (NULL);"));
        for value in *values {
            sql.push_str(&format!(
                "INSERT INTO t{number} VALUES ('{}');",
                value.replace('\'', "''")
            ));
        }
    }
    source.psql(&sql).unwrap();
    let engine = engine_of_both();
    let (backup, report) = back_up(&engine, &source.url()).await;
    for (number, (name, _)) in VALUES.iter().enumerate() {
        let object = report
            .objects
            .iter()
            .find(|object| object.name == format!("public.t{number}"));
        assert_eq!(object.unwrap().format.as_deref(), Some("binary"), "{name}");
    }
    for server in [old, new] {
        let copy = server.create_database("types_copy").unwrap();
        let restored = restore(&engine, &backup, &report, &copy.url()).await;
        assert_eq!(restored.failed_statements, Vec::<String>::new());
        let facts = engine
            .facts(&Attempt::new().context, &target(&copy.url()), &report)
            .await
            .unwrap();
        assert_eq!(mismatches(&report.objects, &facts), Vec::<String>::new());
        for (number, (name, _)) in VALUES.iter().enumerate() {
            let query = format!(
                "SET extra_float_digits = 3; SELECT v::text, v IS NULL FROM t{number} ORDER BY ctid"
            );
            assert_eq!(
                source.psql(&query).unwrap(),
                copy.psql(&query).unwrap(),
                "{name}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_with_numbers_of_other_objects_inside_are_copied_as_text() {
    let source = PostgresServer::shared(PgMajor::V15)
        .create_database("as_text")
        .unwrap();
    let names = [
        "int2vector",
        "oidvector",
        "regclass",
        "regproc",
        "regtype",
        "regclass[]",
        "mood[]",
        "pair[]",
        "inner_domain[]",
        "nested",
        "domain_of_moods",
        "xml",
        "aclitem",
        "hstore",
    ];
    let mut sql = String::from(
        "CREATE EXTENSION hstore; CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN inner_domain AS int; CREATE DOMAIN domain_of_moods AS mood[];
         CREATE TYPE pair AS (a int, b text); CREATE TYPE nested AS (a pair, m mood);",
    );
    for (number, name) in names.iter().enumerate() {
        sql.push_str(&format!("CREATE TABLE t{number} (v {name});"));
    }
    source.psql(&sql).unwrap();
    let (_, report) = back_up(&engine_of_both(), &source.url()).await;
    for (number, name) in names.iter().enumerate() {
        let object = report
            .objects
            .iter()
            .find(|object| object.name == format!("public.t{number}"));
        assert_eq!(object.unwrap().format.as_deref(), Some("text"), "{name}");
    }
}
