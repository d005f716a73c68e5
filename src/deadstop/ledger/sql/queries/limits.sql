-- How many requests all processes may send to one server.

-- name: permits_out
SELECT count(*) AS number FROM deadstop_permits WHERE server = :server AND until > :now;

-- name: expire_permits
DELETE FROM deadstop_permits WHERE server = :server AND until <= :now;

-- name: insert_permit
INSERT INTO deadstop_permits (permit, server, owner, until) VALUES (:permit, :server, :owner, :until);

-- name: end_permit
DELETE FROM deadstop_permits WHERE permit = :permit;

-- name: end_permits_of
DELETE FROM deadstop_permits WHERE owner = :owner;

-- name: lane
SELECT free_at FROM deadstop_lanes WHERE server = :server;

-- name: put_lane
INSERT INTO deadstop_lanes (server, free_at) VALUES (:server, :free_at)
ON CONFLICT (server) DO UPDATE SET free_at = excluded.free_at;
