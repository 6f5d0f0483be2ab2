ALTER TABLE my_reservations
    VALIDATE CONSTRAINT my_reservations_status_check,
    VALIDATE CONSTRAINT my_reservations_rejection_reason_check,
    VALIDATE CONSTRAINT my_reservations_quantity_check;
