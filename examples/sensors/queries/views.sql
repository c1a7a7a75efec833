-- The mean of each minute, written once, when no reading of it can come any more.
CREATE MATERIALIZED VIEW minutes
WITH (mode = 'append', topic = 'minutes', access = 'public') AS
SELECT s.place, r.window_start AS minute, COUNT(*) AS readings, ROUND(AVG(r.celsius), 2) AS mean
FROM tumble(readings, at, INTERVAL '1 minute') r JOIN stations s ON s.station = r.station
GROUP BY s.place, r.window_start;

-- What is known of the present minutes.
CREATE MATERIALIZED VIEW minutes_now AS
SELECT window_start AS minute, COUNT(*) AS readings, MIN(celsius) AS lowest, MAX(celsius) AS highest
FROM tumble(readings, at, INTERVAL '1 minute')
GROUP BY window_start;

-- Readings above what the station may have; nothing is kept of them.
CREATE MATERIALIZED VIEW alarms
WITH (topic = 'alarms', access = 'public') AS
SELECT s.place, r.celsius, r.at
FROM readings r JOIN stations s ON s.station = r.station
WHERE r.celsius > s.alarm_above;

-- All readings, whenever they came.
CREATE MATERIALIZED VIEW stations_seen AS
SELECT station, COUNT(*) AS readings, MAX(at) AS newest FROM readings GROUP BY station;
