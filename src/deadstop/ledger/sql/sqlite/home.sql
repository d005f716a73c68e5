-- What only SQLite needs.

-- name: user_tables
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';
