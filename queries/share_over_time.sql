-- How the result came about: each candidate's votes by the time on the ballots, added up over stretches of 10 seconds.
-- A stretch of fewer than 10 ballots is told together with the next, so that no step shows how one voter chose.
CREATE VIEW votes_by_time AS
SELECT date_bin(INTERVAL '10 seconds', voting_time) AS stretch, candidate_id, COUNT(*) AS votes, MAX(voting_time) AS newest
FROM votes
GROUP BY 1, 2;

CREATE VIEW standings_by_time AS
SELECT stretch, time, candidate_id, candidate_name, votes, SUM(votes) OVER (PARTITION BY stretch) AS counted
FROM (SELECT s.stretch, s.time, s.added, c.candidate_id, c.candidate_name,
             SUM(COALESCE(v.votes, 0)) OVER (PARTITION BY c.candidate_id ORDER BY s.stretch) AS votes
      FROM (SELECT stretch, MAX(newest) AS time, SUM(votes) AS added FROM votes_by_time GROUP BY stretch) s
      CROSS JOIN candidates c
      LEFT JOIN votes_by_time v ON v.stretch = s.stretch AND v.candidate_id = c.candidate_id) t
WHERE added >= 10;

-- Points of a chart: every stretch in the first half hour, then fewer, so that a long night has no more.
CREATE MATERIALIZED VIEW share_over_time
WITH (topic = 'aggregated_share_over_time', key = 'stretch, candidate_id') AS
SELECT stretch, candidate_id, time, votes, counted, ROUND(100.0 * votes / counted, 2) AS share_pct
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY candidate_id, point ORDER BY stretch DESC) AS newest_first
      FROM (SELECT *, CASE WHEN span <= INTERVAL '30 minutes' THEN stretch
                           WHEN span <= INTERVAL '3 hours' THEN date_bin(INTERVAL '1 minute', stretch)
                           WHEN span <= INTERVAL '15 hours' THEN date_bin(INTERVAL '5 minutes', stretch)
                           ELSE date_bin(INTERVAL '30 minutes', stretch) END AS point
            FROM (SELECT *, MAX(stretch) OVER () - MIN(stretch) OVER () AS span FROM standings_by_time) a) b) c
WHERE newest_first = 1;
