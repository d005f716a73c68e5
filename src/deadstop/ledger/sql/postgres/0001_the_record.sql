-- The record, version 1. The rules that the Python code keeps are kept here once more, so that a bug, an older
-- library or a hand at the prompt can't write a state that the model does not have. Times are unix seconds.

CREATE TABLE deadstop_processes (
    owner       TEXT NOT NULL PRIMARY KEY CHECK (owner <> ''),
    host        TEXT NOT NULL,
    pid         INTEGER NOT NULL CHECK (pid > 0),
    address     TEXT,
    entered_at  DOUBLE PRECISION NOT NULL,
    seen_at     DOUBLE PRECISION NOT NULL,
    left_at     DOUBLE PRECISION,
    CHECK (seen_at >= entered_at)
);

-- A run without an owner is one that was cancelled before anybody opened it: a tombstone.
CREATE TABLE deadstop_runs (
    run           TEXT NOT NULL CHECK (run <> ''),
    epoch         INTEGER NOT NULL CHECK (epoch >= 1),
    owner         TEXT,
    host          TEXT,
    pid           INTEGER,
    opened_at     DOUBLE PRECISION,
    closed_at     DOUBLE PRECISION,
    cancellers    TEXT,
    orphans       TEXT NOT NULL CHECK (orphans IN ('leave', 'cancel')),
    orphan_grace  DOUBLE PRECISION NOT NULL CHECK (orphan_grace >= 0),
    metadata      TEXT,
    PRIMARY KEY (run, epoch),
    CHECK ((opened_at IS NULL) = (owner IS NULL))
);
CREATE UNIQUE INDEX deadstop_runs_one_per_owner ON deadstop_runs (run, owner) WHERE closed_at IS NULL;
CREATE UNIQUE INDEX deadstop_runs_one_unborn ON deadstop_runs (run) WHERE opened_at IS NULL AND closed_at IS NULL;
CREATE INDEX deadstop_runs_owner ON deadstop_runs (owner);

CREATE TABLE deadstop_remotes (
    base_url    TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind <> ''),
    ids         TEXT NOT NULL CHECK (ids <> ''),
    run         TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL,
    status      TEXT,
    status_at   DOUBLE PRECISION,
    terminal    BOOLEAN NOT NULL,
    PRIMARY KEY (base_url, kind, ids),
    FOREIGN KEY (run, epoch) REFERENCES deadstop_runs ON DELETE CASCADE
);
CREATE INDEX deadstop_remotes_run ON deadstop_remotes (run, epoch);
CREATE INDEX deadstop_remotes_active ON deadstop_remotes (owner) WHERE NOT terminal;

-- One intent for each life of a run: that it is there is the closed fence. `outcome` is kept by a trigger.
CREATE TABLE deadstop_intents (
    run           TEXT NOT NULL,
    epoch         INTEGER NOT NULL,
    cause         TEXT NOT NULL CHECK (cause IN ('user', 'deadline', 'parent', 'signal', 'shutdown')),
    reason        TEXT,
    actor         TEXT,
    owner         TEXT NOT NULL,
    host          TEXT NOT NULL,
    pid           INTEGER NOT NULL,
    level         TEXT NOT NULL CHECK (level IN ('sent', 'accepted', 'confirmed')),
    deadline      DOUBLE PRECISION NOT NULL,
    request_id    TEXT NOT NULL,
    at            DOUBLE PRECISION NOT NULL,
    parked_until  DOUBLE PRECISION,
    outcome       TEXT CHECK (outcome IN ('cancelled', 'finished_first', 'unconfirmed', 'parked')),
    PRIMARY KEY (run, epoch),
    FOREIGN KEY (run, epoch) REFERENCES deadstop_runs ON DELETE CASCADE
);
CREATE INDEX deadstop_intents_open ON deadstop_intents (at)
    WHERE parked_until IS NULL AND (outcome IS NULL OR outcome = 'unconfirmed');
CREATE INDEX deadstop_intents_parked ON deadstop_intents (parked_until) WHERE parked_until IS NOT NULL;

CREATE TABLE deadstop_cancels (
    run         TEXT NOT NULL,
    request_id  TEXT NOT NULL CHECK (request_id <> ''),
    epoch       INTEGER NOT NULL,
    number      INTEGER NOT NULL CHECK (number >= 0),
    cause       TEXT NOT NULL CHECK (cause IN ('user', 'deadline', 'parent', 'signal', 'shutdown')),
    reason      TEXT,
    actor       TEXT,
    owner       TEXT NOT NULL,
    host        TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    level       TEXT NOT NULL CHECK (level IN ('sent', 'accepted', 'confirmed')),
    deadline    DOUBLE PRECISION NOT NULL,
    at          DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (run, request_id),
    UNIQUE (run, epoch, number),
    FOREIGN KEY (run, epoch) REFERENCES deadstop_intents ON DELETE CASCADE
);

