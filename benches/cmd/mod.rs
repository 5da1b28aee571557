//! The subcommands, one file each.

pub mod bench;
pub mod check;
pub mod compile;
pub mod devices;
pub mod doctor;
pub mod run;
pub mod tune;
pub mod tuned;

use std::fmt;
use std::io::{self, Write};

use ropeway_core::Result;

/// Writes a line to standard output. A reader that has gone (`ropeway … | head`) is no failure.
///
/// # Errors
/// `File` if it cannot be written otherwise.
pub fn print_line(text: impl fmt::Display) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
