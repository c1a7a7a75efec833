CREATE UNBOUNDED EXTERNAL TABLE clicks (
  visitor VARCHAR   NOT NULL,
  page    VARCHAR   NOT NULL,
  at      TIMESTAMP NOT NULL
) STORED AS KAFKA LOCATION 'clicks'
OPTIONS ('event_time' 'at', 'watermark' '1 minute', 'idle_timeout' '10 seconds', 'dead_letter_topic' 'clicks_rejected');
