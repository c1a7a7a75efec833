-- The result: every candidate with the votes so far. A candidate without votes stands there with 0. `secret_by = ''`: all
-- voters are one group, and what a release adds to it must not be alike.
CREATE MATERIALIZED VIEW votes_per_candidate
WITH (topic = 'aggregated_votes_per_candidate', key = 'candidate_id', secret_by = '') AS
SELECT c.candidate_id, c.candidate_name, c.party_affiliation, c.photo_url,
       COALESCE(t.total_votes, 0) AS total_votes
FROM candidates c
LEFT JOIN (SELECT candidate_id, SUM(vote) AS total_votes FROM votes GROUP BY candidate_id) t USING (candidate_id);
