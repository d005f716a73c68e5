-- What only Postgres needs. The first number of an advisory lock says what it is for: see postgres.py.

-- name: lock_run
-- Writers of one run take turns; those of different runs don't meet.
SELECT pg_advisory_xact_lock(1684370001, hashtext(:run));

-- name: announce
-- A payload holds less than 8000 bytes; an empty one says: read the open intents.
SELECT pg_notify('deadstop', CASE WHEN octet_length(:run) < 7900 THEN :run ELSE '' END);

-- name: try_claim
SELECT pg_try_advisory_lock(1684370002, hashtext(:run)) AS won;

-- name: release_claim
SELECT pg_advisory_unlock(1684370002, hashtext(:run)) AS released;

-- name: lock_migrations
SELECT pg_advisory_xact_lock(1684370003, 0);

-- name: find_schema
-- Not by to_regclass(): a session keeps a cached "no" beyond the lock on which it waited for another's commit.
SELECT
    EXISTS (SELECT 1 FROM pg_class WHERE relname = 'deadstop_schema' AND pg_table_is_visible(oid)) AS versioned,
    EXISTS (SELECT 1 FROM pg_class WHERE relname = 'deadstop_runs' AND pg_table_is_visible(oid)) AS runs;

-- name: make_schema
CREATE TABLE deadstop_schema (version INTEGER NOT NULL);

-- name: start_schema
INSERT INTO deadstop_schema VALUES (0);

-- name: read_version
SELECT version FROM deadstop_schema;

-- name: write_version
UPDATE deadstop_schema SET version = :version;

-- name: set_bound
SELECT set_config(:name, :milliseconds, false);
