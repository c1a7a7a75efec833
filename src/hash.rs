//! Hashes that tell contents apart, whoever made them.

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// The hash of some parts, each with its length, so that no other parts have the same bytes; one that is missing is
/// none that is empty.
pub fn hash_parts<'a>(parts: impl IntoIterator<Item = Option<&'a [u8]>>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        hasher.update(part.unwrap_or_default());
    }
    *hasher.finalize().as_bytes()
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
