-- Processes, runs and remote runs.

-- name: enter_process
-- One that was taken for dead and shows up again is alive.
INSERT INTO deadstop_processes (owner, host, pid, address, entered_at, seen_at)
VALUES (:owner, :host, :pid, :address, :now, :now)
ON CONFLICT (owner) DO UPDATE SET
    address = excluded.address,
    seen_at = CASE WHEN excluded.seen_at > deadstop_processes.seen_at
        THEN excluded.seen_at ELSE deadstop_processes.seen_at END,
    left_at = NULL;

-- name: enter_again
-- One that was taken for dead stays so.
INSERT INTO deadstop_processes (owner, host, pid, address, entered_at, seen_at)
VALUES (:owner, :host, :pid, :address, :now, :now) ON CONFLICT (owner) DO NOTHING;

-- name: leave_process
UPDATE deadstop_processes SET left_at = :now WHERE owner = :owner AND left_at IS NULL;

-- name: left_process
SELECT owner FROM deadstop_processes WHERE owner = :owner AND left_at IS NOT NULL;

-- name: list_processes
SELECT owner, host, pid, address, entered_at, seen_at FROM deadstop_processes
WHERE left_at IS NULL ORDER BY entered_at, owner;

-- name: run_by_epoch
SELECT * FROM deadstop_runs WHERE run = :run AND epoch = :epoch;

-- name: run_of_owner
SELECT * FROM deadstop_runs WHERE run = :run AND owner = :owner AND closed_at IS NULL;

-- name: unborn_run
SELECT r.*, i.parked_until, i.actor, i.reason, i.cause, i.request_id FROM deadstop_runs AS r
JOIN deadstop_intents AS i ON i.run = r.run AND i.epoch = r.epoch
WHERE r.run = :run AND r.opened_at IS NULL AND r.closed_at IS NULL;

-- name: live_run
-- The newest life of a run that a cancel by name means: open under a process that has not left, or with remote runs.
SELECT r.* FROM deadstop_runs AS r
LEFT JOIN deadstop_processes AS p ON p.owner = r.owner
WHERE r.run = :run AND r.opened_at IS NOT NULL AND (
    (r.closed_at IS NULL AND p.left_at IS NULL)
    OR EXISTS (SELECT 1 FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch AND NOT m.terminal))
ORDER BY r.epoch DESC LIMIT 1;

-- name: last_epoch
SELECT coalesce(max(epoch), 0) AS epoch FROM deadstop_runs WHERE run = :run;

-- name: insert_run
INSERT INTO deadstop_runs (
    run, epoch, owner, host, pid, opened_at, cancellers, orphans, orphan_grace, metadata)
VALUES (:run, :epoch, :owner, :host, :pid, :opened_at, :cancellers, :orphans, :orphan_grace, :metadata);

-- name: insert_unborn
-- Cancelled before anybody opened it.
INSERT INTO deadstop_runs (run, epoch, orphans, orphan_grace) VALUES (:run, :epoch, 'leave', 0);

-- name: adopt_run
UPDATE deadstop_runs SET owner = :owner, host = :host, pid = :pid, opened_at = :opened_at, cancellers = :cancellers,
    orphans = :orphans, orphan_grace = :orphan_grace, metadata = :metadata
WHERE run = :run AND epoch = :epoch AND opened_at IS NULL;

-- name: close_run
UPDATE deadstop_runs SET closed_at = :now WHERE run = :run AND epoch = :epoch AND closed_at IS NULL;

-- name: remote_by_id
SELECT * FROM deadstop_remotes WHERE base_url = :base_url AND kind = :kind AND ids = :ids;

-- name: insert_remote
-- Under the first name that it is recorded by: two processes may do it at once, by the names of two runs.
INSERT INTO deadstop_remotes (base_url, kind, ids, run, epoch, owner, created_at, status, status_at, terminal)
VALUES (:base_url, :kind, :ids, :run, :epoch, :owner, :created_at, :status, :now, :terminal)
ON CONFLICT (base_url, kind, ids) DO NOTHING;

-- name: remote_status
-- An end is an end: a late report of an earlier status changes nothing.
UPDATE deadstop_remotes SET status = :status, status_at = :now, terminal = :terminal
WHERE base_url = :base_url AND kind = :kind AND ids = :ids AND NOT terminal;

-- name: revive_remote
UPDATE deadstop_remotes SET status = :status, status_at = :now, terminal = :terminal
WHERE base_url = :base_url AND kind = :kind AND ids = :ids;
