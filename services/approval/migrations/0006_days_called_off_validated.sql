ALTER TABLE days
    VALIDATE CONSTRAINT never_overbooked,
    VALIDATE CONSTRAINT over_is_no_less_than_nothing,
    VALIDATE CONSTRAINT called_off_with_words_and_capacity,
    VALIDATE CONSTRAINT only_a_day_called_off_is_revoked;
