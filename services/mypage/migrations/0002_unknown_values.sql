-- A newer version may send a status, a reason or a quantity that this one does not know: it is stored and shown as it
-- comes. Not validated here: to read the whole table while nobody else may would stop the screens, and every row that
-- kept the rules before keeps these.
ALTER TABLE my_reservations
    DROP CONSTRAINT my_reservations_status_check,
    DROP CONSTRAINT my_reservations_rejection_reason_check,
    DROP CONSTRAINT my_reservations_quantity_check,
    ADD CONSTRAINT my_reservations_status_check CHECK (status >= 1) NOT VALID,
    ADD CONSTRAINT my_reservations_rejection_reason_check CHECK (rejection_reason >= 0) NOT VALID,
    ADD CONSTRAINT my_reservations_quantity_check CHECK (quantity >= 0) NOT VALID;
