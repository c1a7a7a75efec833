-- The result of each place that has declared, candidate by candidate. A place comes whole or not at all: while it
-- counts, nothing tells how its ballots fall.
CREATE MATERIALIZED VIEW place_results
WITH (topic = 'aggregated_place_results', key = 'place, candidate_id', secret_by = 'place', counted_in = 'votes') AS
SELECT place, candidate_id, candidate_name, party_affiliation, votes,
       ROUND(100.0 * votes / counted, 2) AS share_pct,
       ROUND(100.0 * votes / counted - previous_pct, 2) AS change_points,
       ROW_NUMBER() OVER (PARTITION BY place ORDER BY votes DESC, candidate_id) AS rank
FROM (SELECT p.place, p.counted, c.candidate_id, c.candidate_name, c.party_affiliation,
             COALESCE(v.votes, 0) AS votes, 100.0 * b.votes / b.of AS previous_pct
      FROM count_by_place p
      CROSS JOIN candidates c
      LEFT JOIN votes_by_place v ON v.place = p.place AND v.candidate_id = c.candidate_id
      LEFT JOIN (SELECT place, party_affiliation, votes, SUM(votes) OVER (PARTITION BY place) AS of
                 FROM previous_results) b
        ON b.place = p.place AND b.party_affiliation = c.party_affiliation
      WHERE p.declared) t;
