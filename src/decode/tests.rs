//! Decoding and rules.
