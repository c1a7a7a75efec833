-- What `tally seed` and `tally vote` remember so that a crash loses and doubles nothing. In a schema of its
-- own, since every table of the configured schema is a reference table.
CREATE SCHEMA tally_internal;

-- How far seeding has come: voters stored here, and announced on their topic. One row.
CREATE TABLE tally_internal.seed_progress (
  only_row   BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
  seed       BIGINT NOT NULL,
  candidates INTEGER NOT NULL,
  stored     BIGINT NOT NULL,
  announced  BIGINT NOT NULL
);

-- Votes that are in `votes` and may not be on their topic yet: written in the same statement as the vote,
-- deleted after Kafka has committed the message.
CREATE TABLE tally_internal.vote_outbox (
  voter_id     VARCHAR PRIMARY KEY,
  candidate_id VARCHAR NOT NULL,
  voting_time  TIMESTAMP NOT NULL
);

-- Word of every change of a reference table, for engines that hold it in memory.
CREATE FUNCTION tally_internal.announce_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('tally_reference', TG_TABLE_NAME);
  RETURN NULL;
END $$;

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON candidates
  FOR EACH STATEMENT EXECUTE FUNCTION tally_internal.announce_change();
CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON voters
  FOR EACH STATEMENT EXECUTE FUNCTION tally_internal.announce_change();
