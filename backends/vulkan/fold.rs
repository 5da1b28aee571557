//! Specialization constants as plain ones, for drivers that compile what the values rule out all the same.
//!
//! SwiftShader gives the values to its optimiser, but leaves the constants what they are, so that none is folded: branches of every dtype and
//! option become machine code, a second for each pipeline. With plain constants it takes a seventh of that, as long as loops that ask to be
//! unrolled, which until then had no known count, are not.

use std::collections::BTreeMap;

/// The instructions that are replaced or looked at (SPIR-V specification 1.6, section 3.52).
mod op {
    pub(super) const TYPE_BOOL: u16 = 20;
    pub(super) const TYPE_INT: u16 = 21;
    pub(super) const CONSTANT_TRUE: u16 = 41;
    pub(super) const CONSTANT_FALSE: u16 = 42;
    pub(super) const CONSTANT: u16 = 43;
    pub(super) const CONSTANT_COMPOSITE: u16 = 44;
    pub(super) const SPEC_CONSTANT_TRUE: u16 = 48;
    pub(super) const SPEC_CONSTANT_FALSE: u16 = 49;
    pub(super) const SPEC_CONSTANT: u16 = 50;
    pub(super) const SPEC_CONSTANT_COMPOSITE: u16 = 51;
    pub(super) const SPEC_CONSTANT_OP: u16 = 52;
    pub(super) const DECORATE: u16 = 71;
    pub(super) const LOOP_MERGE: u16 = 246;
}

const HEADER: usize = 5;
const DECORATION_SPEC_ID: u32 = 1;
const LOOP_CONTROL_UNROLL: u32 = 1;

/// The module with these values (their bytes, by number) in place of its specialization constants, and none left. `None` if it
/// computes with them in a way that is not known here.
pub(super) fn folded(words: &[u32], values: &BTreeMap<u32, &[u8]>) -> Option<Vec<u32>> {
    let mut folder = Folder {
        values,
        spec_ids: BTreeMap::new(),
        bools: Vec::new(),
        ints: Vec::new(),
        known: BTreeMap::new(),
        output: words.get(..HEADER)?.to_vec(),
    };
    let mut at = HEADER;
    while at < words.len() {
        let (opcode, length) = (words[at] as u16, (words[at] >> 16) as usize);
        if length == 0 {
            return None;
        }
        folder.instruction(opcode, words.get(at + 1..at + length)?)?;
        at += length;
    }
    Some(folder.output)
}

struct Folder<'a> {
    values: &'a BTreeMap<u32, &'a [u8]>,
    /// The number of a constant, by id.
    spec_ids: BTreeMap<u32, u32>,
    /// Types.
    bools: Vec<u32>,
    /// Those of 32 bits.
    ints: Vec<u32>,
    /// Of constants that are bools or whole numbers of 32 bits.
    known: BTreeMap<u32, u32>,
    output: Vec<u32>,
}

impl Folder<'_> {
    fn write(&mut self, opcode: u16, operands: &[u32]) {
        self.output.push((operands.len() as u32 + 1) << 16 | u32::from(opcode));
        self.output.extend_from_slice(operands);
    }

    /// The value that the constant `id` was given.
    fn given(&self, id: u32) -> Option<&[u8]> {
        self.values.get(self.spec_ids.get(&id)?).copied()
    }

    /// A bool or a whole number of 32 bits.
    fn constant(&mut self, kind: u32, id: u32, value: u32) -> Option<()> {
        self.known.insert(id, value);
        if self.bools.contains(&kind) {
            let opcode = if value != 0 { op::CONSTANT_TRUE } else { op::CONSTANT_FALSE };
            self.write(opcode, &[kind, id]);
            return Some(());
        }
        self.write(op::CONSTANT, &[kind, id, value]);
        self.ints.contains(&kind).then_some(())
    }

    fn instruction(&mut self, opcode: u16, operands: &[u32]) -> Option<()> {
        match (opcode, operands) {
            (op::DECORATE, &[id, DECORATION_SPEC_ID, number]) => drop(self.spec_ids.insert(id, number)),
            (op::TYPE_BOOL, &[id]) => {
                self.bools.push(id);
                self.write(opcode, operands);
            }
            (op::TYPE_INT, &[id, 32, _]) => {
                self.ints.push(id);
                self.write(opcode, operands);
            }
            (op::CONSTANT_TRUE | op::CONSTANT_FALSE, &[kind, id]) => {
                self.constant(kind, id, (opcode == op::CONSTANT_TRUE).into())?;
            }
            (op::CONSTANT, &[kind, id, value]) if self.ints.contains(&kind) => self.constant(kind, id, value)?,
            (op::SPEC_CONSTANT_TRUE | op::SPEC_CONSTANT_FALSE, &[kind, id]) => {
                let value = match self.given(id) {
                    Some(bytes) => bytes.iter().any(|byte| *byte != 0),
                    None => opcode == op::SPEC_CONSTANT_TRUE,
                };
                self.constant(kind, id, value.into())?;
            }
            (op::SPEC_CONSTANT, &[kind, id, ref default @ ..]) => {
                let mut value = default.to_vec();
                if let Some(bytes) = self.given(id) {
                    let (given, rest) = bytes.as_chunks::<4>();
                    if !rest.is_empty() || given.len() != value.len() {
                        return None;
                    }
                    value = given.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
                }
                if let ([value], true) = (&value[..], self.ints.contains(&kind)) {
                    return self.constant(kind, id, *value);
                }
                let operands: Vec<u32> = [kind, id].into_iter().chain(value).collect();
                self.write(op::CONSTANT, &operands);
            }
            (op::SPEC_CONSTANT_COMPOSITE, _) => self.write(op::CONSTANT_COMPOSITE, operands),
            (op::SPEC_CONSTANT_OP, &[kind, id, operation, ref arguments @ ..]) => {
                let arguments: Option<Vec<u32>> = arguments.iter().map(|id| self.known.get(id).copied()).collect();
                self.constant(kind, id, computed(operation, &arguments?)?)?;
            }
            (op::LOOP_MERGE, &[merge, next, control, ref rest @ ..]) => {
                let mut operands = vec![merge, next, control & !LOOP_CONTROL_UNROLL];
                operands.extend_from_slice(rest);
                self.write(opcode, &operands);
            }
            _ => self.write(opcode, operands),
        }
        Some(())
    }
}

