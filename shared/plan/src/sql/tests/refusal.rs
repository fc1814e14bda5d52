//! What is refused: the text, then the place and the message.

use super::{check, condition, view};

/// Whole statements.
const STATEMENTS: &[(&str, &str)] = &[
    ("SELEC 1", "1:1: expected an SQL statement, found SELEC"),
    (
        "CREATE VIEW v AS SELECT count(*) AS n FROM tweets",
        "1:37: what a view reads are plain rows; leave the aggregate `n` out here, and aggregate in the view that reads them",
    ),
    (
        "CREATE VIEW v WITH (batch = '0 * * * *') AS SELECT user_id FROM tweets",
        "1:13: nothing is kept or sent of a plain view, so it takes no options; write CREATE MATERIALIZED VIEW",
    ),
    ("CREATE VIEW v AS SELECT id FROM v", "1:13: view `v` reads itself, or what reads it"),
    (
        "CREATE VIEW a AS SELECT user_id FROM tweets; CREATE VIEW a AS SELECT user_id FROM tweets",
        "1:58: view `a` is defined twice",
    ),
    (
        "DROP TABLE tweets",
        "1:1: unsupported statement; a project holds CREATE TABLE, CREATE VIEW and CREATE MATERIALIZED VIEW statements",
    ),
    (
        "CREATE OR REPLACE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets",
        "1:1: unsupported clause; a view is CREATE MATERIALIZED VIEW name [WITH (…)] AS SELECT …",
    ),
    ("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM", "1:56: expected identifier, found the end"),
    ("CREATE MATERIALIZED VIEW v AS SELECT 'abc", "1:38: unterminated string literal"),
    (
        "CREATE MATERIALIZED VIEW a.b AS SELECT count(*) AS n FROM tweets",
        "1:26: `a.b`: names have one part; there are no schemas",
    ),
    (
        r#"CREATE MATERIALIZED VIEW "a/b" AS SELECT count(*) AS n FROM tweets"#,
        "1:26: `a/b`: a table's or view's name is a letter and up to 127 letters, digits and underscores",
    ),
    (
        "CREATE MATERIALIZED VIEW tweets AS SELECT count(*) AS n FROM tweets",
        "1:26: `tweets` is a table; a view needs a name of its own",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (allowed_latenes = '1 minute') AS SELECT count(*) AS n FROM tweets",
        "1:34: unknown option `allowed_latenes`; there are `allowed_lateness`, `late`, `late_topic`, `batch`, `schedule_zone`, `catch_up`, `max_rows`, `memory`, `sink`, `topic`, `delivery`, `partition_by`, `emit`; did you mean `allowed_lateness`?",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (allowed_lateness = '1') AS SELECT count(*) AS n FROM tweets",
        "1:53: `1` isn't a duration; write a whole number and a unit, such as `10 seconds`",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (allowed_lateness = '1 s', allowed_lateness = '2 s') AS SELECT count(*) AS n FROM tweets",
        "1:60: option `allowed_lateness` is given twice",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late = 'reject') AS SELECT count(*) AS n FROM tweets",
        "1:41: late = `reject`: late events go to `rejects`, to a `topic`, or are `discard`ed",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late = 'rejects') AS SELECT count(*) AS n FROM tweets",
        "1:41: `v` has no windows that an event could be late for; leave `late` out",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late = 'topic') AS SELECT count(*) AS n FROM tweets",
        "1:41: late = 'topic' needs to know which; add late_topic = 'name'",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late = 'rejects', late_topic = 'u') AS SELECT count(*) AS n FROM tweets",
        "1:65: option `late_topic` goes with late = 'topic'",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late_topic = 'u') AS SELECT count(*) AS n FROM tweets",
        "1:47: option `late_topic` goes with late = 'topic'",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late = 'topic', late_topic = 'tweets') AS SELECT window_start, window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY window_start, window_end",
        "1:63: what `v` writes would come back into topic `tweets`, which it reads, and go round for ever; choose another topic",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (late = 'topic', late_topic = 'clicks.big') AS SELECT window_start, window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY window_start, window_end",
        "1:63: views `big` and `v` would both write topic `clicks.big`; a topic's records come from one view",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (batch = 'every day') AS SELECT count(*) AS n FROM tweets",
        "1:42: `every day` has 2 fields; a schedule has five: minute, hour, day, month and weekday, such as `*/15 * * * *`",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (batch = '0 0 31 4 *') AS SELECT count(*) AS n FROM tweets",
        "1:42: `0 0 31 4 *` never comes true",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (batch = '0 3 * * *', schedule_zone = 'Europe/Pariss') AS SELECT count(*) AS n FROM tweets",
        "1:71: unknown time zone `Europe/Pariss`; names are those of the IANA database; did you mean `Europe/Paris`?",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (batch = '0 3 * * *', catch_up = 'never') AS SELECT count(*) AS n FROM tweets",
        "1:66: catch_up = `never`: there are `last`, `all` and `none`",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (schedule_zone = 'Europe/Paris') AS SELECT count(*) AS n FROM tweets",
        "1:50: option `schedule_zone` goes with batch = 'cron expression', which says when to recompute",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (topic = 'u') AS SELECT count(*) AS n FROM tweets",
        "1:42: option `topic` goes with a sink; add sink = 'kafka', or leave it out",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (batch = true) AS SELECT count(*) AS n FROM tweets",
        "1:42: option `batch` takes a text in single quotes or a number, not `true`",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (max_rows = 0) AS SELECT count(*) AS n FROM tweets",
        "1:45: `0`: option `max_rows` is a whole number from 1 to 4294967295",
    ),
    (
        "CREATE MATERIALIZED VIEW v WITH (batch) AS SELECT count(*) AS n FROM tweets",
        "1:34: `batch`: options are written as name = 'value'",
    ),
    (
        "CREATE TABLE t (a TEXT)",
        "1:14: table `t` needs WITH (event_time = 'column'), the time at which an event happened",
    ),
    ("CREATE TABLE t (a TEXT) WITH (event_time = 'b')", "1:44: unknown column `b`; table `t` has `a`"),
    ("CREATE TABLE t (a TEXT) WITH (event_time = 'a')", "1:44: event_time must be a TIMESTAMP column; `a` is TEXT"),
    ("CREATE TABLE t (a TIMESTAMP, a TEXT) WITH (event_time = 'a')", "1:30: column `a` is defined twice"),
    (
        "CREATE TABLE t (a TIMESTAMP, \"A\" TEXT) WITH (event_time = 'a')",
        "1:30: columns `a` and `A` differ in case only, and Delta Lake's tables take them for one; choose another name",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, \"_Offset\" TEXT) WITH (event_time = 'a')",
        "1:30: `_Offset`: the archive has a column of its own with that name; choose another",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, _day TEXT) WITH (event_time = 'a')",
        "1:30: `_day`: the archive has a column of its own with that name; choose another",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, sum(likes) AS \"N\" FROM tweets",
        "1:67: columns `n` and `N` differ in case only, and Delta Lake's tables take them for one; name one with AS",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS \"Window_Start\" FROM tweets",
        "1:50: `Window_Start` is the name of a window's bound; choose another",
    ),
    (
        "CREATE TABLE t (a DATE) WITH (event_time = 'a')",
        "1:19: unsupported type `DATE`; the types are TEXT, BIGINT, DOUBLE, BOOLEAN, TIMESTAMP and JSON",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP(3)) WITH (event_time = 'a')",
        "1:19: unsupported type `TIMESTAMP(3)`; the types are TEXT, BIGINT, DOUBLE, BOOLEAN, TIMESTAMP and JSON",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b VARCHAR(20)) WITH (event_time = 'a')",
        "1:32: `VARCHAR(20)`: a text's length can't be limited; write TEXT",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b DECIMAL(10, 2)) WITH (event_time = 'a')",
        "1:32: unsupported type `DECIMAL(10,2)`; the types are TEXT, BIGINT, DOUBLE, BOOLEAN, TIMESTAMP and JSON",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP UNIQUE) WITH (event_time = 'a')",
        "1:17: column `a`: unsupported `UNIQUE`; a column is a name, a type and perhaps NOT NULL or PRIMARY KEY",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT REFERENCES u (b)) WITH (event_time = 'a')",
        "1:30: column `b`: unsupported `REFERENCES u (b)`; a column is a name, a type and perhaps NOT NULL or PRIMARY KEY",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY DEFERRABLE) WITH (event_time = 'a')",
        "1:30: column `b`: unsupported `PRIMARY KEY DEFERRABLE`; a column is a name, a type and perhaps NOT NULL or PRIMARY KEY",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, UNIQUE (b)) WITH (event_time = 'a')",
        "1:1: unsupported clause; a table is CREATE TABLE name (column TYPE [NOT NULL], …[, PRIMARY KEY (column, …)]) WITH (…)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, FOREIGN KEY (b) REFERENCES u (b)) WITH (event_time = 'a')",
        "1:1: unsupported clause; a table is CREATE TABLE name (column TYPE [NOT NULL], …[, PRIMARY KEY (column, …)]) WITH (…)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, CONSTRAINT k PRIMARY KEY (b)) WITH (event_time = 'a')",
        "1:1: unsupported clause; a table is CREATE TABLE name (column TYPE [NOT NULL], …[, PRIMARY KEY (column, …)]) WITH (…)",
    ),
    (
        "CREATE TABLE IF NOT EXISTS t (a TIMESTAMP) WITH (event_time = 'a')",
        "1:1: unsupported clause; a table is CREATE TABLE name (column TYPE [NOT NULL], …[, PRIMARY KEY (column, …)]) WITH (…)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP PRIMARY KEY) WITH (event_time = 'a')",
        "1:17: `a` is the event time, which each version of a row has its own of; a primary key tells rows from each other",
    ),
    (
        "CREATE TABLE t (id TEXT, a TIMESTAMP,\n  PRIMARY KEY (id, a)) WITH (event_time = 'a')",
        "2:20: `a` is the event time, which each version of a row has its own of; a primary key tells rows from each other",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY, c TEXT PRIMARY KEY) WITH (event_time = 'a')",
        "1:50: table `t` has a primary key already; several columns are one key: PRIMARY KEY (a, b)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY, c TEXT, PRIMARY KEY (c)) WITH (event_time = 'a')",
        "1:71: table `t` has a primary key already; several columns are one key: PRIMARY KEY (a, b)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, user_id TEXT, PRIMARY KEY (user_di)) WITH (event_time = 'a')",
        "1:57: unknown column `user_di`; table `t` has `a`, `user_id`; did you mean `user_id`?",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, c TEXT, PRIMARY KEY (b, c, b)) WITH (event_time = 'a')",
        "1:65: column `b` is in the primary key twice",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, PRIMARY KEY (lower(b))) WITH (event_time = 'a')",
        "1:51: `lower(b)`: a primary key is of columns: PRIMARY KEY (a, b)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, PRIMARY KEY (b DESC)) WITH (event_time = 'a')",
        "1:51: `b DESC`: a primary key is of columns: PRIMARY KEY (a, b)",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b DOUBLE PRIMARY KEY) WITH (event_time = 'a')",
        "1:30: a primary key is of TEXT, BIGINT, BOOLEAN and TIMESTAMP columns; `b` is DOUBLE",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, c JSON, PRIMARY KEY (b, c)) WITH (event_time = 'a')",
        "1:62: a primary key is of TEXT, BIGINT, BOOLEAN and TIMESTAMP columns; `c` is JSON",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY, __deleted BOOLEAN) WITH (event_time = 'a')",
        "1:50: `__deleted`: names that start with two underscores are the platform's own",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY, c TEXT) WITH (event_time = 'a', partition_by = 'c')",
        "1:97: partition_by = 'c': all versions of a row are in one partition, so the primary key alone chooses it; leave the option out",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT, c TEXT, PRIMARY KEY (b, c)) WITH (event_time = 'a', partition_by = 'b')",
        "1:105: partition_by = 'b': all versions of a row are in one partition, so the primary key alone chooses it; leave the option out",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY) WITH (event_time = 'a', partitions = 2, pin = 'b IS NULL')",
        "1:96: pin = 'b IS NULL': all versions of a row are in one partition, so the primary key alone chooses it; leave the option out",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, b TEXT PRIMARY KEY) WITH (event_time = 'a', key = 'b')",
        "1:80: key = 'b': the column is filled from the log, and a primary key is the event's own",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, __b TEXT) WITH (event_time = 'a')",
        "1:30: `__b`: names that start with two underscores are the platform's own",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, window_start TEXT) WITH (event_time = 'a');
