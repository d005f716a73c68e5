-- What the command line and the reconciler read.

-- name: list_runs
SELECT r.*,
    (SELECT count(*) FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch) AS remotes,
    (SELECT count(*) FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch AND NOT m.terminal) AS active,
    i.at AS cancelled_at, i.parked_until, i.outcome
FROM deadstop_runs AS r
LEFT JOIN deadstop_intents AS i ON i.run = r.run AND i.epoch = r.epoch
LEFT JOIN deadstop_processes AS p ON p.owner = r.owner
WHERE :ended
    OR (r.closed_at IS NULL AND p.left_at IS NULL)
    OR EXISTS (SELECT 1 FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch AND NOT m.terminal)
    OR (i.at IS NOT NULL AND i.outcome IS NULL)
ORDER BY coalesce(r.opened_at, i.at) DESC, r.run, r.epoch DESC LIMIT :limit;

-- name: list_lives
-- As list_runs, of one name. A query of its own: one for both would read every run to find these.
SELECT r.*,
    (SELECT count(*) FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch) AS remotes,
    (SELECT count(*) FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch AND NOT m.terminal) AS active,
    i.at AS cancelled_at, i.parked_until, i.outcome
FROM deadstop_runs AS r
LEFT JOIN deadstop_intents AS i ON i.run = r.run AND i.epoch = r.epoch
LEFT JOIN deadstop_processes AS p ON p.owner = r.owner
WHERE r.run = :run
    AND (:ended
        OR (r.closed_at IS NULL AND p.left_at IS NULL)
        OR EXISTS (SELECT 1 FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch AND NOT m.terminal)
        OR (i.at IS NOT NULL AND i.outcome IS NULL))
ORDER BY coalesce(r.opened_at, i.at) DESC, r.run, r.epoch DESC LIMIT :limit;

-- name: remotes_of_run
SELECT * FROM deadstop_remotes WHERE run = :run AND epoch = :epoch ORDER BY created_at, kind, ids;

-- name: remotes_named
SELECT * FROM deadstop_remotes WHERE kind = :kind AND ids = :ids ORDER BY created_at, base_url;

-- name: active_remotes
SELECT * FROM deadstop_remotes WHERE NOT terminal ORDER BY created_at, kind, ids LIMIT :limit;

-- name: orphans
-- Nobody answers for these: their owner left, or was not seen for `silent` seconds, and their run asks for a cancel.
SELECT m.* FROM deadstop_remotes AS m
JOIN deadstop_runs AS r ON r.run = m.run AND r.epoch = m.epoch
LEFT JOIN deadstop_processes AS p ON p.owner = m.owner
WHERE NOT m.terminal AND r.orphans = 'cancel'
    AND NOT EXISTS (SELECT 1 FROM deadstop_intents AS i WHERE i.run = m.run AND i.epoch = m.epoch)
    AND (p.left_at IS NOT NULL OR coalesce(p.seen_at, m.created_at) + :silent <= :now)
    AND coalesce(p.left_at, p.seen_at, m.created_at) + r.orphan_grace <= :now
ORDER BY m.created_at, m.kind, m.ids LIMIT :limit;

-- name: list_outcomes
-- The newest revision of each.
SELECT o.* FROM deadstop_outcomes AS o
WHERE o.at >= :since
    AND NOT EXISTS (
        SELECT 1 FROM deadstop_outcomes AS n WHERE n.run = o.run AND n.epoch = o.epoch AND n.revision > o.revision)
ORDER BY o.at DESC, o.run, o.epoch DESC LIMIT :limit;

-- name: list_outcomes_of_run
SELECT o.* FROM deadstop_outcomes AS o
WHERE o.run = :run AND o.at >= :since
    AND NOT EXISTS (
        SELECT 1 FROM deadstop_outcomes AS n WHERE n.run = o.run AND n.epoch = o.epoch AND n.revision > o.revision)
ORDER BY o.at DESC, o.run, o.epoch DESC LIMIT :limit;

-- name: list_refusals
SELECT * FROM deadstop_refusals WHERE (CAST(:run AS TEXT) IS NULL OR run = :run) ORDER BY id DESC LIMIT :limit;

-- name: list_revivals
SELECT * FROM deadstop_revivals WHERE run = :run AND epoch = :epoch ORDER BY id;
