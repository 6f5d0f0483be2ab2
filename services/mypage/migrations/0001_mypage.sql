-- Every column is a function of the set of events seen, whatever their order and however often: see projector.py.
CREATE TABLE my_reservations (
    reservation_id         uuid PRIMARY KEY,
    customer_id            text NOT NULL,
    hospital_id            text NOT NULL,
    hospital_name          text NOT NULL,
    time_zone              text NOT NULL,
    date                   date NOT NULL,
    requested_vaccine_code text NOT NULL,
    decide_time            timestamptz NOT NULL,
    status                 smallint NOT NULL CHECK (status BETWEEN 1 AND 5),
    rejection_reason       smallint NOT NULL CHECK (rejection_reason BETWEEN 0 AND 3),
    dose_version           integer NOT NULL,
    vaccine_code           text NOT NULL,
    manufacturer           text NOT NULL,
    lot_number             text NOT NULL,
    production_date        date,
    expiry_date            date,
    quantity               integer NOT NULL CHECK (quantity BETWEEN 0 AND 1)
) WITH (fillfactor = 70);

CREATE INDEX my_reservations_of_a_customer ON my_reservations (customer_id, decide_time DESC, reservation_id DESC);

CREATE TABLE timeline (
    reservation_id uuid NOT NULL,
    event          text NOT NULL,
    version        integer NOT NULL,
    time           timestamptz NOT NULL,
    PRIMARY KEY (reservation_id, event, version)
);
