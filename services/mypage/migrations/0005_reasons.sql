-- Why something happened, in a value's name and in somebody's words, and where a moved booking went. The version before
-- writes rows without them.
ALTER TABLE my_reservations ADD COLUMN replaced_by text NOT NULL DEFAULT '';
ALTER TABLE timeline
    ADD COLUMN reason text NOT NULL DEFAULT '',
    ADD COLUMN note text NOT NULL DEFAULT '';
