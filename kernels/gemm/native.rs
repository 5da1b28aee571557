//! The cpu device's functions.
