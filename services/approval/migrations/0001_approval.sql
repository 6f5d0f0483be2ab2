CREATE TABLE hospitals (
    hospital_id text PRIMARY KEY,
    name        text NOT NULL,
    time_zone   text NOT NULL
);

CREATE TABLE days (
    hospital_id text NOT NULL REFERENCES hospitals,
    date        date NOT NULL,
    capacity    integer NOT NULL CHECK (capacity >= 0),
    approved    integer NOT NULL DEFAULT 0,
    PRIMARY KEY (hospital_id, date),
    CONSTRAINT never_overbooked CHECK (approved BETWEEN 0 AND capacity)
) WITH (fillfactor = 50);  -- approved changes all the time and is in no index: room for updates in place

-- A decision is made once; the primary key says so.
CREATE TABLE decisions (
    reservation_id uuid PRIMARY KEY,
    customer_id    text NOT NULL,
    hospital_id    text NOT NULL REFERENCES hospitals,
    hospital_name  text NOT NULL,
    time_zone      text NOT NULL,
    date           date NOT NULL,
    vaccine_code   text NOT NULL,
    decide_time     timestamptz NOT NULL,
    denial         smallint CHECK (denial BETWEEN 1 AND 3),
    released_at    timestamptz,
    CONSTRAINT only_a_granted_place_is_released CHECK (released_at IS NULL OR denial IS NULL)
);

-- One active booking per person; the primary key says so.
CREATE TABLE active_bookings (
    customer_id    text PRIMARY KEY,
    reservation_id uuid NOT NULL UNIQUE REFERENCES decisions
);