CREATE MATERIALIZED VIEW v AS SELECT window_start, count(*) AS n FROM t GROUP BY window_start",
        "2:38: `window_start` is the name of a window's bound; give it another with AS",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, window_start TEXT) WITH (event_time = 'a');
CREATE MATERIALIZED VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(t, a, INTERVAL '1 minute') GROUP BY window_end",
        "2:76: table `t` has a column `window_start`, which a bound of these windows is called; read it by another name: (SELECT window_start AS other, … FROM …) in its place",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', format = 'avro')",
        "1:63: unsupported format `avro`; there are `json` and `debezium-json`",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', topik = 'x')",
        "1:54: unknown option `topik`; there are `topic`, `format`, `event_time`, `watermark`, `max_future`, `max_past`, `partitions`, `partition_by`, `pin`, `key`, `headers`; did you mean `topic`?",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', topic = '_x')",
        "1:62: `_x` can't be a topic; its name has 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and doesn't start with `_`",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', topic = 'a b')",
        "1:62: `a b` can't be a topic; its name has 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and doesn't start with `_`",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', topic = 'tweets')",
        "1:14: tables `tweets` and `t` are both over topic `tweets`; a topic has one table",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', watermark = '5 fortnights')",
        "1:66: `5 fortnights`: unknown unit `fortnights`; the units are ms, s, min, h, d and w",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', partitions = 0)",
        "1:67: `0`: option `partitions` is a whole number from 1 to 1024",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', partition_by = 'user')",
        "1:69: unknown column `user`; table `t` has `a`",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, k BIGINT) WITH (event_time = 'a', key = 'k')",
        "1:70: key must be a TEXT column; `k` is BIGINT",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, h TEXT) WITH (event_time = 'a', headers = 'h')",
        "1:72: headers must be a JSON column; `h` is TEXT",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, k TEXT NOT NULL) WITH (event_time = 'a', key = 'k')",
        "1:77: key = 'k': a record may have none, so the column can't be NOT NULL",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, k TEXT) WITH (event_time = 'a', key = 'kay')",
        "1:68: unknown column `kay`; table `t` has `a`, `k`",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, k TEXT) WITH (event_time = 'a', key = 'k', partition_by = 'k')",
        "1:88: partition_by = 'k': the column is filled from the log; name one of the event's",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP, k TEXT) WITH (event_time = 'a', partitions = 2, key = 'k', pin = 'k = ''x''')",
        "1:95: pin = 'k = 'x'': `k` is filled from the log; only the event's own columns can be used",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', pin = 'a IS NULL')",
        "1:60: pin = 'a IS NULL': a table needs at least 2 partitions for one to be set apart",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', partitions = 2, pin = 'b = 1')",
        "1:76: pin = 'b = 1': unknown column `b`; table `t` has `a`",
    ),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = 'a', partitions = 2, pin = 'a IS NULL 1')",
        "1:76: pin = 'a IS NULL 1': one condition over the columns is expected, and nothing after it",
    ),
    ("CREATE TABLE tweets (a TIMESTAMP) WITH (event_time = 'a', topic = 'u')", "1:14: table `tweets` is defined twice"),
    (
        "CREATE TABLE t (a TIMESTAMP) WITH (event_time = a)",
        "1:49: option `event_time` takes a text in single quotes or a number, not `a`",
    ),
    ("CREATE TABLE t WITH (event_time = 'a')", "1:14: table `t` has no columns; write CREATE TABLE t (column TYPE, …)"),
];

