-- Intents, the cancels that were asked for, attempts, outcomes.

-- name: cancel_by_request
SELECT epoch, number FROM deadstop_cancels WHERE run = :run AND request_id = :request_id;

-- name: standing
-- All that most cancels by name have to know, in one round trip: whether this one is on record, and what there is of
-- that name. `live`: see live_run.
SELECT
    EXISTS (SELECT 1 FROM deadstop_cancels AS c WHERE c.run = :run AND c.request_id = :request_id) AS repeated,
    EXISTS (
        SELECT 1 FROM deadstop_runs AS r
        LEFT JOIN deadstop_processes AS p ON p.owner = r.owner
        WHERE r.run = :run AND r.opened_at IS NOT NULL AND (
            (r.closed_at IS NULL AND p.left_at IS NULL)
            OR EXISTS (SELECT 1 FROM deadstop_remotes AS m WHERE m.run = r.run AND m.epoch = r.epoch AND NOT m.terminal))
    ) AS live,
    EXISTS (
        SELECT 1 FROM deadstop_runs AS r WHERE r.run = :run AND r.opened_at IS NULL AND r.closed_at IS NULL
    ) AS unborn,
    (SELECT coalesce(max(epoch), 0) FROM deadstop_runs AS r WHERE r.run = :run) AS last;

-- name: intent
SELECT i.*, (SELECT count(*) FROM deadstop_cancels AS c WHERE c.run = i.run AND c.epoch = i.epoch) AS cancels
FROM deadstop_intents AS i WHERE i.run = :run AND i.epoch = :epoch;

-- name: newest_intent
SELECT i.*, (SELECT count(*) FROM deadstop_cancels AS c WHERE c.run = i.run AND c.epoch = i.epoch) AS cancels
FROM deadstop_intents AS i WHERE i.run = :run ORDER BY i.epoch DESC LIMIT 1;

-- name: insert_intent
INSERT INTO deadstop_intents (
    run, epoch, cause, reason, actor, owner, host, pid, level, deadline, request_id, at, parked_until)
VALUES (
    :run, :epoch, :cause, :reason, :actor, :owner, :host, :pid, :level, :deadline, :request_id, :at, :parked_until);

-- name: strengthen_intent
UPDATE deadstop_intents SET level = :level, deadline = :deadline WHERE run = :run AND epoch = :epoch;

-- name: park_longer
UPDATE deadstop_intents SET parked_until = :parked_until WHERE run = :run AND epoch = :epoch;

-- name: unpark
UPDATE deadstop_intents SET parked_until = NULL WHERE run = :run AND epoch = :epoch;

-- name: give_up
UPDATE deadstop_intents SET left_at = :now
WHERE run = :run AND epoch = :epoch AND left_at IS NULL AND (outcome IS NULL OR outcome = 'unconfirmed')
    AND EXISTS (SELECT 1 FROM deadstop_runs AS r WHERE r.run = :run AND r.epoch = :epoch AND r.owner = :owner);

-- name: retract_tombstone
DELETE FROM deadstop_runs WHERE run = :run AND epoch = :epoch AND opened_at IS NULL AND closed_at IS NULL
    AND :request_id = (SELECT max(c.request_id) FROM deadstop_cancels AS c WHERE c.run = :run AND c.epoch = :epoch)
    AND (SELECT count(*) FROM deadstop_cancels AS c WHERE c.run = :run AND c.epoch = :epoch) = 1;

-- name: retract_cancel
-- The last one, so that their numbers go on as they were. The first is the intent's own.
DELETE FROM deadstop_cancels WHERE run = :run AND epoch = :epoch AND request_id = :request_id AND number > 0
    AND number = (SELECT max(number) FROM deadstop_cancels AS c WHERE c.run = :run AND c.epoch = :epoch)
    AND EXISTS (SELECT 1 FROM deadstop_runs AS r WHERE r.run = :run AND r.epoch = :epoch AND r.opened_at IS NULL);

