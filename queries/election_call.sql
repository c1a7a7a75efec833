-- What can be said of the result: nobody leads yet (waiting), someone leads (leading) by less than half a point
-- (too_close), by more than all ballots still to come (elected), or all are counted (final); and the same as a sentence.
CREATE MATERIALIZED VIEW election_call
WITH (topic = 'aggregated_election_call', key = 'election') AS
SELECT election, call, leader_id, tie, votes_to_win,
       CASE call
         WHEN 'waiting' THEN 'No ballot has been counted yet.'
         WHEN 'final' THEN CASE WHEN tie THEN leader_name || ' and ' || second_name || ' are level with ' || leader_text || ' votes each.'
                                ELSE leader_name || ' is elected, ' || margin_text || ' ahead of ' || second_name || '.' END
         WHEN 'elected' THEN leader_name || ' is elected: no longer can anyone catch up.'
         ELSE CASE WHEN tie THEN leader_name || ' and ' || second_name || ' are level'
                   ELSE leader_name || ' leads by ' || margin_text END
              || COALESCE(' with ' || to_come || ' of the ballots still to come', '') || '.'
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
      FROM election_summary s) n;

-- Who leads, and how certainly: each change of it is kept, with the time of its release.
CREATE MATERIALIZED VIEW election_lead
WITH (topic = 'aggregated_election_lead', key = 'election', history = '500') AS
SELECT election, call, CASE WHEN NOT tie THEN leader_id END AS leader_id
FROM election_call;
