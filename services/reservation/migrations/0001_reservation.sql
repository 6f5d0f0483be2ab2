CREATE TABLE reservations (
    reservation_id uuid PRIMARY KEY,
    customer_id    text NOT NULL,
    hospital_id    text NOT NULL,
    hospital_name  text NOT NULL,
    time_zone      text NOT NULL,
    date           date NOT NULL,
    vaccine_code   text NOT NULL,
    decide_time     timestamptz NOT NULL,
    status         smallint NOT NULL CHECK (status BETWEEN 1 AND 5),
    rejection      smallint CHECK (rejection BETWEEN 1 AND 3),
    CONSTRAINT rejected_exactly_with_a_reason CHECK ((status = 2) = (rejection IS NOT NULL))
) WITH (fillfactor = 80);  -- the status changes two or three times and is in no index: room for updates in place

CREATE INDEX reservations_of_a_customer ON reservations (customer_id, decide_time DESC, reservation_id DESC);
