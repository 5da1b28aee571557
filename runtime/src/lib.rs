//! One compute backend for any chip.
