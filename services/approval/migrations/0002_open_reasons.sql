-- A later version may record a reason that this one has no name for, and may be rolled back afterwards: what every
-- version promises is that a reason is 1 or more. Both versions' rows satisfy both constraints.
-- NOT VALID: the table is not read while nobody else can use it. The next migration reads it, with others at work.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE decisions
    DROP CONSTRAINT decisions_denial_check,
    ADD CONSTRAINT decisions_denial_check CHECK (denial >= 1) NOT VALID;
