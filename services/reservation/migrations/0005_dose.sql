-- What vaccine management told last about the dose, and whether it has nothing of it any more. A replica of 0.3.0 writes
-- neither: 0 and false say that nothing is known.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE reservations
    ADD COLUMN dose_version integer NOT NULL DEFAULT 0,
    ADD COLUMN dose_is_back boolean NOT NULL DEFAULT false;
