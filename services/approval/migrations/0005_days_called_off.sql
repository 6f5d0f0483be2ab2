-- A day that is called off keeps the hospital's words, and the capacity that it has when it is reopened. Its own capacity
-- is 0 meanwhile, so that a replica of 0.3.0, which reads nothing but the capacity, grants no place on it either. When
-- such a replica gives it a capacity again, that reopens it: only a day without capacity is called off.
-- `revoking`: some of its bookings have not ended yet.
-- `over`: by how much the bookings of a day may exceed its capacity, since the capacity was lowered. It is never raised
-- by a booking. A replica of 0.3.0 that frees a place does not lower it; the next write of a newer one does.
-- NOT VALID: the table is not read while nobody else can use it. The next migration reads it, with others at work.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE days
    ADD COLUMN called_off          text,
    ADD COLUMN called_off_capacity integer,
    ADD COLUMN revoking            boolean NOT NULL DEFAULT false,
    ADD COLUMN over                integer NOT NULL DEFAULT 0,
    DROP CONSTRAINT never_overbooked,
    ADD CONSTRAINT never_overbooked CHECK (approved BETWEEN 0 AND capacity + over) NOT VALID,
    ADD CONSTRAINT over_is_no_less_than_nothing CHECK (over >= 0) NOT VALID,
    ADD CONSTRAINT called_off_with_words_and_capacity CHECK (
        (called_off IS NULL) = (called_off_capacity IS NULL) AND called_off <> '' AND called_off_capacity >= 0) NOT VALID,
    ADD CONSTRAINT only_a_day_called_off_is_revoked CHECK (NOT revoking OR called_off IS NOT NULL) NOT VALID;
