-- Who joined and opened an auction in the same ten seconds.
CREATE MATERIALIZED VIEW q8 AS
SELECT p.id, p.name, p.window_start
FROM (
  SELECT id, name, window_start FROM tumble(person, date_time, INTERVAL '10 seconds')
  GROUP BY id, name, window_start) p
JOIN (
  SELECT seller, window_start FROM tumble(auction, date_time, INTERVAL '10 seconds')
  GROUP BY seller, window_start) a ON a.seller = p.id AND a.window_start = p.window_start;
