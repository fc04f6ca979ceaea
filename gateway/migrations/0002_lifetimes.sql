-- How long a sandbox lives, and how long it may be idle; what was agreed is in its spec.

ALTER TABLE sandbox ADD COLUMN why TEXT NOT NULL DEFAULT 'asked';
ALTER TABLE sandbox ADD COLUMN expires_at INTEGER;
ALTER TABLE sandbox ADD COLUMN active_at INTEGER;
