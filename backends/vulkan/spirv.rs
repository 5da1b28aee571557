//! What a SPIR-V module says of itself: the features it needs, its specialization constants by name, its work-group, its push
//! constants. Read from the words (SPIR-V specification 1.6, section 2.3 and chapter 3), as far as compute kernels go.

use std::collections::BTreeMap;

use ropeway_core::{Error, ErrorKind, Result};

const MAGIC: u32 = 0x0723_0203;
const HEADER: usize = 5;

/// The instructions that are looked at (section 3.52).
mod op {
    pub(super) const NAME: u16 = 5;
    pub(super) const ENTRY_POINT: u16 = 15;
    pub(super) const EXECUTION_MODE: u16 = 16;
    pub(super) const CAPABILITY: u16 = 17;
    pub(super) const TYPE_BOOL: u16 = 20;
    pub(super) const TYPE_INT: u16 = 21;
    pub(super) const TYPE_FLOAT: u16 = 22;
    pub(super) const TYPE_VECTOR: u16 = 23;
    pub(super) const TYPE_ARRAY: u16 = 28;
    pub(super) const TYPE_STRUCT: u16 = 30;
    pub(super) const TYPE_POINTER: u16 = 32;
    pub(super) const CONSTANT: u16 = 43;
    pub(super) const CONSTANT_COMPOSITE: u16 = 44;
    pub(super) const SPEC_CONSTANT_TRUE: u16 = 48;
    pub(super) const SPEC_CONSTANT_FALSE: u16 = 49;
    pub(super) const SPEC_CONSTANT: u16 = 50;
    pub(super) const SPEC_CONSTANT_COMPOSITE: u16 = 51;
    pub(super) const FUNCTION: u16 = 54;
    pub(super) const VARIABLE: u16 = 59;
    pub(super) const DECORATE: u16 = 71;
    pub(super) const MEMBER_DECORATE: u16 = 72;
}

const EXECUTION_MODEL_GL_COMPUTE: u32 = 5;
const EXECUTION_MODE_LOCAL_SIZE: u32 = 17;
const STORAGE_CLASS_PUSH_CONSTANT: u32 = 9;
const STORAGE_CLASS_PHYSICAL_STORAGE_BUFFER: u32 = 5349;
const DECORATION_SPEC_ID: u32 = 1;
const DECORATION_BUILT_IN: u32 = 11;
const DECORATION_OFFSET: u32 = 35;
const BUILT_IN_WORKGROUP_SIZE: u32 = 25;

/// The feature of a device that a capability (section 3.31) needs; `""` for what every device of this backend has.
fn feature(capability: u32) -> Option<&'static str> {
    Some(match capability {
        // Matrix, Shader, PhysicalStorageBufferAddresses.
        0 | 1 | 5347 => "",
        9 => "shaderFloat16",
        10 => "shaderFloat64",
        11 => "shaderInt64",
        12 => "shaderBufferInt64Atomics",
        22 => "shaderInt16",
        39 => "shaderInt8",
        61 => "subgroupBasic",
        62 => "subgroupVote",
        63 => "subgroupArithmetic",
        64 => "subgroupBallot",
        65 => "subgroupShuffle",
        66 => "subgroupShuffleRelative",
        67 => "subgroupClustered",
        68 => "subgroupQuad",
        4433 => "storageBuffer16BitAccess",
        4434 => "uniformAndStorageBuffer16BitAccess",
        4435 => "storagePushConstant16",
        4441 => "variablePointersStorageBuffer",
        4442 => "variablePointers",
        4448 => "storageBuffer8BitAccess",
        4449 => "uniformAndStorageBuffer8BitAccess",
        4450 => "storagePushConstant8",
        5345 => "vulkanMemoryModel",
        5346 => "vulkanMemoryModelDeviceScope",
        6016..=6019 => "shaderIntegerDotProduct",
        6022 => "cooperativeMatrix",
        6033 => "shaderBufferFloat32AtomicAdd",
        _ => return None,
    })
}

/// The type of a specialization constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// True or false.
    Bool,
    /// A whole number of so many bits.
    Int {
        /// 8, 16, 32 or 64.
        bits: u32,
        /// Whether it can be negative.
        signed: bool,
    },
    /// A float of so many bits.
    Float {
        /// 16, 32 or 64.
        bits: u32,
    },
}

/// A specialization constant that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Its name in the source.
    pub name: String,
    /// Its number in the interface.
    pub id: u32,
    /// Its type.
    pub scalar: Scalar,
}

/// An extent of the work-group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A number.
    Fixed(u32),
    /// A specialization constant, and its default.
    Constant {
        /// Its number in the interface.
        id: u32,
        /// Its value unless specialized.
        default: u32,
    },
}

