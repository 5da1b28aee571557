//! The front end: PTX text, as NVRTC 12.9 and 13.0 write it, decoded once into a compact form.
//!
//! [`lexer`] splits the text, [`parser`] reads directives and resolves names, [`decode`] turns each instruction into an
//! [`instruction::Op`] with every type and modifier settled. What is not accepted is an [`Error`] that names the line.

mod builder;
pub mod decode;
pub mod instruction;
pub mod lexer;
pub mod module;
pub mod operands;
pub mod operation;
pub mod parser;

use std::fmt;

pub use module::{Function, Module};

/// Why a text is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The line, counted from 1.
    pub line: u32,
    /// What is wrong, or what is not accepted.
    pub message: String,
}

impl Error {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Error {
        Error {
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Error {}

impl Module {
    /// Reads and decodes a text.
    ///
    /// # Errors
    /// The first thing that is malformed or not accepted, with its line.
    pub fn parse(text: &str) -> Result<Module, Error> {
        parser::parse(text)
    }
}
