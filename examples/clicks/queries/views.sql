-- A visit, once it is over.
CREATE MATERIALIZED VIEW visits
WITH (mode = 'append', topic = 'visits', access = 'public') AS
SELECT visitor, window_start, window_end, COUNT(*) AS clicks
FROM session(clicks, at, INTERVAL '30 minutes', visitor)
GROUP BY visitor, window_start, window_end;

-- The same while it grows.
CREATE MATERIALIZED VIEW visits_now
WITH (access = 'public') AS
SELECT visitor, window_start, window_end, COUNT(*) AS clicks,
       BOOL_OR(page = '/thanks') AS bought
FROM session(clicks, at, INTERVAL '30 minutes', visitor)
GROUP BY visitor, window_start, window_end;

-- The three pages of each ten minutes that were clicked most.
CREATE MATERIALIZED VIEW top_pages AS
SELECT window_start, place, page, clicks
FROM (
  SELECT window_start, page, clicks,
         ROW_NUMBER() OVER (PARTITION BY window_start ORDER BY clicks DESC, page) AS place
  FROM (
    SELECT window_start, page, COUNT(*) AS clicks
    FROM tumble(clicks, at, INTERVAL '10 minutes')
    GROUP BY window_start, page
  )
)
WHERE place <= 3;

-- How many visits end with an order.
CREATE MATERIALIZED VIEW conversion AS
SELECT COUNT(*) AS visits, COUNT(*) FILTER (WHERE bought) AS orders FROM visits_now;
