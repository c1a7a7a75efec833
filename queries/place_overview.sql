-- Every place: where it is on the map, how far its count has come, and once it has declared, who won: nobody where the
-- first two are level. Until then the count is told in steps of a quarter only. `secret_by` as in place_results, so that a
-- place comes in both at once.
CREATE MATERIALIZED VIEW place_overview
WITH (topic = 'aggregated_place_overview', key = 'place', secret_by = 'place', counted_in = 'ballots') AS
SELECT p.place, p.code, p.region, p.tile_column, p.tile_row, p.registered, p.ballots_expected,
       CASE WHEN p.declared THEN 'declared' WHEN p.counted > 0 THEN 'counting' ELSE 'waiting' END AS state,
       CASE WHEN p.declared THEN 100 ELSE COALESCE(LEAST(75, 25 * (4 * p.counted / p.ballots_expected)), 0) END AS counted_pct,
       CASE WHEN p.declared THEN p.newest END AS declared_at,
       CASE WHEN p.declared THEN p.counted END AS ballots,
       CASE WHEN p.declared THEN ROUND(100.0 * p.counted / p.registered, 2) END AS turnout_pct,
       w.candidate_id AS winner_id, w.candidate_name AS winner_name, w.party_affiliation AS winner_party,
       w.votes AS winner_votes, w.share_pct AS winner_pct, w.margin_votes, w.margin_points,
       ROUND(100.0 * t.voted / t.registered, 2) AS previous_turnout_pct,
       before.party_affiliation AS previous_party,
       w.party_affiliation <> before.party_affiliation AS gain
FROM count_by_place p
LEFT JOIN (SELECT first.*, first.votes - COALESCE(second.votes, 0) AS margin_votes,
                  ROUND(first.share_pct - COALESCE(second.share_pct, 0), 2) AS margin_points
           FROM place_results first
           LEFT JOIN place_results second ON second.place = first.place AND second.rank = 2
           WHERE first.rank = 1) w ON w.place = p.place AND w.margin_votes > 0
LEFT JOIN previous_turnout t ON t.place = p.place
LEFT JOIN (SELECT place, party_affiliation,
                  ROW_NUMBER() OVER (PARTITION BY place ORDER BY votes DESC, party_affiliation) AS rank
           FROM previous_results) before ON before.place = p.place AND before.rank = 1;