CREATE TABLE deadstop_attempts (
    run          TEXT NOT NULL,
    epoch        INTEGER NOT NULL,
    target       TEXT NOT NULL,
    number       INTEGER NOT NULL CHECK (number >= 1),
    owner        TEXT NOT NULL,
    started      DOUBLE PRECISION NOT NULL,
    ended        DOUBLE PRECISION,
    dns          DOUBLE PRECISION,
    connect      DOUBLE PRECISION,
    tls          DOUBLE PRECISION,
    first_byte   DOUBLE PRECISION,
    status       INTEGER CHECK (status BETWEEN 100 AND 999),
    request_id   TEXT,
    retry_after  DOUBLE PRECISION,
    error        TEXT,
    PRIMARY KEY (run, epoch, target, number),
    FOREIGN KEY (run, epoch) REFERENCES deadstop_intents ON DELETE CASCADE
);

-- Revision 0 is the outcome; revision 1 is there when an unconfirmed one was refined.
CREATE TABLE deadstop_outcomes (
    run        TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    revision   INTEGER NOT NULL CHECK (revision IN (0, 1)),
    outcome    TEXT NOT NULL CHECK (outcome IN ('cancelled', 'finished_first', 'unconfirmed', 'parked')),
    status     TEXT,
    evidence   TEXT NOT NULL CHECK (evidence IN ('transport', 'status', 'events', 'engine', 'none')),
    diagnosis  TEXT CHECK (diagnosis IN (
        'not_sent', 'dns', 'connect', 'tls', 'pool_wait', 'network_loss', 'rate_limited', 'server_overloaded',
        'server_slow', 'server_ignored', 'sent_too_late', 'wrong_target', 'caller_blocked', 'unknown')),
    receipt    TEXT NOT NULL,
    owner      TEXT NOT NULL,
    at         DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (run, epoch, revision),
    FOREIGN KEY (run, epoch) REFERENCES deadstop_intents ON DELETE CASCADE,
    CHECK (revision = 0 OR outcome IN ('cancelled', 'finished_first')),
    CHECK ((outcome = 'unconfirmed') = (diagnosis IS NOT NULL))
);
CREATE INDEX deadstop_outcomes_at ON deadstop_outcomes (at);

CREATE TABLE deadstop_refusals (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run         TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    actor       TEXT,
    reason      TEXT,
    request_id  TEXT NOT NULL,
    owner       TEXT NOT NULL,
    host        TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    at          DOUBLE PRECISION NOT NULL
);
CREATE INDEX deadstop_refusals_at ON deadstop_refusals (at);

CREATE TABLE deadstop_revivals (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run       TEXT NOT NULL,
    epoch     INTEGER NOT NULL,
    base_url  TEXT NOT NULL,
    kind      TEXT NOT NULL,
    ids       TEXT NOT NULL,
    status    TEXT,
    owner     TEXT NOT NULL,
    at        DOUBLE PRECISION NOT NULL,
    FOREIGN KEY (run, epoch) REFERENCES deadstop_intents ON DELETE CASCADE
);
CREATE INDEX deadstop_revivals_run ON deadstop_revivals (run, epoch);

CREATE FUNCTION deadstop_guard_intent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.run, NEW.epoch, NEW.cause, NEW.request_id, NEW.at, NEW.reason, NEW.actor)
        IS DISTINCT FROM (OLD.run, OLD.epoch, OLD.cause, OLD.request_id, OLD.at, OLD.reason, OLD.actor) THEN
        RAISE EXCEPTION 'deadstop: the first cause of a cancel sticks' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.deadline > OLD.deadline OR (OLD.level = 'confirmed' AND NEW.level <> 'confirmed')
        OR (OLD.level = 'accepted' AND NEW.level = 'sent') THEN
        RAISE EXCEPTION 'deadstop: a cancel never gets weaker' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER deadstop_guard_intent BEFORE UPDATE ON deadstop_intents
    FOR EACH ROW EXECUTE FUNCTION deadstop_guard_intent();

CREATE FUNCTION deadstop_guard_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        RAISE EXCEPTION 'deadstop: an outcome never changes' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.revision = 1 AND NOT EXISTS (
        SELECT 1 FROM deadstop_outcomes AS o
        WHERE o.run = NEW.run AND o.epoch = NEW.epoch AND o.revision = 0 AND o.outcome = 'unconfirmed') THEN
        RAISE EXCEPTION 'deadstop: only an unconfirmed outcome is refined' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER deadstop_guard_outcome BEFORE INSERT OR UPDATE ON deadstop_outcomes
    FOR EACH ROW EXECUTE FUNCTION deadstop_guard_outcome();

CREATE FUNCTION deadstop_outcome_on_its_intent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE deadstop_intents SET outcome = NEW.outcome WHERE run = NEW.run AND epoch = NEW.epoch;
    RETURN NULL;
END $$;
CREATE TRIGGER deadstop_outcome_on_its_intent AFTER INSERT ON deadstop_outcomes
    FOR EACH ROW EXECUTE FUNCTION deadstop_outcome_on_its_intent();
