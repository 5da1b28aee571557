//! The subcommands, one file each.

pub mod devices;
pub mod doctor;
pub mod run;
