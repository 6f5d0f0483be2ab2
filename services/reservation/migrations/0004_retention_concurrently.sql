-- For the deletion of what is over. The columns never change after the insert, so that a change of status still updates
-- a row in place.
DROP INDEX CONCURRENTLY IF EXISTS reservations_by_date;
CREATE INDEX CONCURRENTLY reservations_by_date ON reservations (date);
DROP INDEX CONCURRENTLY IF EXISTS reservations_refused;
CREATE INDEX CONCURRENTLY reservations_refused ON reservations (decide_time) WHERE rejection IS NOT NULL;
