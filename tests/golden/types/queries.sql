-- Every type that a message can hold.
CREATE UNBOUNDED EXTERNAL TABLE readings (
  id BIGINT, small TINYINT, count BIGINT UNSIGNED, ratio REAL, exact DOUBLE, price DECIMAL(12, 3), ok BOOLEAN,
  day DATE, hour TIME, at TIMESTAMP, zoned TIMESTAMP WITH TIME ZONE, picture BYTEA, raw VARCHAR,
  tags VARCHAR[], place STRUCT<city VARCHAR, geo STRUCT<lat DOUBLE, lon DOUBLE>>, counts MAP(VARCHAR, BIGINT)
) STORED AS KAFKA LOCATION 'readings';

CREATE MATERIALIZED VIEW as_read AS SELECT * FROM readings;

CREATE MATERIALIZED VIEW extremes AS
SELECT ok, COUNT(*) AS n, SUM(price) AS price, MIN(day) AS first_day, MAX(hour) AS last_hour, MAX(zoned) AS newest,
       MAX(place['geo']['lat']) AS north, COUNT(DISTINCT raw) AS texts, SUM(counts['red']) AS red
FROM readings GROUP BY ok;

CREATE UNBOUNDED EXTERNAL TABLE ticks (id BIGINT, at TIMESTAMP) STORED AS KAFKA LOCATION 'ticks'
OPTIONS ('timestamp_format' 'epoch_ms');

CREATE MATERIALIZED VIEW ticks_as_read AS SELECT * FROM ticks;
