-- What the views about places are made of.

-- Voters registered in each place.
CREATE VIEW registered_by_place AS
SELECT address_state AS place, COUNT(*) AS registered FROM voters GROUP BY address_state;

-- Votes of each candidate in each place, and the time of the newest. It is the operator's: no one else sees how a place's
-- ballots fall while it counts. Releases look here for whose ballots came in which of them, so that nobody can subtract a
-- declared place from two totals and be left with a few ballots.
CREATE MATERIALIZED VIEW votes_by_place
WITH (access = 'operator', key = 'place, candidate_id', secret_by = 'place', counted_in = 'votes') AS
SELECT v.address_state AS place, b.candidate_id, COUNT(*) AS votes, MAX(b.voting_time) AS newest
FROM votes b JOIN voters v ON v.voter_id = b.voter_id
GROUP BY v.address_state, b.candidate_id;

-- How far each place has come. It declares when all its ballots are counted; a place with fewer than 10 does not,
-- for its result would tell too much.
CREATE VIEW count_by_place AS
SELECT p.place, p.code, p.region, p.tile_column, p.tile_row, r.registered, p.ballots_expected,
       COALESCE(t.counted, 0) AS counted, t.newest,
       COALESCE(p.ballots_expected >= 10 AND t.counted >= p.ballots_expected, FALSE) AS declared
FROM places p
JOIN registered_by_place r ON r.place = p.place
LEFT JOIN (SELECT place, SUM(votes) AS counted, MAX(newest) AS newest FROM votes_by_place GROUP BY place) t
  ON t.place = p.place
WHERE p.ballots_expected IS NULL OR p.ballots_expected > 0;

-- Who voted at the election before, of how many.
CREATE VIEW previous_turnout AS
SELECT r.place, r.registered, b.voted
FROM previous_registers r
JOIN (SELECT place, SUM(votes) AS voted FROM previous_results GROUP BY place) b ON b.place = r.place;

-- What the election before was like, as a whole.
CREATE VIEW previous_shares AS
SELECT party_affiliation, 100.0 * SUM(votes) / NULLIF((SELECT SUM(votes) FROM previous_results), 0) AS share_pct
FROM previous_results GROUP BY party_affiliation;
