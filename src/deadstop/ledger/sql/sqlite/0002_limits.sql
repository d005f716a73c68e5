-- Version 2: how many requests all processes may send to one server, at once and per second.

CREATE TABLE deadstop_lanes (
    server   TEXT NOT NULL PRIMARY KEY CHECK (server <> ''),
    free_at  DOUBLE PRECISION NOT NULL
);

CREATE TABLE deadstop_permits (
    permit  TEXT NOT NULL PRIMARY KEY CHECK (permit <> ''),
    server  TEXT NOT NULL,
    owner   TEXT NOT NULL,
    until   DOUBLE PRECISION NOT NULL
);
CREATE INDEX deadstop_permits_server ON deadstop_permits (server, until);
