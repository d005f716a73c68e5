-- Version 4: which cancel request is under way for a remote run, whatever names it is cancelled by.

CREATE TABLE deadstop_flights (
    base_url  TEXT NOT NULL,
    kind      TEXT NOT NULL CHECK (kind <> ''),
    ids       TEXT NOT NULL CHECK (ids <> ''),
    token     TEXT NOT NULL UNIQUE,
    owner     TEXT NOT NULL,
    until     DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (base_url, kind, ids)
);
