-- The election in one row: how many are registered and have voted, how much is counted, who leads, and by how much.
CREATE VIEW ranked_candidates AS
SELECT candidate_id, candidate_name, party_affiliation, photo_url, total_votes,
       ROW_NUMBER() OVER (ORDER BY total_votes DESC, candidate_id) AS place
FROM votes_per_candidate;

CREATE MATERIALIZED VIEW election_summary
WITH (topic = 'aggregated_election_summary', key = 'election', complete_when = 'is_complete') AS
SELECT 'election' AS election,
       r.registered, k.candidates, t.votes_cast,
       CASE WHEN r.registered > 0 THEN ROUND(100.0 * t.votes_cast / r.registered, 2) END AS turnout_pct,
       l.turnout_pct AS previous_turnout_pct,
       first.candidate_id      AS leader_id,
       first.candidate_name    AS leader_name,
       first.party_affiliation AS leader_party,
       first.photo_url         AS leader_photo_url,
       first.total_votes       AS leader_votes,
       second.candidate_id     AS second_id,
       second.candidate_name   AS second_name,
       second.total_votes      AS second_votes,
       first.total_votes - COALESCE(second.total_votes, 0) AS margin_votes,
       ROUND(100.0 * (first.total_votes - COALESCE(second.total_votes, 0)) / t.votes_cast, 2) AS margin_points,
       t.last_vote_at, p.places, p.places_declared, p.ballots_expected,
       GREATEST(p.ballots_expected - t.votes_cast, 0) AS ballots_outstanding,
       ROUND(LEAST(100.0 * t.votes_cast / p.ballots_expected, 100), 2) AS counted_pct,
       t.votes_cast >= p.ballots_expected AS is_complete
FROM (SELECT COUNT(*) AS registered FROM voters) r
CROSS JOIN (SELECT COUNT(*) AS candidates FROM candidates) k
CROSS JOIN (SELECT COUNT(*) AS votes_cast, MAX(voting_time) AS last_vote_at FROM votes) t
CROSS JOIN (SELECT COUNT(*) AS places, COUNT(*) FILTER (WHERE declared) AS places_declared,
                   CASE WHEN COUNT(ballots_expected) = COUNT(*) THEN SUM(ballots_expected) END AS ballots_expected
            FROM count_by_place) p
CROSS JOIN (SELECT ROUND(100.0 * SUM(voted) / SUM(registered), 2) AS turnout_pct FROM previous_turnout) l
LEFT JOIN ranked_candidates first  ON first.place = 1 AND first.total_votes > 0
LEFT JOIN ranked_candidates second ON second.place = 2 AND first.total_votes > 0;