/// Queries of a view, which start on its second line.
const QUERIES: &[(&str, &str)] = &[
    ("SELECT count(*) AS n", "2:1: the view needs FROM: a table, TUMBLE(…), HOP(…) or SESSION(…)"),
    (
        "SELECT count(*) AS n FROM tweet",
        "2:27: unknown table `tweet`; there are `changes`, `clicks`, `tweets`; did you mean `tweets`?",
    ),
    (
        "SELECT count(*) AS n FROM other",
        "2:27: `other` is a view that aggregates; a view reads tables, and views of rows",
    ),
    (
        "SELECT count(*) AS n FROM tweets, clicks",
        "2:35: tables are joined by JOIN … ON, and lists are unnested by CROSS JOIN UNNEST(…) AS t(item)",
    ),
    (
        "SELECT count(*) AS n FROM tweets JOIN clicks ON true",
        "2:49: a join needs columns of both sides that are equal: FROM a JOIN b ON b.id = a.id AND b.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '10 seconds'",
    ),
    (
        "SELECT count(*) AS n FROM (SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id) AS t",
        "2:70: what a view reads are plain rows; leave GROUP BY out here, and aggregate in the view that reads them",
    ),
    (
        "SELECT count(x) AS n FROM (SELECT text AS y FROM tweets) AS t",
        "2:14: unknown column `x`; the query in FROM has `y`",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE((SELECT date_trunc('hour', timestamp) AS at FROM tweets), at, INTERVAL '1 day') GROUP BY window_end",
        "2:104: windows are over an event time, and the query in FROM has none: no column of it comes unchanged from one",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE((SELECT timestamp AS a, timestamp AS b, created FROM tweets), created, INTERVAL '1 day') GROUP BY window_end",
        "2:108: windows are over an event time, which are `a`, `b` in the query in FROM, not `created`",
    ),
    (
        "WITH t AS (SELECT user_id AS u FROM tweets) SELECT count(v) AS n FROM t",
        "2:58: unknown column `v`; query `t` has `u`",
    ),
    (
        "WITH t AS (SELECT id FROM tweets), t AS (SELECT id FROM tweets) SELECT count(*) AS n FROM t",
        "2:36: query `t` is defined twice",
    ),
    (
        "WITH RECURSIVE t AS (SELECT id FROM t) SELECT count(*) AS n FROM t",
        "2:1: WITH RECURSIVE isn't supported; write WITH",
    ),
    (
        "WITH t (a) AS (SELECT id FROM tweets) SELECT count(*) AS n FROM t",
        "2:6: write t AS (SELECT …), and name columns with AS there",
    ),
    ("SELECT DISTINCT user_id FROM tweets", "2:8: SELECT DISTINCT isn't supported; GROUP BY the columns"),
    (
        "SELECT count(*) AS n FROM tweets UNION SELECT count(*) AS n FROM tweets",
        "2:34: UNION isn't supported; write one view for each SELECT",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id HAVING sum(likes) > 1",
        "2:67: `sum(likes)` is read but not selected; add it to the SELECT list",
    ),
    (
        "SELECT count(*) AS n FROM tweets HAVING window_start > '2024-01-15'",
        "2:41: `window_start` needs windows, and the view has none: read FROM TUMBLE(…), HOP(…) or SESSION(…)",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY ROLLUP (user_id)",
        "2:60: GROUPING SETS, CUBE and ROLLUP aren't supported; write one view for each grouping",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY GROUPING SETS ((user_id))",
        "2:68: GROUPING SETS, CUBE and ROLLUP aren't supported; write one view for each grouping",
    ),
    ("SELECT user_id, count(*) AS n FROM tweets GROUP BY ALL", "2:43: GROUP BY ALL isn't supported; name the keys"),
    (
        "SELECT user_id, count(*) OVER (PARTITION BY user_id) AS n FROM tweets",
        "2:17: OVER isn't supported; windows are made by FROM TUMBLE(…), HOP(…) or SESSION(…)",
    ),
    (
        "SELECT user_id, lag(text) OVER (ORDER BY timestamp) AS n FROM tweets GROUP BY user_id",
        "2:17: LAG belongs to plain rows; write it in FROM (SELECT …, LAG(x) OVER (PARTITION BY k ORDER BY ts) AS previous FROM t) AS t",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY n OFFSET 5",
        "2:71: OFFSET and LIMIT … BY aren't supported; a view keeps the first rows of each window: LIMIT k",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY n FETCH FIRST 5 ROWS ONLY",
        "2:71: FETCH isn't supported; write LIMIT",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id LIMIT 5",
        "2:66: LIMIT needs ORDER BY, or which rows are kept would be chance",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY n LIMIT 0",
        "2:77: LIMIT is a whole number from 1 to 100000",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY n LIMIT 1000000",
        "2:77: LIMIT is a whole number from 1 to 100000",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY n NULLS FIRST",
        "2:69: nulls come last; NULLS FIRST and WITH FILL aren't supported",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY max(id)",
        "2:69: `max(id)` is ordered by but not selected; add it to the SELECT list",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id ORDER BY 3",
        "2:69: there is no column 3; the SELECT list has 2",
    ),
    ("SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id FOR UPDATE", "2:60: FOR isn't supported"),
    ("SELECT * FROM tweets", "2:8: * is for plain rows; name the columns"),
    (
        "SELECT timestamp - created AS age, count(*) AS n FROM tweets GROUP BY age",
        "2:31: `age` is an INTERVAL, which is for conditions; select the timestamps instead",
    ),
    (
        "SELECT user_id FROM tweets",
        "2:8: the view has neither GROUP BY nor an aggregate; plain rows are written to a topic: WITH (sink = 'kafka', topic = '…')",
    ),
    ("SELECT user_id, count(*) FROM tweets GROUP BY user_id", "2:17: give `count(*)` a name with AS"),
    ("SELECT lower(user_id), count(*) AS n FROM tweets GROUP BY 1", "2:8: give `lower(user_id)` a name with AS"),
    (
        "SELECT user_id, text, count(*) AS n FROM tweets GROUP BY user_id",
        "2:17: `text` is neither an aggregate nor grouped by; add it to GROUP BY",
    ),
    (
        "SELECT count(*) AS n FROM tweets GROUP BY user_id",
        "2:43: `user_id` is grouped by but not selected; add it to the SELECT list",
    ),
    (
        "SELECT user_id, count(*) AS user_id FROM tweets GROUP BY user_id",
        "2:29: two columns are called `user_id`; name one with AS",
    ),
    (
        "SELECT user_id AS n_lower, count(*) AS n FROM tweets GROUP BY user_id",
        "2:19: `n_lower` is the name of a bound of `n`; choose another",
    ),
    (
        "SELECT user_id AS __u, count(*) AS n FROM tweets GROUP BY user_id",
        "2:19: `__u`: names that start with two underscores are the platform's own",
    ),
    (
        "SELECT user_id AS window_end, count(*) AS n FROM tweets GROUP BY user_id",
        "2:19: `window_end` is the name of a window's bound; choose another",
    ),
    ("SELECT user_id, count(*) AS n FROM tweets GROUP BY n", "2:52: `n` is an aggregate; it can't be grouped by"),
    ("SELECT user_id, count(*) AS n FROM tweets GROUP BY 7", "2:52: there is no column 7; the SELECT list has 2"),
    (
        "SELECT lower(text) AS text, count(*) AS n FROM tweets GROUP BY text",
        "2:64: `text` is a column of the table and another column's alias; call the alias something else",
    ),
    (
        "SELECT payload, count(*) AS n FROM tweets GROUP BY payload",
        "2:52: JSON can't be a key; read a part of it with ->> 'key'",
    ),
    (
        "SELECT 'x' AS source, count(*) AS n FROM tweets GROUP BY source",
        "2:58: `source` is the same for every row; a key reads a column",
    ),
    (
        "SELECT window_start, count(*) AS n FROM tweets GROUP BY window_start",
        "2:8: `window_start` needs windows: read FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute'), HOP(…) or SESSION(…)",
    ),
    (
        "SELECT user_id, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY user_id",
        "2:92: a view over windows must GROUP BY window_start, window_end",
    ),
    (
        "SELECT window_start AS w, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY window_start",
        "2:24: `window_start` keeps its name; leave AS out",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') WHERE window_start > '2017-01-01' GROUP BY window_end",
        "2:92: `window_start` can only be selected and grouped by as it is; filter on `timestamp`",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY window_end ORDER BY window_end",
        "2:115: rows are ordered within their window; order by keys and aggregates",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, created, INTERVAL '1 minute') GROUP BY window_end",
        "2:54: windows are over the event time, which is `timestamp` in table `tweets`, not `created`",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, INTERVAL '1 minute') GROUP BY window_end",
        "2:39: write TUMBLE(table, event_time, INTERVAL '1 minute'), and after it perhaps an offset or, of days, a time zone",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '0 minutes') GROUP BY window_end",
        "2:74: `INTERVAL '0 minutes'`: a window's interval must be longer than no time",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '-1 minute') GROUP BY window_end",
        "2:74: `-1 minute` isn't a duration; write a whole number and a unit, such as `10 seconds`",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 month') GROUP BY window_end",
        "2:74: `1 month`: months and years have no fixed length; give days",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '10 microseconds') GROUP BY window_end",
        "2:74: `10 microseconds`: unknown unit `microseconds`; the units are ms, s, min, h, d and w",
    ),
    (
        "SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, '1 minute') GROUP BY window_end",
        "2:65: `'1 minute'` isn't an interval; write INTERVAL '1 minute'",
    ),
    (
        "SELECT window_end, count(*) AS n FROM HOP(tweets, timestamp, INTERVAL '5 minutes', INTERVAL '1 minute') GROUP BY window_end",
        "2:71: the slide is longer than the window, so events between windows would be lost; HOP takes the slide before the size",
    ),
    (
        "SELECT window_end, count(*) AS n FROM HOP(tweets, timestamp, INTERVAL '1 millisecond', INTERVAL '1 day') GROUP BY window_end",
        "2:71: the window would be made of more than 100000 panes; choose a longer slide that divides the size",
    ),
    (
        "SELECT window_end, count(*) AS n FROM SESSION(tweets, timestamp, INTERVAL '5 minutes') GROUP BY window_end ORDER BY n LIMIT 3",
        "2:119: LIMIT keeps the first rows of each window, and sessions are windows of one key each; leave it out",
    ),
    (
        "SELECT window_end, count(*) AS n FROM FOO(tweets) GROUP BY window_end",
        "2:39: unknown table function `foo`; there are TUMBLE, HOP and SESSION",
    ),
    (
        "SELECT h, count(*) AS n FROM tweets CROSS JOIN UNNEST(string_split(text, ' ')) AS h GROUP BY h",
        "2:55: name the items of the list: CROSS JOIN UNNEST(…) AS t(item)",
    ),
    (
        "SELECT w, count(*) AS n FROM tweets CROSS JOIN UNNEST(text) AS h(w) GROUP BY w",
        "2:55: UNNEST takes a list, as regexp_extract_all and string_split make, not TEXT",
    ),
    (
        "SELECT text, count(*) AS n FROM tweets CROSS JOIN UNNEST(string_split(text, ' ')) AS h(text) GROUP BY text",
        "2:88: the table has a column `text` already; choose another name for the items",
    ),
    (
        "SELECT w, count(*) AS n FROM tweets CROSS JOIN UNNEST(string_split(text, ' ')) AS h(w) CROSS JOIN UNNEST(string_split(text, ',')) AS i(x) GROUP BY w",
        "2:106: a view unnests at most one list",
    ),
    (
        "SELECT w, count(*) AS n FROM tweets LEFT JOIN UNNEST(string_split(text, ' ')) AS h(w) ON true GROUP BY w",
        "2:54: write CROSS JOIN UNNEST(…) AS t(item)",
    ),
    (
        "SELECT string_split(text, ' ') AS w, count(*) AS n FROM tweets GROUP BY w",
        "2:8: a list can only be read by CROSS JOIN UNNEST(…) AS t(item)",
    ),
    (
        "SELECT user_id, sum(DISTINCT likes) AS n FROM tweets GROUP BY user_id",
        "2:17: sum(DISTINCT …) isn't supported; there is sum(…)",
    ),
    (
        "SELECT user_id, sum(text) AS n FROM tweets GROUP BY user_id",
        "2:21: sum takes a number, not TEXT; write CAST(x AS DOUBLE)",
    ),
    ("SELECT user_id, sum(*) AS n FROM tweets GROUP BY user_id", "2:17: sum takes one value: sum(x)"),
    (
        "SELECT user_id, max(payload) AS n FROM tweets GROUP BY user_id",
        "2:21: max takes a number, a text or a timestamp, not JSON",
    ),
    (
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id HAVING text = 'x'",
        "2:67: unknown column `text`; the SELECT list has `user_id`, `n`",
    ),
    (
        "SELECT user_id, approx_percentile(likes, 95) AS p FROM tweets GROUP BY user_id",
        "2:42: `95`: the share is a constant from 0 to 1, such as 0.95",
    ),
    (
        "SELECT user_id, arg_max(text) AS p FROM tweets GROUP BY user_id",
        "2:17: arg_max takes a value and where it is: arg_max(x, by)",
    ),
    (
        "SELECT user_id, count(DISTINCT payload) AS n FROM tweets GROUP BY user_id",
        "2:32: count doesn't take JSON; read a part of it with ->> 'key'",
    ),
    (
        "SELECT user_id, sum(likes) / count(*) AS n FROM tweets GROUP BY user_id",
        "2:17: aggregate `sum` can't stand here; each is a column of its own in the SELECT list, as sum(…) AS name",
    ),
    (
        "SELECT user_id, sum(count(*)) AS n FROM tweets GROUP BY user_id",
        "2:21: aggregate `count` can't stand here; each is a column of its own in the SELECT list, as count(…) AS name",
    ),
    (
        "SELECT user_id, rare_words(text) AS n FROM tweets GROUP BY user_id",
        "2:17: unknown function `rare_words`; the aggregates are count, sum, avg, min, max, var_samp, var_pop, stddev_samp, stddev_pop, arg_min, arg_max, approx_count_distinct, approx_percentile, the functions lower, upper, trim, length, substring, replace, starts_with, ends_with, contains, regexp_matches, regexp_extract, regexp_extract_all, regexp_replace, string_split, json_extract_string, coalesce, nullif, abs, round, floor, ceil, date_trunc, extract",
    ),
    (
        "SELECT user_id, count(*) FILTER (WHERE likes) AS n FROM tweets GROUP BY user_id",
        "2:40: FILTER takes a condition, a BOOLEAN, not BIGINT",
    ),
    (
        "SELECT lower(user_id) FILTER (WHERE true) AS u, count(*) AS n FROM tweets GROUP BY u",
        "2:8: FILTER belongs to an aggregate; `lower` isn't one",
    ),
];

