//! Hashes that tell contents apart, whoever made them.

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
