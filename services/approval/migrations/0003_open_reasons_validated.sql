ALTER TABLE decisions VALIDATE CONSTRAINT decisions_denial_check;