/// The push-constant block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushConstants {
    /// There is none.
    None,
    /// Members up to this many bytes.
    Bytes(u32),
}

/// What a module says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// The name of its compute entry point (`"main"`).
    pub entry: String,
    /// The features that it needs, by Vulkan's names, sorted.
    pub features: Vec<&'static str>,
    /// The specialization constants with a name, by name.
    pub constants: Vec<Constant>,
    /// The extents of its work-group.
    pub group: [Extent; 3],
    /// The arguments it takes.
    pub push_constants: PushConstants,
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::CompileFailed, format!("SPIR-V: {what}"))
}

/// The words of a module, whatever the alignment of its bytes.
///
/// # Errors
/// `CompileFailed` for what is no module.
pub fn words(bytes: &[u8]) -> Result<Vec<u32>> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || chunks.len() < HEADER {
        return Err(malformed(&format!("{} bytes are no module", bytes.len())));
    }
    let swapped = u32::from_le_bytes(chunks[0]) == MAGIC.swap_bytes();
    let words: Vec<u32> = chunks
        .iter()
        .map(|&chunk| match swapped {
            true => u32::from_be_bytes(chunk),
            false => u32::from_le_bytes(chunk),
        })
        .collect();
    if words[0] != MAGIC {
        return Err(malformed(&format!("magic number {:#010x}", words[0])));
    }
    Ok(words)
}

fn literal(words: &[u32]) -> Result<(String, usize)> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .ok_or_else(|| malformed("a name without end"))?;
    let name = String::from_utf8_lossy(&bytes[..end]).into_owned();
    Ok((name, end / 4 + 1))
}

#[derive(Clone, Copy)]
enum Type {
    Scalar(Scalar),
    Vector(u32, u32),
    Array(u32, u32),
    Pointer(u32, u32),
}

/// What is gathered on the way through a module.
#[derive(Default)]
struct Gathered {
    entry: Option<String>,
    features: Vec<&'static str>,
    names: BTreeMap<u32, String>,
    spec_ids: BTreeMap<u32, u32>,
    types: BTreeMap<u32, Type>,
    structs: BTreeMap<u32, Vec<u32>>,
    offsets: BTreeMap<(u32, u32), u32>,
    /// Type and value.
    constants: BTreeMap<u32, (u32, u32)>,
    specs: Vec<(u32, Scalar)>,
    composites: BTreeMap<u32, Vec<u32>>,
    group_composite: Option<u32>,
    group: Option<[u32; 3]>,
    push_constants: Option<u32>,
}

impl Reflection {
    /// Reads a module.
    ///
    /// # Errors
    /// `CompileFailed` for a module that is malformed or no compute kernel, `Unsupported` for a capability that this backend does not
    /// know.
    pub fn read(words: &[u32]) -> Result<Reflection> {
        let mut gathered = Gathered::default();
        let mut at = HEADER;
        while at < words.len() {
            let (opcode, length) = (words[at] as u16, (words[at] >> 16) as usize);
            if length == 0 || at + length > words.len() {
                return Err(malformed(&format!("an instruction of {length} words at word {at}")));
            }
            if opcode == op::FUNCTION {
                break;
            }
            gathered
                .instruction(opcode, &words[at + 1..at + length])
                .ok_or_else(|| malformed(&format!("instruction {opcode} at word {at} is too short")))??;
            at += length;
        }
        gathered.finish()
    }

    /// The constant of this name.
    pub fn constant(&self, name: &str) -> Option<&Constant> {
        self.constants.iter().find(|constant| constant.name == name)
    }
}

