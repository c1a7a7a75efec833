-- Voters who have voted, by gender, of those registered.
CREATE MATERIALIZED VIEW turnout_by_gender
WITH (topic = 'aggregated_turnout_by_gender', key = 'gender') AS
SELECT r.gender, COALESCE(t.count, 0) AS count, r.registered,
       ROUND(100.0 * COALESCE(t.count, 0) / r.registered, 2) AS turnout_pct
FROM (SELECT gender, COUNT(*) AS registered FROM voters GROUP BY gender) r
LEFT JOIN (SELECT v.gender, COUNT(*) AS count
           FROM votes b JOIN voters v ON v.voter_id = b.voter_id
           GROUP BY v.gender) t ON t.gender = r.gender;
