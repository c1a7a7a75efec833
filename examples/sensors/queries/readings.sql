CREATE UNBOUNDED EXTERNAL TABLE readings (
  station VARCHAR   NOT NULL,
  celsius DOUBLE    NOT NULL,
  at      TIMESTAMP NOT NULL,
  FOREIGN KEY (station) REFERENCES stations (station),
  CHECK (celsius BETWEEN -90 AND 60)
) STORED AS KAFKA LOCATION 'readings'
OPTIONS ('event_time' 'at', 'watermark' '30 seconds', 'idle_timeout' '10 seconds',
         'dead_letter_topic' 'readings_rejected');

-- A Postgres table: `tally check`, `test`, `replay` and `dev` know its columns from here.
CREATE EXTERNAL TABLE stations (station VARCHAR, place VARCHAR, alarm_above DOUBLE)
STORED AS CSV LOCATION 'data/stations.csv';
