-- What can be said of the result: nobody leads yet (waiting), someone leads (leading) by less than half a point
-- (too_close), by more than all ballots still to come (elected), or all are counted (final); with the time since
-- when that holds, and the same as a sentence.
CREATE VIEW lead_by_time AS
SELECT stretch, time, counted, margin,
       CASE WHEN margin > 0 THEN candidate_id END AS leader_id, CASE WHEN margin > 0 THEN candidate_name END AS leader_name
FROM (SELECT stretch, time, counted, candidate_id, candidate_name,
             votes - COALESCE(LEAD(votes) OVER (PARTITION BY stretch ORDER BY votes DESC, candidate_id), 0) AS margin,
             ROW_NUMBER() OVER (PARTITION BY stretch ORDER BY votes DESC, candidate_id) AS rank
      FROM standings_by_time) t
WHERE rank = 1;

CREATE VIEW call_by_time AS
SELECT t.stretch, t.time, t.leader_id,
       CASE WHEN t.counted >= s.ballots_expected THEN 'final'
            WHEN t.margin > s.ballots_expected - t.counted THEN 'elected'
            WHEN t.margin * 200 < t.counted THEN 'too_close'
            ELSE 'leading' END AS call
FROM lead_by_time t CROSS JOIN election_summary s;

CREATE MATERIALIZED VIEW election_call
WITH (topic = 'aggregated_election_call', key = 'election') AS
SELECT n.election, n.call, COALESCE(t.since, n.last_vote_at) AS since, n.leader_id, n.tie,
       n.votes_to_win,
       CASE n.call
         WHEN 'waiting' THEN 'No ballot has been counted yet.'
         WHEN 'final' THEN CASE WHEN n.tie THEN n.leader_name || ' and ' || n.second_name || ' are level with ' || n.leader_text || ' votes each.'
                                ELSE n.leader_name || ' is elected, ' || n.margin_text || ' ahead of ' || n.second_name || '.' END
         WHEN 'elected' THEN n.leader_name || ' is elected: no longer can anyone catch up.'
         ELSE CASE WHEN n.tie THEN n.leader_name || ' and ' || n.second_name || ' are level'
                   ELSE n.leader_name || ' leads by ' || n.margin_text END
              || COALESCE(' with ' || n.to_come || ' of the ballots still to come', '') || '.'
       END AS headline
FROM (SELECT s.*,
             CASE WHEN leader_id IS NULL THEN 'waiting'
                  WHEN votes_cast >= ballots_expected THEN 'final'
                  WHEN margin_votes > ballots_outstanding THEN 'elected'
                  WHEN margin_votes * 200 < votes_cast THEN 'too_close'
                  ELSE 'leading' END AS call,
             COALESCE(margin_votes = 0, FALSE) AS tie,
             (leader_votes + COALESCE(second_votes, 0) + ballots_outstanding) / 2 + 1 AS votes_to_win,
             -- Digits in groups of three.
             ltrim(reverse(regexp_replace(reverse(CAST(leader_votes AS VARCHAR)), '([0-9]{3})', '\1,', 'g')), ',') AS leader_text,
             ltrim(reverse(regexp_replace(reverse(CAST(margin_votes AS VARCHAR)), '([0-9]{3})', '\1,', 'g')), ',')
               || CASE margin_votes WHEN 1 THEN ' vote' ELSE ' votes' END AS margin_text,
             CASE WHEN counted_pct > 99 THEN 'less than 1 %'
                  ELSE CAST(CAST(ROUND(100 - counted_pct) AS INT) AS VARCHAR) || ' %' END AS to_come
      FROM election_summary s) n
LEFT JOIN (SELECT leader_id, call, time AS since,
                  ROW_NUMBER() OVER (ORDER BY stretch DESC) AS newest_first
           FROM (SELECT stretch, time, leader_id, call,
                        LAG(leader_id) OVER (ORDER BY stretch) AS leader_before, LAG(call) OVER (ORDER BY stretch) AS call_before
                 FROM call_by_time) c
           WHERE (leader_id IS DISTINCT FROM leader_before) OR (call IS DISTINCT FROM call_before)) t
  ON t.newest_first = 1 AND t.call = n.call AND t.leader_id = n.leader_id;
