-- Version 3: since when the process that held a run does nothing more about its cancel, though it may live.

ALTER TABLE deadstop_intents ADD COLUMN left_at DOUBLE PRECISION;
