-- Cancel requests that are under way. How one begins is each home's own: they have different clocks.

-- name: land
DELETE FROM deadstop_flights WHERE token = :token;

-- name: end_flights_of
DELETE FROM deadstop_flights WHERE owner = :owner;

-- name: sweep_flights
DELETE FROM deadstop_flights WHERE token IN (
    SELECT token FROM deadstop_flights WHERE until < :before ORDER BY token LIMIT :limit);
