-- The reservation whose place a move asked to be freed. It is no foreign key: the old booking may be forgotten earlier.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE decisions ADD COLUMN replaces uuid;
