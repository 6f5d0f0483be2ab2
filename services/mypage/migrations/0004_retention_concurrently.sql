-- For the deletion of what is over.
DROP INDEX CONCURRENTLY IF EXISTS my_reservations_by_date;
CREATE INDEX CONCURRENTLY my_reservations_by_date ON my_reservations (date);
DROP INDEX CONCURRENTLY IF EXISTS my_reservations_refused;
CREATE INDEX CONCURRENTLY my_reservations_refused ON my_reservations (decide_time) WHERE rejection_reason > 0;
-- Of bookings further ahead than RETENTION_STREAM_DAYS allow for, there are hardly any. Their events are kept for longer.
DROP INDEX CONCURRENTLY IF EXISTS my_reservations_far_ahead;
CREATE INDEX CONCURRENTLY my_reservations_far_ahead ON my_reservations (decide_time)
    WHERE date - (decide_time AT TIME ZONE 'UTC')::date > 366;
