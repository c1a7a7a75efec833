-- The parts that make up a notable share of a nation's stock.
CREATE MATERIALIZED VIEW q11 AS
SELECT ps_partkey, SUM(ps_supplycost * ps_availqty) AS value
FROM partsupp, supplier, nation
WHERE s_suppkey = ps_suppkey AND n_nationkey = s_nationkey AND n_name = 'GERMANY'
GROUP BY ps_partkey
HAVING SUM(ps_supplycost * ps_availqty) > (
  SELECT SUM(ps_supplycost * ps_availqty) * 0.03
  FROM partsupp, supplier, nation
  WHERE s_suppkey = ps_suppkey AND n_nationkey = s_nationkey AND n_name = 'GERMANY')
ORDER BY value DESC, ps_partkey;
