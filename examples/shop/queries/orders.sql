-- Orders as they come in, and the rules that an order must keep.
CREATE UNBOUNDED EXTERNAL TABLE orders (
  order_id   VARCHAR        NOT NULL,
  customer   VARCHAR        NOT NULL,
  country    VARCHAR        NOT NULL,
  amount     DECIMAL(10, 2) NOT NULL,
  ordered_at TIMESTAMP      NOT NULL,
  PRIMARY KEY (order_id), -- an order that is sent twice counts once
  CHECK (amount > 0)
) STORED AS KAFKA LOCATION 'orders'
OPTIONS ('dead_letter_topic' 'orders_rejected');