-- name: insert_cancel
INSERT INTO deadstop_cancels (
    run, request_id, epoch, number, cause, reason, actor, owner, host, pid, level, deadline, at)
VALUES (
    :run, :request_id, :epoch,
    (SELECT count(*) FROM deadstop_cancels AS c WHERE c.run = :run AND c.epoch = :epoch),
    :cause, :reason, :actor, :owner, :host, :pid, :level, :deadline, :at);

-- name: cancels
SELECT * FROM deadstop_cancels WHERE run = :run AND epoch = :epoch ORDER BY number;

-- name: open_intents
SELECT * FROM deadstop_intents
WHERE parked_until IS NULL AND (outcome IS NULL OR outcome = 'unconfirmed') AND at >= :since
ORDER BY CASE WHEN outcome IS NULL THEN 0 ELSE 1 END, at, run, epoch LIMIT :limit;

-- name: cancels_of_open_intents
SELECT c.* FROM deadstop_cancels AS c JOIN deadstop_intents AS i ON i.run = c.run AND i.epoch = c.epoch
WHERE i.parked_until IS NULL AND (i.outcome IS NULL OR i.outcome = 'unconfirmed') AND i.at >= :since
ORDER BY c.run, c.epoch, c.number;

-- name: parked_intents
SELECT * FROM deadstop_intents WHERE parked_until > :now ORDER BY at, run, epoch LIMIT :limit;

-- name: cancels_of_parked_intents
SELECT c.* FROM deadstop_cancels AS c JOIN deadstop_intents AS i ON i.run = c.run AND i.epoch = c.epoch
WHERE i.parked_until > :now ORDER BY c.run, c.epoch, c.number;

-- name: begin_attempt
INSERT INTO deadstop_attempts (run, epoch, target, number, owner, started)
VALUES (
    :run, :epoch, :target,
    (SELECT coalesce(max(number), 0) + 1 FROM deadstop_attempts AS a
     WHERE a.run = :run AND a.epoch = :epoch AND a.target = :target),
    :owner, :now);

-- name: last_attempt
SELECT max(number) AS number FROM deadstop_attempts WHERE run = :run AND epoch = :epoch AND target = :target;

-- name: record_attempt
INSERT INTO deadstop_attempts (
    run, epoch, target, number, owner, started, ended, dns, connect, tls, first_byte, status, request_id, retry_after,
    error)
VALUES (
    :run, :epoch, :target, :number, :owner, :started, :ended, :dns, :connect, :tls, :first_byte, :status, :request_id,
    :retry_after, :error)
ON CONFLICT (run, epoch, target, number) DO UPDATE SET
    started = excluded.started, ended = excluded.ended, dns = excluded.dns, connect = excluded.connect,
    tls = excluded.tls, first_byte = excluded.first_byte, status = excluded.status,
    request_id = excluded.request_id, retry_after = excluded.retry_after, error = excluded.error;

-- name: attempts
SELECT * FROM deadstop_attempts WHERE run = :run AND epoch = :epoch ORDER BY started, target, number;

-- name: last_outcome
SELECT * FROM deadstop_outcomes WHERE run = :run AND epoch = :epoch ORDER BY revision DESC LIMIT 1;

-- name: insert_outcome
INSERT INTO deadstop_outcomes (run, epoch, revision, outcome, status, evidence, diagnosis, receipt, owner, at)
VALUES (:run, :epoch, :revision, :outcome, :status, :evidence, :diagnosis, :receipt, :owner, :at);

-- name: refusal_by_request
SELECT * FROM deadstop_refusals WHERE run = :run AND request_id = :request_id;

-- name: insert_refusal
INSERT INTO deadstop_refusals (run, epoch, actor, reason, request_id, owner, host, pid, at)
VALUES (:run, :epoch, :actor, :reason, :request_id, :owner, :host, :pid, :at);

-- name: insert_revival
INSERT INTO deadstop_revivals (run, epoch, base_url, kind, ids, status, owner, at)
VALUES (:run, :epoch, :base_url, :kind, :ids, :status, :owner, :now);