impl Gathered {
    /// `None` for an instruction without the operands that it must have.
    fn instruction(&mut self, opcode: u16, operands: &[u32]) -> Option<Result<()>> {
        let get = |index: usize| operands.get(index).copied();
        match opcode {
            op::CAPABILITY => {
                let capability = get(0)?;
                match feature(capability) {
                    Some("") => {}
                    Some(name) => self.features.push(name),
                    None => {
                        let what = format!("SPIR-V capability {capability}");
                        return Some(Err(Error::unsupported(what)));
                    }
                }
            }
            op::ENTRY_POINT if get(0)? == EXECUTION_MODEL_GL_COMPUTE => match literal(operands.get(2..)?) {
                Ok((name, _)) => self.entry = Some(name),
                Err(error) => return Some(Err(error)),
            },
            op::EXECUTION_MODE if get(1)? == EXECUTION_MODE_LOCAL_SIZE => {
                self.group = Some([get(2)?, get(3)?, get(4)?]);
            }
            op::NAME => match literal(operands.get(1..)?) {
                Ok((name, _)) => drop(self.names.insert(get(0)?, name)),
                Err(error) => return Some(Err(error)),
            },
            op::DECORATE if get(1)? == DECORATION_SPEC_ID => {
                self.spec_ids.insert(get(0)?, get(2)?);
            }
            op::DECORATE if get(1)? == DECORATION_BUILT_IN && get(2)? == BUILT_IN_WORKGROUP_SIZE => {
                self.group_composite = Some(get(0)?);
            }
            op::MEMBER_DECORATE if get(2)? == DECORATION_OFFSET => {
                self.offsets.insert((get(0)?, get(1)?), get(3)?);
            }
            op::TYPE_BOOL => drop(self.types.insert(get(0)?, Type::Scalar(Scalar::Bool))),
            op::TYPE_INT if matches!(get(1)?, 8 | 16 | 32 | 64) => {
                let (bits, signed) = (get(1)?, get(2)? != 0);
                let scalar = Scalar::Int { bits, signed };
                self.types.insert(get(0)?, Type::Scalar(scalar));
            }
            op::TYPE_FLOAT => {
                let scalar = Scalar::Float { bits: get(1)? };
                self.types.insert(get(0)?, Type::Scalar(scalar));
            }
            op::TYPE_VECTOR => drop(self.types.insert(get(0)?, Type::Vector(get(1)?, get(2)?))),
            op::TYPE_ARRAY => drop(self.types.insert(get(0)?, Type::Array(get(1)?, get(2)?))),
            op::TYPE_POINTER => drop(self.types.insert(get(0)?, Type::Pointer(get(1)?, get(2)?))),
            op::TYPE_STRUCT => drop(self.structs.insert(get(0)?, operands[1..].to_vec())),
            op::CONSTANT => drop(self.constants.insert(get(1)?, (get(0)?, get(2)?))),
            op::SPEC_CONSTANT_TRUE | op::SPEC_CONSTANT_FALSE => {
                self.specs.push((get(1)?, Scalar::Bool));
            }
            op::SPEC_CONSTANT => {
                let (kind, id, value) = (get(0)?, get(1)?, get(2)?);
                self.constants.insert(id, (kind, value));
                if let Some(Type::Scalar(scalar)) = self.types.get(&kind) {
                    self.specs.push((id, *scalar));
                }
            }
            op::CONSTANT_COMPOSITE | op::SPEC_CONSTANT_COMPOSITE => {
                self.composites.insert(get(1)?, operands.get(2..)?.to_vec());
            }
            op::VARIABLE if get(2)? == STORAGE_CLASS_PUSH_CONSTANT => {
                self.push_constants = Some(get(0)?);
            }
            _ => {}
        }
        Some(Ok(()))
    }

