-- Where results are declared, and how each place voted at the election before.
CREATE TABLE places (
  place            VARCHAR PRIMARY KEY,  -- a county, as in voters.address_state
  code             VARCHAR NOT NULL,     -- the same in at most four letters
  region           VARCHAR NOT NULL,     -- a nation, or a region of England
  tile_column      INTEGER NOT NULL,     -- where it stands on the tile map
  tile_row         INTEGER NOT NULL,
  ballots_expected BIGINT                -- ballots in its boxes, counted when the polls closed; NULL: not known
);

CREATE TABLE previous_results (
  place             VARCHAR NOT NULL,
  party_affiliation VARCHAR NOT NULL,
  votes             BIGINT NOT NULL,
  PRIMARY KEY (place, party_affiliation)
);

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON places
  FOR EACH STATEMENT EXECUTE FUNCTION tally_internal.announce_change();
CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON previous_results
  FOR EACH STATEMENT EXECUTE FUNCTION tally_internal.announce_change();
