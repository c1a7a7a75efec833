-- Voters who have voted, by county ("state" in the reference's messages), of those registered there. The operator's: what moves
-- in a place while its ballots are counted is nobody else's business.
CREATE MATERIALIZED VIEW turnout_by_location
WITH (topic = 'aggregated_turnout_by_location', key = 'state', access = 'operator') AS
SELECT r.state, COALESCE(t.count, 0) AS count, r.registered,
       ROUND(100.0 * COALESCE(t.count, 0) / r.registered, 2) AS turnout_pct
FROM (SELECT address_state AS state, COUNT(*) AS registered FROM voters GROUP BY address_state) r
LEFT JOIN (SELECT v.address_state AS state, COUNT(*) AS count
           FROM votes b JOIN voters v ON v.voter_id = b.voter_id
           GROUP BY v.address_state) t ON t.state = r.state;
