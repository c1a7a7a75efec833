-- Voters who have voted, by age band, of those registered.
CREATE VIEW voters_by_age_band AS
SELECT voter_id,
       CASE WHEN registered_age < 25 THEN '18-24'
            WHEN registered_age < 35 THEN '25-34'
            WHEN registered_age < 50 THEN '35-49'
            WHEN registered_age < 65 THEN '50-64'
            ELSE '65+' END AS age_band
FROM voters;

CREATE MATERIALIZED VIEW turnout_by_age
WITH (topic = 'aggregated_turnout_by_age', key = 'age_band') AS
SELECT r.age_band, COALESCE(t.count, 0) AS count, r.registered,
       ROUND(100.0 * COALESCE(t.count, 0) / r.registered, 2) AS turnout_pct
FROM (SELECT age_band, COUNT(*) AS registered FROM voters_by_age_band GROUP BY age_band) r
LEFT JOIN (SELECT v.age_band, COUNT(*) AS count
           FROM votes b JOIN voters_by_age_band v ON v.voter_id = b.voter_id
           GROUP BY v.age_band) t ON t.age_band = r.age_band;
