-- TPC-H's eight tables. Two are reference tables; the six others are sources that take rows back, of each kind.
CREATE EXTERNAL TABLE region (r_regionkey BIGINT, r_name VARCHAR, r_comment VARCHAR)
STORED AS CSV LOCATION 'region.csv';

CREATE EXTERNAL TABLE nation (n_nationkey BIGINT, n_name VARCHAR, n_regionkey BIGINT, n_comment VARCHAR)
STORED AS CSV LOCATION 'nation.csv';

CREATE UNBOUNDED EXTERNAL TABLE supplier (
  s_suppkey BIGINT PRIMARY KEY, s_name VARCHAR, s_address VARCHAR, s_nationkey BIGINT, s_phone VARCHAR,
  s_acctbal DECIMAL(15, 2), s_comment VARCHAR
) STORED AS KAFKA LOCATION 'supplier' OPTIONS ('on_conflict' 'replace');

CREATE UNBOUNDED EXTERNAL TABLE part (
  p_partkey BIGINT PRIMARY KEY, p_name VARCHAR, p_mfgr VARCHAR, p_brand VARCHAR, p_type VARCHAR, p_size INT,
  p_container VARCHAR, p_retailprice DECIMAL(15, 2), p_comment VARCHAR
) STORED AS KAFKA LOCATION 'part' OPTIONS ('on_conflict' 'replace');

CREATE UNBOUNDED EXTERNAL TABLE partsupp (
  ps_partkey BIGINT, ps_suppkey BIGINT, ps_availqty INT, ps_supplycost DECIMAL(15, 2), ps_comment VARCHAR
) STORED AS KAFKA LOCATION 'partsupp' OPTIONS ('format' 'debezium-json');

CREATE UNBOUNDED EXTERNAL TABLE customer (
  c_custkey BIGINT PRIMARY KEY, c_name VARCHAR, c_address VARCHAR, c_nationkey BIGINT, c_phone VARCHAR,
  c_acctbal DECIMAL(15, 2), c_mktsegment VARCHAR, c_comment VARCHAR
) STORED AS KAFKA LOCATION 'customer' OPTIONS ('format' 'debezium-json');

CREATE UNBOUNDED EXTERNAL TABLE orders (
  o_orderkey BIGINT PRIMARY KEY, o_custkey BIGINT, o_orderstatus VARCHAR, o_totalprice DECIMAL(15, 2),
  o_orderdate DATE, o_orderpriority VARCHAR, o_clerk VARCHAR, o_shippriority INT, o_comment VARCHAR
) STORED AS KAFKA LOCATION 'orders' OPTIONS ('format' 'debezium-json');

CREATE UNBOUNDED EXTERNAL TABLE lineitem (
  l_orderkey BIGINT, l_partkey BIGINT, l_suppkey BIGINT, l_linenumber INT, l_quantity DECIMAL(15, 2),
  l_extendedprice DECIMAL(15, 2), l_discount DECIMAL(15, 2), l_tax DECIMAL(15, 2), l_returnflag VARCHAR,
  l_linestatus VARCHAR, l_shipdate DATE, l_commitdate DATE, l_receiptdate DATE, l_shipinstruct VARCHAR,
  l_shipmode VARCHAR, l_comment VARCHAR, PRIMARY KEY (l_orderkey, l_linenumber)
) STORED AS KAFKA LOCATION 'lineitem' OPTIONS ('on_conflict' 'replace');
