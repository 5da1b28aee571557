//! What a PTX text says, decoded.

use super::instruction::{Constant, Instruction, Reg};
use super::operands::Operands;

/// A decoded PTX text.
#[derive(Debug, Default)]
pub struct Module {
    /// `.version`, major and minor.
    pub version: (u32, u32),
    /// `.target`, its first word (`sm_90a`).
    pub target: String,
    /// Variables in global and constant memory, in order.
    pub variables: Vec<Variable>,
    /// Entries, in order.
    pub functions: Vec<Function>,
}

impl Module {
    /// The entry of this name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }

    /// The number of the target (`90` of `sm_90a`) and whether it is for that architecture alone (the letter).
    pub fn architecture(&self) -> Option<(u32, bool)> {
        let rest = self.target.strip_prefix("sm_")?;
        let digits = rest.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        Some((digits.parse().ok()?, digits.len() < rest.len()))
    }
}

/// A part of a variable's initial value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The address of a variable, by its number, and an offset in bytes.
    Address(usize, i64),
}

/// A variable in global or constant memory.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Whether it lies in constant memory, which kernels may not write.
    pub constant: bool,
    /// Its alignment in bytes.
    pub align: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its initial value; what follows is zero.
    pub initial: Vec<Initial>,
}

/// A parameter of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Where it lies in the parameter buffer.
    pub offset: u32,
    /// Its size in bytes.
    pub bytes: u32,
}

/// An entry, decoded.
#[derive(Debug, Default)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Bytes of the parameter buffer.
    pub parameter_bytes: u32,
    /// Registers, with those that hold constants.
    pub registers: u32,
    /// The registers that hold constants.
    pub constants: Vec<(Reg, Constant)>,
    /// Predicate registers.
    pub predicates: u32,
    /// The instructions; targets of branches are indices into them.
    pub code: Vec<Instruction>,
    /// Bytes of shared memory that it declares; dynamic shared memory begins after them.
    pub shared_bytes: u32,
    /// The alignment that it declares for dynamic shared memory.
    pub dynamic_align: u32,
    /// Bytes of local memory, a thread.
    pub local_bytes: u32,
    /// `.maxntid` or `.reqntid`: the largest block it may be launched with.
    pub max_threads: Option<u32>,
    /// `.reqnctapercluster`: the blocks of a cluster along each axis.
    pub cluster: Option<[u32; 3]>,
    /// Where products of warpgroups are issued: what each instruction reads and writes, by which what they have in flight is watched.
    pub operands: Vec<Operands>,
}

impl Function {
    /// Where dynamic shared memory begins.
    pub fn dynamic_shared(&self) -> u32 {
        self.shared_bytes
            .next_multiple_of(self.dynamic_align.max(16))
    }
}
