-- The newest workload of a sandbox whose main command was taken in as an exec: it is never taken in twice, though the
-- exec's own row is forgotten.

ALTER TABLE sandbox ADD COLUMN main INTEGER NOT NULL DEFAULT 0;
