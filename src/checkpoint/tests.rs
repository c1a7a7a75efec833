//! Torn, damaged and missing objects.
