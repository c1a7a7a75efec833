-- Revenue by country; each changed row is written to a topic too.
CREATE MATERIALIZED VIEW revenue
WITH (topic = 'revenue', key = 'country') AS
SELECT country, COUNT(*) AS orders, SUM(amount) AS revenue
FROM orders GROUP BY country;

-- Orders that wait for their shipment. A row goes when it comes.
CREATE MATERIALIZED VIEW open_orders
WITH (access = 'public') AS
SELECT o.order_id, o.customer, o.ordered_at
FROM orders o
WHERE NOT EXISTS (SELECT 1 FROM shipments s WHERE s.order_id = o.order_id);

-- How fast the carriers are.
CREATE MATERIALIZED VIEW carriers AS
SELECT s.carrier, COUNT(*) AS shipments,
       ROUND(AVG(EXTRACT(EPOCH FROM s.shipped_at - o.ordered_at) / 3600), 1) AS hours
FROM shipments s JOIN orders o ON o.order_id = s.order_id
GROUP BY s.carrier;
