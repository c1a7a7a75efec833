-- The election in one row: how many are registered and have voted, who leads, and by how much.
CREATE VIEW ranked_candidates AS
SELECT candidate_id, candidate_name, party_affiliation, photo_url, total_votes,
       ROW_NUMBER() OVER (ORDER BY total_votes DESC, candidate_id) AS place
FROM votes_per_candidate;

CREATE MATERIALIZED VIEW election_summary
WITH (topic = 'aggregated_election_summary', key = 'election') AS
SELECT 'election' AS election,
       r.registered, k.candidates, t.votes_cast,
       CASE WHEN r.registered > 0 THEN ROUND(100.0 * t.votes_cast / r.registered, 2) END AS turnout_pct,
       first.candidate_id      AS leader_id,
       first.candidate_name    AS leader_name,
       first.party_affiliation AS leader_party,
       first.photo_url         AS leader_photo_url,
       first.total_votes       AS leader_votes,
       first.total_votes - COALESCE(second.total_votes, 0) AS margin_votes,
       ROUND(100.0 * (first.total_votes - COALESCE(second.total_votes, 0)) / t.votes_cast, 2) AS margin_points
FROM (SELECT COUNT(*) AS registered FROM voters) r
CROSS JOIN (SELECT COUNT(*) AS candidates FROM candidates) k
CROSS JOIN (SELECT COUNT(*) AS votes_cast FROM votes) t
LEFT JOIN ranked_candidates first  ON first.place = 1 AND first.total_votes > 0
LEFT JOIN ranked_candidates second ON second.place = 2;