/// Conditions of a WHERE, which start on the third line.
const CONDITIONS: &[(&str, &str)] = &[
    (
        "usr_id = 'x'",
        "3:1: unknown column `usr_id`; table `tweets` has `id`, `user_id`, `text`, `likes`, `score`, `retweeted`, `payload`, `created`, `timestamp`; did you mean `user_id`?",
    ),
    ("x.user_id = 'x'", "3:1: unknown table `x`; this view reads `tweets`"),
    (
        r#""User_id" = 'x'"#,
        "3:1: unknown column `User_id`; table `tweets` has `id`, `user_id`, `text`, `likes`, `score`, `retweeted`, `payload`, `created`, `timestamp`; did you mean `user_id`?",
    ),
    ("likes", "3:1: WHERE takes a condition, a BOOLEAN, not BIGINT"),
    (
        "count(*) > 1",
        "3:1: aggregate `count` can't stand here; each is a column of its own in the SELECT list, as count(…) AS name",
    ),
    ("likes = 'many'", "3:9: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    ("likes = text", "3:9: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    ("likes + text > 1", "3:9: + takes a number, not TEXT; write CAST(x AS DOUBLE)"),
    ("NOT likes", "3:5: NOT takes BOOLEAN, not BIGINT; write a comparison"),
    ("user_id AND retweeted", "3:1: AND takes BOOLEAN, not TEXT; write a comparison"),
    ("likes || 'x' = 'y'", "3:1: || takes TEXT, not BIGINT; write CAST(x AS TEXT)"),
    ("payload = 'x'", "3:1: JSON can't stand beside TEXT; read a part of it with ->> 'key'"),
    ("retweeted < true", "3:1: BOOLEAN has no order; compare with = or <>"),
    (
        "timestamp > 'yesterday'",
        "3:13: `yesterday` isn't a timestamp; write '2024-01-15T10:30:00Z' or '2024-01-15 10:30:00'",
    ),
    (
        "timestamp > TIMESTAMP 'yesterday'",
        "3:23: `yesterday` isn't a timestamp; write '2024-01-15T10:30:00Z' or '2024-01-15 10:30:00'",
    ),
    ("timestamp > 5", "3:13: BIGINT can't stand beside TIMESTAMP"),
    (
        "likes > 99999999999999999999",
        "3:9: 99999999999999999999 is beyond BIGINT; write 99999999999999999999.0 for a DOUBLE",
    ),
    ("lower(likes) = 'x'", "3:7: lower takes TEXT, not BIGINT; write CAST(x AS TEXT)"),
    ("lower(user_id, text) = 'x'", "3:1: `lower` is lower(text); it was given 2 arguments"),
    ("lowr(user_id) = 'x'", "3:1: unknown function `lowr`; did you mean `lower`?"),
    (
        "levenshtein(user_id, text) > 1",
        "3:1: unknown function `levenshtein`; the aggregates are count, sum, avg, min, max, var_samp, var_pop, stddev_samp, stddev_pop, arg_min, arg_max, approx_count_distinct, approx_percentile, the functions lower, upper, trim, length, substring, replace, starts_with, ends_with, contains, regexp_matches, regexp_extract, regexp_extract_all, regexp_replace, string_split, json_extract_string, coalesce, nullif, abs, round, floor, ceil, date_trunc, extract",
    ),
    ("regexp_matches(text, '[a-')", "3:22: bad regular expression `[a-`: unclosed character class"),
    ("regexp_matches(text, user_id)", "3:22: a regular expression must be a constant text"),
    ("regexp_matches(text, 'a', 'i')", "3:27: `regexp_matches` has no flags; write (?i) at the start of the pattern"),
    ("regexp_extract(text, '(a)(b)', 3) = 'x'", "3:22: regular expression `(a)(b)` has 2 groups; there is no group 3"),
    (r#"regexp_replace(text, 'a', '\1') = 'x'"#, r#"3:27: `\1`: the regular expression `a` has no group 1"#),
    (
        "likes > 9223372036854775807 + 1",
        "3:9: `9223372036854775807 + 1` is beyond BIGINT; write one of its numbers as a DOUBLE, such as 60.0",
    ),
    ("text LIKE user_id", "3:11: the pattern of LIKE must be a constant text"),
    (r#"text LIKE 'a\'"#, r#"3:11: LIKE pattern `a\` ends in an escape; write `\\` for a backslash"#),
    ("text LIKE 'a!%' ESCAPE '!'", r#"3:24: LIKE … ESCAPE isn't supported; the escape is `\`"#),
    ("text SIMILAR TO 'a'", "3:1: unsupported match; write regexp_matches(text, 'pattern')"),
    ("text ~ 'a'", "3:1: unsupported operator `~`; write regexp_matches(text, 'pattern')"),
    ("text IN (SELECT text FROM tweets)", "3:1: IN takes a list of values: x IN (1, 2, 3)"),
    ("likes IN (1, 'two')", "3:14: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    ("CASE WHEN likes THEN 1 ELSE 2 END = 1", "3:11: WHEN takes a condition, a BOOLEAN, not BIGINT"),
    ("CASE likes WHEN 'x' THEN 1 END = 1", "3:17: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    ("CASE WHEN retweeted THEN 1 ELSE 'x' END = 1", "3:33: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    ("coalesce(likes, text) = 1", "3:17: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    (
        "CAST(payload AS BIGINT) = 1",
        "3:6: JSON can't be cast to BIGINT; read a part of it as text with ->> 'key' first",
    ),
    (
        "CAST(timestamp AS TEXT) = 'x'",
        "3:6: TIMESTAMP can't be cast to TEXT; read a part of it with extract(hour FROM x), or round it with date_trunc('hour', x)",
    ),
    (
        "CAST(likes AS DATE) = 'x'",
        "3:6: unsupported type `DATE`; the types are TEXT, BIGINT, DOUBLE, BOOLEAN, TIMESTAMP and JSON",
    ),
    ("likes::boolean", "3:1: BIGINT can't be cast to BOOLEAN; write x <> 0"),
    ("payload -> 'a' = 'x'", "3:1: `->` gives JSON, which nothing takes; read a text with ->> 'key' or ->> '$.a.b'"),
    (
        "payload ->> '$.a[*]' = 'x'",
        "3:13: bad JSON path `$.a[*]`; write a key, or a path such as `$.a.b[0]` or `$['a-b']`",
    ),
    ("payload ->> text = 'x'", "3:13: a JSON path is a constant: a key, an index from 0, or a path such as '$.a.b[0]'"),
    ("text ->> 'a' = 'x'", "3:1: ->> takes JSON, not TEXT; write CAST(x AS JSON)"),
    ("substring(text, 0) = 'x'", "3:17: where the substring starts must be a constant whole number, 1 or more"),
    ("substring(text, likes) = 'x'", "3:17: where the substring starts must be a constant whole number, 1 or more"),
    ("string_split(text, '') IS NULL", "3:20: the separator can't be empty"),
    ("trim(LEADING 'x' FROM text) = 'x'", "3:14: trim(text) takes white space off both ends; there are no other forms"),
    (
        "concat(text, user_id) = 'x'",
        "3:1: unsupported function `concat`; write a || b, and coalesce(x, '') for what may be null",
    ),
    (
        "timestamp > now()",
        "3:13: `now` isn't supported: a view depends on its events alone, so that it can be computed again",
    ),
    (
        "timestamp > current_timestamp",
        "3:13: `current_timestamp` isn't supported: a view depends on its events alone, so that it can be computed again",
    ),
    ("timestamp + 3600 > '2017-01-01'", "3:1: a timestamp and a number can't be added; write + INTERVAL '5 seconds'"),
    (
        "timestamp + created > '2017-01-01'",
        "3:1: TIMESTAMP and TIMESTAMP: an INTERVAL is added to a TIMESTAMP or taken from it, and two TIMESTAMPs differ by an INTERVAL",
    ),
    ("timestamp - created > 5", "3:23: BIGINT can't stand beside INTERVAL"),
    ("timestamp > created + INTERVAL '1 month'", "3:32: `1 month`: months and years have no fixed length; give days"),
    (
        "date_trunc('week', timestamp) = '2017-01-01'",
        "3:12: unsupported unit `week`; the units are second, minute, hour, day, month and year",
    ),
    (
        "extract(dow FROM timestamp) = 1",
        "3:18: unsupported unit `DOW`; the units are second, minute, hour, day, month and year",
    ),
    ("round(likes, 2) = 1", "3:1: `round` is round(number); it was given 2 arguments"),
    ("abs(text) = 1", "3:5: abs takes a number, not TEXT; write CAST(x AS DOUBLE)"),
    ("- text = 1", "3:3: - takes a number, not TEXT; write CAST(x AS DOUBLE)"),
    ("likes = $1", "3:9: `$1`: constants are numbers, 'texts', TRUE, FALSE, NULL and TIMESTAMP '…'"),
    ("likes BETWEEN 'a' AND 3", "3:15: TEXT can't stand beside BIGINT; write CAST(x AS BIGINT)"),
    ("EXISTS (SELECT 1)", "3:9: subqueries aren't supported"),
    ("likes & 1 = 1", "3:1: unsupported operator `&`"),
    ("text IS DISTINCT FROM 'x'", "3:1: unsupported expression `text IS DISTINCT FROM 'x'`"),
    ("timestamp AT TIME ZONE 'UTC' > '2017-01-01'", "3:1: AT TIME ZONE isn't supported; times are UTC"),
    ("likes = ARRAY[1]", "3:15: unsupported expression `ARRAY[1]`"),
    ("tweets.likes.x = 1", "3:1: `tweets.likes.x`: write table.column"),
    ("h.likes = 1", "3:1: unknown table `h`; this view reads `tweets`"),
];

/// Options of a view with plain rows, which is on the second line.
const SINKS: &[(&str, &str)] = &[
    ("sink = 'files'", "1:41: unsupported sink `files`; there is `kafka`"),
    (
        "sink = 'kafka', delivery = 'exactly_onec'",
        "1:61: unknown delivery `exactly_onec`; there are `exactly_once`, `at_least_once`, `at_most_once`; did you mean `exactly_once`?",
    ),
    (
        "sink = 'kafka', topic = 'a/b'",
        "1:58: `a/b` can't be a topic; its name has 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and doesn't start with `_`",
    ),
    ("sink = 'kafka', partition_by = 'text'", "1:65: unknown column `text`; the view selects `user_id`, `who`"),
    (
        "sink = 'kafka', batch = '0 * * * *'",
        "1:58: option `batch` doesn't go with a sink: rows are written as they come, and none is kept or computed again",
    ),
    (
        "sink = 'kafka', topic = 'tweets'",
        "1:58: what `v` writes would come back into topic `tweets`, which it reads, and go round for ever; choose another topic",
    ),
    (
        "sink = 'kafka', topic = 'clicks.big'",
        "1:58: views `big` and `v` would both write topic `clicks.big`; a topic's records come from one view",
    ),
    (
        "sink = 'kafka', topic = 'clicks'",
        "1:58: what `v` writes would come back into topic `tweets`, which it reads by way of `clicks`, and go round for ever; choose another topic",
    ),
    (
        "sink = 'kafka', topic = 'changes'",
        "1:58: table `changes` reads topic `changes` as changes of a database; an output writes plain JSON",
    ),
];

/// Queries of a view with a sink, which start on its second line.
const PLAIN_QUERIES: &[(&str, &str)] = &[
    (
        "SELECT user_id FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute')",
        "2:28: rows are written as they come; leave windows out, or group the rows and write what they make",
    ),
    ("SELECT user_id FROM tweets ORDER BY user_id", "2:28: rows come in the order of their events; leave ORDER BY out"),
    ("SELECT user_id FROM tweets LIMIT 5", "2:28: rows come for as long as events do; leave LIMIT out"),
    ("SELECT DISTINCT user_id FROM tweets", "2:8: SELECT DISTINCT isn't supported; GROUP BY the columns"),
    ("SELECT id, * FROM tweets", "2:12: two columns are called `id`; name one with AS"),
    ("SELECT x.* FROM tweets", "2:8: unknown table `x`"),
    (
        "SELECT id, timestamp - created AS age FROM tweets",
        "2:35: `age` is an INTERVAL, which is for conditions; select the timestamps instead",
    ),
    (
        "SELECT 'x' AS kind, 1 AS one FROM tweets",
        "2:15: the view's rows would all be the same; select a column of table `tweets`",
    ),
    ("SELECT user_id, lower(text) FROM tweets", "2:17: give `lower(text)` a name with AS"),
    ("SELECT user_id, text AS user_id FROM tweets", "2:25: two columns are called `user_id`; name one with AS"),
    (
        "SELECT string_split(text, ' ') AS w FROM tweets",
        "2:8: a list can only be read by CROSS JOIN UNNEST(…) AS t(item)",
    ),
    ("SELECT user_id FROM tweets WHERE likes", "2:34: WHERE takes a condition, a BOOLEAN, not BIGINT"),
    ("SELECT user_id FROM big", "2:8: unknown column `user_id`; view `big` has `ts`"),
    ("SELECT user_id FROM other", "2:21: `other` is a view that aggregates; a view reads tables, and views of rows"),
];

#[test]
fn a_sink_is_refused_with_its_place_and_a_way_out() {
    for (options, expected) in SINKS {
        let query = "SELECT user_id, lower(user_id) AS who FROM tweets";
        check(&format!("CREATE MATERIALIZED VIEW v WITH ({options}) AS\n{query}"), expected);
    }
}

#[test]
fn a_query_that_isnt_of_plain_rows_has_no_sink() {
    for (query, expected) in PLAIN_QUERIES {
        check(&format!("CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS\n{query}"), expected);
    }
}

/// Options of a view that counts by user, and that of one without keys.
const EMISSIONS: &[(&str, &str)] = &[
    ("sink = 'files'", "1:41: unsupported sink `files`; there is `kafka`"),
    (
        "sink = 'kafka', emit = 'finals'",
        "1:57: unknown emit `finals`; there are `changes`, `final`; did you mean `final`?",
    ),
    ("sink = 'kafka', emit = 'final'", "1:57: `v` has no windows, so no row of it is final; write emit = 'changes'"),
    (
        "sink = 'kafka', delivery = 'at_least_once'",
        "1:61: option `delivery` doesn't go with a view that aggregates: each change of a row is written once; leave it out",
    ),
    (
        "sink = 'kafka', partition_by = 'user_id'",
        "1:65: option `partition_by` doesn't go with a view that aggregates: its rows are placed by their keys; leave it out",
    ),
    (
        "sink = 'kafka', topic = 'tweets'",
        "1:58: what `v` writes would come back into topic `tweets`, which it reads, and go round for ever; choose another topic",
    ),
    (
        "sink = 'kafka', topic = 'clicks.big'",
        "1:58: views `big` and `v` would both write topic `clicks.big`; a topic's records come from one view",
    ),
    ("emit = 'changes'", "1:41: option `emit` goes with a sink; add sink = 'kafka', or leave it out"),
];

#[test]
fn rows_of_an_aggregation_are_refused_with_their_place_and_a_way_out() {
    for (options, expected) in EMISSIONS {
        let query = "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id";
        check(&format!("CREATE MATERIALIZED VIEW v WITH ({options}) AS\n{query}"), expected);
    }
    let both = "CREATE MATERIALIZED VIEW v WITH (sink = 'kafka', topic = 'x', late = 'topic', late_topic = 'x') AS
        SELECT window_end, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY window_end";
    check(both, "1:26: `v` writes its rows and its late events to topic `x`; choose another for one");
}

#[test]
fn a_view_has_one_name_whatever_it_makes() {
    check("CREATE MATERIALIZED VIEW big AS SELECT count(*) AS n FROM clicks", "1:26: view `big` is defined twice");
    check(
        "CREATE MATERIALIZED VIEW other WITH (sink = 'kafka') AS SELECT ts FROM clicks",
        "1:26: view `other` is defined twice",
    );
}

#[test]
fn a_statement_is_refused_with_its_place_and_a_way_out() {
    for (text, expected) in STATEMENTS {
        check(text, expected);
    }
}

#[test]
fn a_query_is_refused_with_its_place_and_a_way_out() {
    for (text, expected) in QUERIES {
        check(&view(text), expected);
    }
}

#[test]
fn a_condition_is_refused_with_its_place_and_a_way_out() {
    for (text, expected) in CONDITIONS {
        check(&condition(text), expected);
    }
}

/// What other systems say, and where and with which words it is refused.
const FOREIGN: [(&str, &str); 9] = [
    (
        "CREATE TABLE t (ts TIMESTAMP NOT NULL,\n  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (topic = 't')",
        "2:3: WATERMARK FOR is Flink's; write the column and the delay behind the columns: \
         WITH (event_time = 'ts', watermark = '5 seconds')",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets WINDOW TUMBLING (SIZE 5 MINUTES) GROUP BY id",
        "1:64: WINDOW TUMBLING is ksqlDB's; write FROM TUMBLE(clicks, ts, INTERVAL '5 minutes'), \
         and GROUP BY window_start, window_end",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets WINDOW HOPPING (SIZE 5 MINUTES)",
        "1:64: WINDOW HOPPING is ksqlDB's; write FROM HOP(clicks, ts, INTERVAL '1 minute', INTERVAL '5 minutes'), \
         the slide before the size, and GROUP BY window_start, window_end",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets WINDOW SESSION (30 SECONDS)",
        "1:64: WINDOW SESSION is ksqlDB's; write FROM SESSION(clicks, ts, INTERVAL '30 seconds') \
         with the key in GROUP BY window_start, window_end, key",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets EMIT CHANGES",
        "1:64: EMIT CHANGES is ksqlDB's; leave it out: every view can be followed, by GET /v1/views/{view}/stream",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM TABLE(TUMBLE(TABLE tweets, DESCRIPTOR(ts), INTERVAL '1' MINUTE))",
        "1:84: DESCRIPTOR is Flink's; name the table and its time directly: \
         FROM TUMBLE(clicks, ts, INTERVAL '5 minutes')",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT `user_id`, count(*) AS n FROM tweets GROUP BY `user_id`",
        "1:38: backticks are MySQL's and Flink's; write \"user_id\", or user_id if it is in lower case",
    ),
    (
        "CREATE TABLE t (ts TIMESTAMP, id TEXT, PRIMARY KEY (id) NOT ENFORCED) WITH (event_time = 'ts')",
        "1:57: NOT ENFORCED is Flink's; leave it out: PRIMARY KEY says which events are versions of one row",
    ),
    (
        "\u{feff}CREATE MATERIALIZED VIEW v AS SELECT `user_id` FROM tweets",
        "1:38: backticks are MySQL's and Flink's; write \"user_id\", or user_id if it is in lower case",
    ),
];

#[test]
fn what_other_systems_say_is_refused_with_the_text_to_write_instead() {
    for (text, expected) in FOREIGN {
        check(text, expected);
    }
}
