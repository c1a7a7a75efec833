//! The engine without Kafka or Postgres.
