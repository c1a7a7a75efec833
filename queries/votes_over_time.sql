-- Votes in each minute, by the time on the ballot.
CREATE MATERIALIZED VIEW votes_over_time
WITH (topic = 'aggregated_votes_over_time', key = 'minute') AS
SELECT date_bin(INTERVAL '1 minute', voting_time) AS minute, COUNT(*) AS votes
FROM votes
GROUP BY 1;
