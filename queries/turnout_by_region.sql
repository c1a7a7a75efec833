-- Voters who have voted, by city, of those registered there. The operator's: what moves
-- in a place while its ballots are counted is nobody else's business.
CREATE MATERIALIZED VIEW turnout_by_region
WITH (topic = 'aggregated_turnout_by_region', key = 'city', access = 'operator') AS
SELECT r.city, r.state, COALESCE(t.count, 0) AS count, r.registered,
       ROUND(100.0 * COALESCE(t.count, 0) / r.registered, 2) AS turnout_pct
FROM (SELECT address_city AS city, MIN(address_state) AS state, COUNT(*) AS registered
      FROM voters GROUP BY address_city) r
LEFT JOIN (SELECT v.address_city AS city, COUNT(*) AS count
           FROM votes b JOIN voters v ON v.voter_id = b.voter_id
           GROUP BY v.address_city) t ON t.city = r.city;
