-- The ranked list: every candidate with votes, share, change from the election before in points, and the declared
-- places where they came first.
CREATE MATERIALIZED VIEW standings
WITH (topic = 'aggregated_standings', key = 'candidate_id') AS
SELECT t.candidate_id, t.candidate_name, t.party_affiliation, t.photo_url, t.votes, t.share_pct,
       ROUND(b.share_pct, 2) AS previous_pct, ROUND(t.share_pct - b.share_pct, 2) AS change_points,
       COALESCE(w.places, 0) AS places_won,
       ROW_NUMBER() OVER (ORDER BY t.votes DESC, t.candidate_id) AS rank
FROM (SELECT candidate_id, candidate_name, party_affiliation, photo_url, total_votes AS votes,
             ROUND(100.0 * total_votes / NULLIF(SUM(total_votes) OVER (), 0), 2) AS share_pct
      FROM votes_per_candidate) t
LEFT JOIN previous_shares b ON b.party_affiliation = t.party_affiliation
LEFT JOIN (SELECT winner_id, COUNT(*) AS places FROM place_overview WHERE winner_id IS NOT NULL GROUP BY winner_id) w
  ON w.winner_id = t.candidate_id;
