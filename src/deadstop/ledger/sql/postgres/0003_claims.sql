-- Version 3: who acts on a run's cancel, and until when at the least. By the database's clock.

CREATE TABLE deadstop_claims (
    run         TEXT NOT NULL PRIMARY KEY CHECK (run <> ''),
    token       TEXT NOT NULL UNIQUE,
    holder      TEXT NOT NULL,
    expires_at  TIMESTAMP WITH TIME ZONE NOT NULL
);
