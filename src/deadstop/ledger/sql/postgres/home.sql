-- What only Postgres needs. The first number of an advisory lock says what it is for: see postgres.py.

-- name: lock_run
-- Writers of one run take turns; those of different runs don't meet.
SELECT pg_advisory_xact_lock(1684370001, hashtext(:run));

-- name: announce
-- With the commit. A payload holds less than 8000 bytes; an empty one says: read the open intents.
SELECT pg_notify('deadstop', CASE WHEN octet_length(:told) < 7900 THEN :told ELSE '' END);

-- name: hint
-- Nothing is lost if it is: so its commit waits for no disk.
SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, :told);

-- name: listen
SELECT pg_advisory_lock_shared(1684370004, hashtext(:owner)), set_config('tcp_keepalives_idle', '3', false),
    set_config('tcp_keepalives_interval', '1', false), set_config('tcp_keepalives_count', '2', false);

-- name: present
-- Which of those processes have a session that listens. One that came before the server's last start says nothing yet.
SELECT o.owner,
    EXISTS (
        SELECT 1 FROM pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.classid = 1684370004 AND l.objsubid = 2 AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.objid = (hashtext(o.owner)::bigint & 4294967295)::oid) AS listens,
    clock_timestamp() < pg_postmaster_start_time() + make_interval(secs => :grace) AS restarted
FROM unnest(:owners::text[]) AS o(owner);

-- name: take_claim
INSERT INTO deadstop_claims (run, token, holder, expires_at)
VALUES (:run, :token, :holder, clock_timestamp() + make_interval(secs => :lease))
ON CONFLICT (run) DO UPDATE SET token = excluded.token, holder = excluded.holder, expires_at = excluded.expires_at
WHERE deadstop_claims.expires_at <= clock_timestamp()
RETURNING run;

-- name: renew_claims
UPDATE deadstop_claims SET expires_at = clock_timestamp() + make_interval(secs => :lease)
WHERE token = ANY(:tokens) AND expires_at > clock_timestamp() RETURNING token;

-- name: release_claims
DELETE FROM deadstop_claims WHERE token = ANY(:tokens);

-- name: sweep_claims
DELETE FROM deadstop_claims WHERE expires_at < clock_timestamp() - make_interval(secs => 3600);

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

-- name: set_bounds
SELECT set_config('lock_timeout', :wait, false), set_config('statement_timeout', :wait, false),
    set_config('idle_in_transaction_session_timeout', :pause, false);

-- name: take_off
INSERT INTO deadstop_flights (base_url, kind, ids, token, owner, until)
VALUES (:base_url, :kind, :ids, :token, :owner, extract(epoch FROM clock_timestamp()) + :lasts)
ON CONFLICT (base_url, kind, ids) DO UPDATE SET token = excluded.token, owner = excluded.owner, until = excluded.until
WHERE deadstop_flights.until <= extract(epoch FROM clock_timestamp()) OR deadstop_flights.token = excluded.token;

-- name: aloft
SELECT token FROM deadstop_flights
WHERE base_url = :base_url AND kind = :kind AND ids = :ids AND until > extract(epoch FROM clock_timestamp());
