-- What is forgotten, in bounded batches.

-- name: expired_tombstones
SELECT run, epoch FROM deadstop_intents
WHERE parked_until IS NOT NULL AND parked_until <= :now AND outcome IS NULL ORDER BY parked_until LIMIT :limit;

-- name: sweep_runs
-- Ended: no cancel under way, and closed long ago or left by a process that is gone. A remote run whose end nobody
-- came to know, and that no living process owns, is taken to be over at that age too.
DELETE FROM deadstop_runs WHERE (run, epoch) IN (
    SELECT r.run, r.epoch FROM deadstop_runs AS r
    LEFT JOIN deadstop_processes AS p ON p.owner = r.owner
    LEFT JOIN deadstop_intents AS i ON i.run = r.run AND i.epoch = r.epoch
    WHERE coalesce(r.closed_at, p.left_at, p.seen_at, r.opened_at) < :before
        AND (i.run IS NULL OR (i.outcome IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM deadstop_outcomes AS o WHERE o.run = r.run AND o.epoch = r.epoch AND o.at >= :before)))
        AND NOT EXISTS (
            SELECT 1 FROM deadstop_remotes AS m LEFT JOIN deadstop_processes AS q ON q.owner = m.owner
            WHERE m.run = r.run AND m.epoch = r.epoch AND (
                coalesce(m.status_at, m.created_at) >= :before
                OR (NOT m.terminal AND q.left_at IS NULL AND q.seen_at >= :before)))
    ORDER BY r.run, r.epoch LIMIT :limit);

-- name: sweep_refusals
DELETE FROM deadstop_refusals WHERE id IN (
    SELECT id FROM deadstop_refusals WHERE at < :before ORDER BY id LIMIT :limit);

-- name: sweep_processes
DELETE FROM deadstop_processes WHERE owner IN (
    SELECT p.owner FROM deadstop_processes AS p
    WHERE coalesce(p.left_at, p.seen_at) < :before
        AND NOT EXISTS (SELECT 1 FROM deadstop_runs AS r WHERE r.owner = p.owner)
        AND NOT EXISTS (SELECT 1 FROM deadstop_remotes AS m WHERE m.owner = p.owner)
    ORDER BY p.owner LIMIT :limit);