/// An operation on bools and whole numbers of 32 bits, by its opcode.
fn computed(operation: u32, arguments: &[u32]) -> Option<u32> {
    let signed = |value: u32| value.cast_signed();
    Some(match (operation, arguments) {
        (126, &[a]) => a.wrapping_neg(),
        (128, &[a, b]) => a.wrapping_add(b),
        (130, &[a, b]) => a.wrapping_sub(b),
        (132, &[a, b]) => a.wrapping_mul(b),
        (134, &[a, b]) => a.checked_div(b)?,
        (135, &[a, b]) => signed(a).checked_div(signed(b))?.cast_unsigned(),
        (137, &[a, b]) => a.checked_rem(b)?,
        (138, &[a, b]) => signed(a).checked_rem(signed(b))?.cast_unsigned(),
        (164 | 170, &[a, b]) => (a == b).into(),
        (165 | 171, &[a, b]) => (a != b).into(),
        (166, &[a, b]) => (a != 0 || b != 0).into(),
        (167, &[a, b]) => (a != 0 && b != 0).into(),
        (168, &[a]) => (a == 0).into(),
        (169, &[condition, a, b]) => {
            if condition != 0 {
                a
            } else {
                b
            }
        }
        (172, &[a, b]) => (a > b).into(),
        (173, &[a, b]) => (signed(a) > signed(b)).into(),
        (174, &[a, b]) => (a >= b).into(),
        (175, &[a, b]) => (signed(a) >= signed(b)).into(),
        (176, &[a, b]) => (a < b).into(),
        (177, &[a, b]) => (signed(a) < signed(b)).into(),
        (178, &[a, b]) => (a <= b).into(),
        (179, &[a, b]) => (signed(a) <= signed(b)).into(),
        (194, &[a, b]) => a.checked_shr(b)?,
        (195, &[a, b]) => signed(a).checked_shr(b)?.cast_unsigned(),
        (196, &[a, b]) => a.checked_shl(b)?,
        (197, &[a, b]) => a | b,
        (198, &[a, b]) => a ^ b,
        (199, &[a, b]) => a & b,
        (200, &[a]) => !a,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vulkan::spirv::{Extent, Reflection, words};

    #[test]
    fn every_constant_gets_its_value() {
        let module = words(include_bytes!("../tests/vulkan/spirv/kernels.add_one.spv")).expect("a module");
        let before = Reflection::read(&module).expect("a module");
        assert_eq!(before.group[0], Extent::Constant { id: 0, default: 64 });
        let eight = 8u32.to_le_bytes();
        let after = folded(&module, &BTreeMap::from([(0, &eight[..])])).expect("it is folded");
        let after = Reflection::read(&after).expect("still a module");
        assert_eq!(after.group, [8, 1, 1].map(Extent::Fixed));
        assert!(after.constants.is_empty());
        assert_eq!(after.push_constants, before.push_constants);
    }

    #[test]
    fn values_must_have_the_size_of_their_constant() {
        let module = words(include_bytes!("../tests/vulkan/spirv/kernels.add_one.spv")).expect("a module");
        assert_eq!(folded(&module, &BTreeMap::from([(0, &[8, 0][..])])), None);
    }

    #[test]
    fn numbers_are_computed_as_spirv_does() {
        let minus = |value: i32| value.cast_unsigned();
        assert_eq!(computed(134, &[minus(-1), 2]), Some(0x7fff_ffff));
        assert_eq!(computed(135, &[minus(-7), 2]), Some(minus(-3)));
        assert_eq!(computed(134, &[1, 0]), None);
        assert_eq!(computed(132, &[1 << 31, 2]), Some(0));
        assert_eq!(computed(195, &[minus(-8), 1]), Some(minus(-4)));
        assert_eq!(computed(172, &[minus(-1), 1]), Some(1));
        assert_eq!(computed(173, &[minus(-1), 1]), Some(0));
        assert_eq!(computed(169, &[1, 5, 6]), Some(5));
        assert_eq!(computed(400, &[]), None);
    }
}
