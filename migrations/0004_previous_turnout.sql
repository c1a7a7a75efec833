-- How many were registered at the election before; who voted then, previous_results has.
CREATE TABLE previous_registers (
  place      VARCHAR PRIMARY KEY,
  registered BIGINT NOT NULL
);

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON previous_registers
  FOR EACH STATEMENT EXECUTE FUNCTION tally_internal.announce_change();