    fn finish(mut self) -> Result<Reflection> {
        let entry = self
            .entry
            .take()
            .ok_or_else(|| malformed("no compute entry point"))?;
        let group = self.group()?;
        let push_constants = self.push_constants()?;
        self.features.sort_unstable();
        self.features.dedup();
        let mut constants: Vec<Constant> = self
            .specs
            .iter()
            .filter_map(|(id, scalar)| {
                Some(Constant {
                    name: self.names.get(id).filter(|name| !name.is_empty())?.clone(),
                    id: *self.spec_ids.get(id)?,
                    scalar: *scalar,
                })
            })
            .collect();
        constants.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Reflection {
            entry,
            features: self.features,
            constants,
            group,
            push_constants,
        })
    }

    /// The `WorkgroupSize` constant if there is one, else the execution mode.
    fn group(&self) -> Result<[Extent; 3]> {
        let Some(composite) = self.group_composite else {
            let sizes = self.group.ok_or_else(|| malformed("no work-group size"))?;
            return Ok(sizes.map(Extent::Fixed));
        };
        let parts = self.composites.get(&composite).filter(|parts| parts.len() == 3);
        let parts = parts.ok_or_else(|| malformed("a work-group size without three extents"))?;
        let mut group = [Extent::Fixed(1); 3];
        for (extent, part) in group.iter_mut().zip(parts) {
            let (_, value) = *self
                .constants
                .get(part)
                .ok_or_else(|| malformed("a work-group size that is computed"))?;
            *extent = match self.spec_ids.get(part) {
                Some(&id) => Extent::Constant {
                    id,
                    default: self.named_default(id).unwrap_or(value),
                },
                None => Extent::Fixed(value),
            };
        }
        Ok(group)
    }

    /// The default of the constant with a name that shares this number: GLSL makes one without a name for the work-group beside it,
    /// whose own default means nothing.
    fn named_default(&self, spec_id: u32) -> Option<u32> {
        let (id, _) = self
            .spec_ids
            .iter()
            .find(|(id, number)| **number == spec_id && self.names.contains_key(id))?;
        Some(self.constants.get(id)?.1)
    }

    fn push_constants(&self) -> Result<PushConstants> {
        let Some(pointer) = self.push_constants else {
            return Ok(PushConstants::None);
        };
        let block = match self.types.get(&pointer) {
            Some(Type::Pointer(_, block)) => *block,
            _ => return Err(malformed("push constants without a type")),
        };
        let members = self
            .structs
            .get(&block)
            .ok_or_else(|| malformed("push constants that are no block"))?;
        let mut end = 0;
        for (number, member) in (0u32..).zip(members) {
            let offset = *self
                .offsets
                .get(&(block, number))
                .ok_or_else(|| malformed("a push constant without offset"))?;
            let size = self
                .size(*member)
                .ok_or_else(|| malformed("a push constant of unknown size"))?;
            end = end.max(offset.saturating_add(size));
        }
        Ok(PushConstants::Bytes(end))
    }

    /// Bytes of a type without padding.
    fn size(&self, id: u32) -> Option<u32> {
        self.nested_size(id, 4)
    }

    /// A type holds others so many levels deep; a malformed one might hold itself.
    fn nested_size(&self, id: u32, levels: u32) -> Option<u32> {
        let levels = levels.checked_sub(1)?;
        match *self.types.get(&id)? {
            Type::Scalar(Scalar::Bool) => None,
            Type::Scalar(Scalar::Int { bits, .. } | Scalar::Float { bits }) => Some(bits / 8),
            Type::Vector(of, count) => self.nested_size(of, levels)?.checked_mul(count),
            Type::Array(of, count) => self.nested_size(of, levels)?.checked_mul(self.constants.get(&count)?.1),
            Type::Pointer(STORAGE_CLASS_PHYSICAL_STORAGE_BUFFER, _) => Some(8),
            Type::Pointer(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ropeway_core::spec::Random;

    use super::*;

    const CHOSEN: &[u8] = include_bytes!("../tests/vulkan/spirv/kernels.chosen.spv");
    const ADD_ONE: &[u8] = include_bytes!("../tests/vulkan/spirv/kernels.add_one.spv");
    const WIDE: &[u8] = include_bytes!("../tests/vulkan/spirv/wide.far.f32.spv");

    fn read(bytes: &[u8]) -> Result<Reflection> {
        Reflection::read(&words(bytes)?)
    }

    #[test]
    fn finds_what_a_module_declares() {
        let chosen = read(CHOSEN).expect("a module");
        let int = |signed| Scalar::Int { bits: 32, signed };
        let found = |name: &str| chosen.constant(name).map(|constant| (constant.id, constant.scalar));
        assert_eq!(found("COUNT"), Some((7, int(false))));
        assert_eq!(found("SIGNED"), Some((3, int(true))));
        assert_eq!(found("SCALE"), Some((9, Scalar::Float { bits: 32 })));
        assert_eq!(found("FLAG"), Some((4, Scalar::Bool)));
        assert_eq!(found("count"), None);
        assert_eq!(chosen.entry, "main");
        assert_eq!(chosen.group, [Extent::Fixed(1); 3]);
        assert_eq!(chosen.push_constants, PushConstants::Bytes(8));
        assert!(chosen.features.is_empty());
        let add_one = read(ADD_ONE).expect("a module");
        // The default of the constant that the source names, not of the one that stands beside it.
        let group = Extent::Constant { id: 0, default: 64 };
        assert_eq!(add_one.group, [group, Extent::Fixed(1), Extent::Fixed(1)]);
        assert_eq!(add_one.push_constants, PushConstants::Bytes(12));
        assert_eq!(read(WIDE).expect("a module").features, ["shaderInt64"]);
    }

    #[test]
    fn damaged_modules_are_errors_and_no_more() {
        assert!(words(b"").is_err() && words(&CHOSEN[..CHOSEN.len() - 1]).is_err());
        assert!(words(&[7; 64]).is_err());
        let sound = words(CHOSEN).expect("a module");
        for length in HEADER..sound.len() {
            let _ = Reflection::read(&sound[..length]);
        }
        let mut random = Random::new(5);
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut damaged = sound.clone();
            for _ in 0..1 + random.below(3) {
                let at = HEADER + random.below((sound.len() - HEADER) as u64) as usize;
                damaged[at] = match random.below(3) {
                    0 => random.next() as u32,
                    1 => damaged[at] ^ 1 << random.below(32),
                    _ => random.below(40) as u32,
                };
            }
            refused += u32::from(Reflection::read(&damaged).is_err());
        }
        assert!(refused > 1000, "{refused} of 20,000 damaged modules were refused");
    }
}
