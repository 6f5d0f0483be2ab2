-- A later version may tell of a status, a reason or a quantity that this one does not know, and may be rolled back
-- afterwards: what every version promises is a lower bound. Both versions' rows satisfy both constraints.
-- NOT VALID: the table is not read while nobody else can use it. The next migration reads it, with others at work.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE my_reservations
    DROP CONSTRAINT my_reservations_status_check,
    DROP CONSTRAINT my_reservations_rejection_reason_check,
    DROP CONSTRAINT my_reservations_quantity_check,
    ADD CONSTRAINT my_reservations_status_check CHECK (status >= 1) NOT VALID,
    ADD CONSTRAINT my_reservations_rejection_reason_check CHECK (rejection_reason >= 0) NOT VALID,
    ADD CONSTRAINT my_reservations_quantity_check CHECK (quantity >= 0) NOT VALID;
