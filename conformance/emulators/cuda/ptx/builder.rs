//! A function while it is read: its names, scopes and branches.

use std::collections::HashMap;

use super::Error;
use super::instruction::{Constant, Op, Pred, Reg};
use super::module::Function;

/// A register or predicate, by what `.reg` declared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Register {
    /// A register of so many bits.
    Value(Reg, u8),
    /// A predicate.
    Predicate(Pred),
}

/// Where a variable lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Shared { align: u32, bytes: u32 },
    DynamicShared { align: u32 },
    Variable(usize),
}

/// What `{` opens: its registers, its labels, and branches whose label has not come yet.
#[derive(Default)]
pub(super) struct Scope {
    registers: HashMap<String, Register>,
    /// `%r<30>`: the prefix, how many, the first.
    ranges: HashMap<String, (u32, Register)>,
    pub(super) labels: HashMap<String, u32>,
    /// Instruction, which of its targets, label, line.
    pub(super) jumps: Vec<(usize, usize, String, u32)>,
    pub(super) tables: HashMap<String, Vec<String>>,
}

/// A function while it is read.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) function: Function,
    pub(super) scopes: Vec<Scope>,
    pub(super) constants: HashMap<Constant, Reg>,
    pub(super) local: HashMap<String, u32>,
    pub(super) shared: HashMap<String, u32>,
    pub(super) own_shared: HashMap<String, (u32, u32)>,
}

impl Builder {
    /// The register that holds a constant.
    pub(super) fn constant(&mut self, constant: Constant) -> Reg {
        let function = &mut self.function;
        *self.constants.entry(constant).or_insert_with(|| {
            let register = function.registers;
            function.registers += 1;
            function.constants.push((register, constant));
            register
        })
    }

    /// A register of this name in the scopes that are open.
    pub(super) fn register(&self, name: &str) -> Option<Register> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(name.len() - digits);
        for scope in self.scopes.iter().rev() {
            if let Some(register) = scope.registers.get(name) {
                return Some(*register);
            }
            if let (Some((count, first)), Ok(number)) =
                (scope.ranges.get(prefix), number.parse::<u32>())
                && number < *count
            {
                return Some(match *first {
                    Register::Value(first, bits) => Register::Value(first + number, bits),
                    Register::Predicate(first) => Register::Predicate(first + number),
                });
            }
        }
        None
    }

    /// A constant that is the address of this name, if it is a variable or parameter.
    pub(super) fn address(
        &mut self,
        globals: &HashMap<String, Place>,
        name: &str,
        offset: i64,
    ) -> Option<Constant> {
        let moved = |base: u32| (i64::from(base) + offset) as u32;
        if let Some(parameter) = self.function.parameters.iter().find(|p| p.name == name) {
            return Some(Constant::Parameter(moved(parameter.offset)));
        }
        if let Some(base) = self.local.get(name) {
            return Some(Constant::Local(moved(*base)));
        }
        if let Some(base) = self.shared.get(name) {
            return Some(Constant::Shared(moved(*base)));
        }
        let (align, bytes) = match (self.own_shared.get(name), globals.get(name)) {
            (Some(own), _) => *own,
            (None, Some(Place::Shared { align, bytes })) => (*align, *bytes),
            (None, Some(Place::DynamicShared { align })) if offset == 0 => {
                let most = &mut self.function.dynamic_align;
                *most = (*most).max(*align);
                return Some(Constant::DynamicShared);
            }
            (None, Some(Place::DynamicShared { .. })) => return None,
            (None, Some(Place::Variable(number))) => {
                return Some(Constant::Variable(*number, offset));
            }
            (None, None) => return None,
        };
        let base = self.function.shared_bytes.next_multiple_of(align.max(1));
        self.function.shared_bytes = base + bytes;
        self.shared.insert(name.to_owned(), base);
        Some(Constant::Shared(moved(base)))
    }

    pub(super) fn declare(
        &mut self,
        prefix: &str,
        count: Option<u32>,
        ty: &str,
        line: u32,
    ) -> Result<(), Error> {
        let first = if ty == "pred" {
            let first = self.function.predicates;
            self.function.predicates += count.unwrap_or(1);
            Register::Predicate(first)
        } else {
            let bits = type_bits(ty).filter(|bits| *bits <= 64).ok_or_else(|| {
                Error::new(line, format!("registers of type .{ty} are not accepted"))
            })?;
            let first = self.function.registers;
            self.function.registers += count.unwrap_or(1);
            Register::Value(first, bits as u8)
        };
        let scope = self
            .scopes
            .last_mut()
            .ok_or_else(|| Error::new(line, ".reg outside a function"))?;
        match count {
            Some(count) => scope
                .ranges
                .insert(prefix.to_owned(), (count, first))
                .map(|_| ()),
            None => scope.registers.insert(prefix.to_owned(), first).map(|_| ()),
        };
        Ok(())
    }

    /// Closes a scope: its branches find their labels, or are left to the scope around it.
    pub(super) fn close(&mut self, line: u32) -> Result<(), Error> {
        let scope = self
            .scopes
            .pop()
            .ok_or_else(|| Error::new(line, "a } too many"))?;
        for (instruction, slot, label, line) in scope.jumps {
            match (scope.labels.get(&label), self.scopes.last_mut()) {
                (Some(target), _) => match &mut self.function.code[instruction].op {
                    Op::Branch { target: to } => *to = *target,
                    Op::BranchIndexed { targets, .. } => targets[slot] = *target,
                    _ => {}
                },
                (None, Some(outer)) => outer.jumps.push((instruction, slot, label, line)),
                (None, None) => return Err(Error::new(line, format!("no label {label}"))),
            }
        }
        Ok(())
    }
}

/// Bits of a fundamental type, by its name without the dot.
pub(super) fn type_bits(ty: &str) -> Option<u32> {
    let digits = match ty {
        "bf16" => "16",
        "f16x2" | "bf16x2" => "32",
        _ => ty.strip_prefix(['u', 's', 'b', 'f'])?,
    };
    matches!(digits, "8" | "16" | "32" | "64" | "128").then(|| digits.parse().ok())?
}
