-- Where a hospital is, in degrees, if that is known; a replica of 0.3.0 that changes a hospital leaves it alone. And what
-- a search looks through, without spaces in the name, since Korean names are written with and without them.
-- The table is small, so that it is read and written anew at once.
SET LOCAL lock_timeout = '2s';  -- who waits for this lock makes everybody behind it wait; the start tries again
ALTER TABLE hospitals
    ADD COLUMN latitude    double precision CHECK (latitude BETWEEN -90 AND 90),
    ADD COLUMN longitude   double precision CHECK (longitude BETWEEN -180 AND 180),
    ADD COLUMN search_text text GENERATED ALWAYS AS (lower(replace(name, ' ', '') || ' ' || hospital_id)) STORED,
    ADD CONSTRAINT a_location_is_whole CHECK ((latitude IS NULL) = (longitude IS NULL));
