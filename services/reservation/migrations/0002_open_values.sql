-- A later version may store a status or a reason that this one has no name for, and may be rolled back afterwards: what
-- every version promises is that they are 1 or more. Both versions' rows satisfy both constraints.
-- NOT VALID: the table is not read while nobody else can use it. The next migration reads it, with others at work.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE reservations
    DROP CONSTRAINT reservations_status_check,
    DROP CONSTRAINT reservations_rejection_check,
    ADD CONSTRAINT reservations_status_check CHECK (status >= 1) NOT VALID,
    ADD CONSTRAINT reservations_rejection_check CHECK (rejection >= 1) NOT VALID;
