-- What a hospital says it offers, and what was ever delivered to it; codes without leading zeros. Deliveries may come to
-- a hospital before it is registered here.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE hospitals ADD COLUMN vaccine_codes text[] NOT NULL DEFAULT '{}';
CREATE TABLE delivered_codes (
    hospital_id  text NOT NULL,
    vaccine_code text NOT NULL CONSTRAINT a_code_is_canonical CHECK (vaccine_code ~ '^(0|[1-9][0-9]*)$'),
    PRIMARY KEY (hospital_id, vaccine_code)
);
