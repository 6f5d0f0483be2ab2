-- For the bookings of a day that is called off, and for the days whose bookings are still to end. The columns of the first
-- never change after the insert, so that a release still updates a row in place, and `approved` is in none of them.
DROP INDEX CONCURRENTLY IF EXISTS decisions_granted_of_a_day;
CREATE INDEX CONCURRENTLY decisions_granted_of_a_day ON decisions (hospital_id, date) WHERE denial IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS days_revoking;
CREATE INDEX CONCURRENTLY days_revoking ON days (hospital_id, date) WHERE revoking;
