-- What the carriers report.
CREATE UNBOUNDED EXTERNAL TABLE shipments (
  order_id   VARCHAR   NOT NULL,
  carrier    VARCHAR   NOT NULL,
  shipped_at TIMESTAMP NOT NULL,
  PRIMARY KEY (order_id)
) STORED AS KAFKA LOCATION 'shipments'
OPTIONS ('dead_letter_topic' 'shipments_rejected');
