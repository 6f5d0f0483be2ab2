-- For the deletion of what is over or is a person's, and for how many refusals of a customer are kept. The columns never change after
-- the insert, so that a release still updates a row in place.
DROP INDEX CONCURRENTLY IF EXISTS decisions_by_date;
CREATE INDEX CONCURRENTLY decisions_by_date ON decisions (date);
DROP INDEX CONCURRENTLY IF EXISTS decisions_refused;
CREATE INDEX CONCURRENTLY decisions_refused ON decisions (decide_time) WHERE denial IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS decisions_of_a_customer;
CREATE INDEX CONCURRENTLY decisions_of_a_customer ON decisions (customer_id);
