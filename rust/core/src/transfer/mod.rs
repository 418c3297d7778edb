//! Prompts that are computed here and generated from elsewhere, or the reverse.

pub mod ids;
