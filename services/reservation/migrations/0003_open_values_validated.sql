ALTER TABLE reservations
    VALIDATE CONSTRAINT reservations_status_check,
    VALIDATE CONSTRAINT reservations_rejection_check;
