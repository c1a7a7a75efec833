-- What happened, for a ticker: a place declared, another candidate took the lead, the election is decided, all ballots
-- are counted.
CREATE MATERIALIZED VIEW election_events
WITH (topic = 'aggregated_election_events', key = 'event, subject') AS
SELECT 'declared' AS event, place AS subject, declared_at AS time, place, winner_id AS candidate_id,
       place || COALESCE(': ' || winner_name || CASE WHEN gain THEN ' gains it with ' ELSE ' wins with ' END
         || CAST(ROUND(winner_pct, 1) AS VARCHAR) || ' %', ': the first two are level') AS headline
FROM place_overview WHERE state = 'declared'
UNION ALL
SELECT 'lead', CAST(stretch AS VARCHAR), time, NULL, leader_id,
       leader_name || CASE WHEN leader_before IS NULL THEN ' takes an early lead' ELSE ' takes the lead' END
FROM (SELECT *, LAG(leader_id) OVER (ORDER BY stretch) AS leader_before FROM lead_by_time WHERE leader_id IS NOT NULL) l
WHERE leader_id IS DISTINCT FROM leader_before
UNION ALL
SELECT call, 'election', since, NULL, CASE WHEN NOT tie THEN leader_id END, headline
FROM election_call WHERE call IN ('elected', 'final');
