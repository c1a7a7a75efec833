-- Votes of each party's candidates together.
CREATE MATERIALIZED VIEW votes_by_party
WITH (topic = 'aggregated_votes_by_party', key = 'party_affiliation',
      secret_by = '', counted_in = 'total_votes') AS
SELECT c.party_affiliation, COUNT(*) AS candidates, SUM(COALESCE(t.total_votes, 0)) AS total_votes
FROM candidates c
LEFT JOIN (SELECT candidate_id, SUM(vote) AS total_votes FROM votes GROUP BY candidate_id) t USING (candidate_id)
GROUP BY c.party_affiliation;
