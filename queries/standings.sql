-- The ranked list: every candidate with votes, share, and change from the election before in points.
CREATE MATERIALIZED VIEW standings
WITH (topic = 'aggregated_standings', key = 'candidate_id', secret_by = '', counted_in = 'votes') AS
SELECT t.candidate_id, t.candidate_name, t.party_affiliation, t.photo_url, t.votes, t.share_pct,
       ROUND(b.share_pct, 2) AS previous_pct, ROUND(t.share_pct - b.share_pct, 2) AS change_points,
       ROW_NUMBER() OVER (ORDER BY t.votes DESC, t.candidate_id) AS rank
FROM (SELECT candidate_id, candidate_name, party_affiliation, photo_url, total_votes AS votes,
             ROUND(100.0 * total_votes / NULLIF(SUM(total_votes) OVER (), 0), 2) AS share_pct
      FROM votes_per_candidate) t
LEFT JOIN previous_shares b ON b.party_affiliation = t.party_affiliation;

-- The same in few columns, and as it was in earlier releases: the lines of a chart.
CREATE MATERIALIZED VIEW vote_shares
WITH (key = 'candidate_id', secret_by = '', counted_in = 'votes', history = '300') AS
SELECT candidate_id, votes, share_pct FROM standings;
