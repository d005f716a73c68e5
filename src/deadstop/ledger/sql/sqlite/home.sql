-- What only SQLite needs.

-- name: user_tables
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';

-- name: take_off
INSERT INTO deadstop_flights (base_url, kind, ids, token, owner, until)
VALUES (:base_url, :kind, :ids, :token, :owner, :now + :lasts)
ON CONFLICT (base_url, kind, ids) DO UPDATE SET token = excluded.token, owner = excluded.owner, until = excluded.until
WHERE deadstop_flights.until <= :now OR deadstop_flights.token = excluded.token;

-- name: aloft
SELECT token FROM deadstop_flights
WHERE base_url = :base_url AND kind = :kind AND ids = :ids AND until > :now;
