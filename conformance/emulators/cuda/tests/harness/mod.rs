//! Runs PTX on the interpreter alone, without the driver.
#![allow(dead_code, reason = "each test file uses a part")]

use ropeway_emulated_cuda::interpret::tensor::TensorMap;
use ropeway_emulated_cuda::interpret::{Launch, Options, Report, Statistics, run};
use ropeway_emulated_cuda::memory::{AddressSpace, State};
use ropeway_emulated_cuda::ptx::Module;

/// A parameter of a kernel.
pub enum Argument<'a> {
    /// Memory that is copied in before, and out afterwards.
    Memory(&'a mut [u8]),
    /// Bytes of a scalar.
    Scalar(Vec<u8>),
    /// A map of a tensor that begins so many bytes into the memory argument of this number.
    Map(usize, u64, TensorMap),
}

impl From<u32> for Argument<'_> {
    fn from(value: u32) -> Self {
        Argument::Scalar(value.to_le_bytes().to_vec())
    }
}

impl From<u64> for Argument<'_> {
    fn from(value: u64) -> Self {
        Argument::Scalar(value.to_le_bytes().to_vec())
    }
}

impl From<f32> for Argument<'_> {
    fn from(value: f32) -> Self {
        Argument::Scalar(value.to_le_bytes().to_vec())
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: [u32; 3],
    pub cluster: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub programmatic: bool,
    pub options: Options,
}

impl Shape {
    pub fn new(grid: u32, block: u32) -> Shape {
        Shape {
            grid: [grid, 1, 1],
            cluster: [1; 3],
            block: [block, 1, 1],
            shared: 0,
            programmatic: false,
            options: Options::default(),
        }
    }

    pub fn seed(mut self, seed: u64) -> Shape {
        self.options.seed = seed;
        self
    }
}

/// Runs the first entry of a text.
pub fn launch(
    text: &str,
    shape: Shape,
    arguments: &mut [Argument<'_>],
) -> Result<Statistics, Box<Report>> {
    launch_entry(text, "", shape, arguments)
}

/// Runs the entry of this name, or the first.
pub fn launch_entry(
    text: &str,
    entry: &str,
    shape: Shape,
    arguments: &mut [Argument<'_>],
) -> Result<Statistics, Box<Report>> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let function = module.function(entry).unwrap_or(&module.functions[0]);
    let memory = AddressSpace::default();
    let mut parameters = vec![0; function.parameter_bytes as usize];
    assert_eq!(arguments.len(), function.parameters.len());
    let allocations: Vec<_> = arguments
        .iter()
        .map(|argument| {
            let Argument::Memory(data) = argument else {
                return None;
            };
            let allocation = memory.allocate(0, data.len(), 0xFF, false, State::Live)?;
            allocation.region.write(0, data);
            Some(allocation)
        })
        .collect();
    let base = |index: usize| allocations[index].as_ref().unwrap().base;
    for (index, (argument, parameter)) in arguments.iter().zip(&function.parameters).enumerate() {
        let bytes = match argument {
            Argument::Memory(_) => base(index).to_le_bytes().to_vec(),
            Argument::Scalar(bytes) => bytes.clone(),
            Argument::Map(of, offset, map) => {
                let address = base(*of) + offset;
                TensorMap { address, ..*map }.encode().to_vec()
            }
        };
        assert_eq!(bytes.len(), parameter.bytes as usize, "{}", parameter.name);
        parameters[parameter.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let variables: Vec<_> = module
        .variables
        .iter()
        .map(|variable| {
            let allocation = memory
                .allocate(
                    0,
                    variable.bytes as usize,
                    0,
                    variable.constant,
                    State::Live,
                )
                .unwrap();
            let mut at = 0;
            for initial in &variable.initial {
                if let ropeway_emulated_cuda::ptx::module::Initial::Bytes(bytes) = initial {
                    allocation.region.write(at, bytes);
                    at += bytes.len();
                }
            }
            allocation.base
        })
        .collect();
    let result = run(Launch {
        function,
        grid: shape.grid,
        cluster: shape.cluster,
        block: shape.block,
        parameters: &parameters,
        dynamic_shared: shape.shared,
        cooperative: false,
        programmatic: shape.programmatic,
        memory: &memory,
        device: 0,
        peers: 0,
        variables: &variables,
        options: shape.options,
        cancelled: None,
    });
    for (argument, allocation) in arguments.iter_mut().zip(allocations) {
        if let (Argument::Memory(data), Some(allocation)) = (argument, allocation) {
            allocation.region.read(0, data);
        }
    }
    result
}

pub const HEADER: &str = ".version 8.8\n.target sm_90\n.address_size 64\n";
pub const HEADER_90A: &str = ".version 8.8\n.target sm_90a\n.address_size 64\n";

/// Runs a body for a warp: lane i finds `a`, `b`, `c` in columns of row i, and leaves `d` (and `e`).
///
/// `registers` names them and their types, as `.reg` does; each is moved from and to memory as 64 bits.
pub fn rows(registers: &str, body: &str, rows: &[Vec<u64>]) -> Result<Vec<[u64; 2]>, Box<Report>> {
    assert!(rows.len() <= 32);
    let ty = |name: &str| {
        registers.split(';').find_map(|part| {
            let (ty, names) = part.trim().split_once(' ')?;
            names
                .split(',')
                .any(|found| found.trim() == name)
                .then(|| ty.trim_start_matches(".").to_owned())
        })
    };
    let declared: String = registers
        .split(';')
        .filter(|part| !part.trim().is_empty())
        .map(|part| format!(".reg {};\n", part.trim()))
        .collect();
    let bits = |ty: &str| ty[1..].parse::<u32>().unwrap();
    let mut loads = String::new();
    for (index, name) in ["a", "b", "c"].iter().enumerate() {
        if let Some(ty) = ty(name) {
            loads += &format!("ld.global.b{} {name}, [%in+{}];\n", bits(&ty), 8 * index);
        }
    }
    let mut stores = String::new();
    for (index, name) in ["d", "e"].iter().enumerate() {
        if let Some(ty) = ty(name) {
            stores += &format!("st.global.b{} [%out+{}], {name};\n", bits(&ty), 8 * index);
        }
    }
    let text = format!(
        "{HEADER}.visible .entry test(.param .u64 in, .param .u64 out) {{
.reg .b64 %in, %out, %offset; .reg .b32 %lane; .reg .pred p, q;
{declared}
ld.param.u64 %in, [in]; ld.param.u64 %out, [out];
mov.u32 %lane, %tid.x;
mul.wide.u32 %offset, %lane, 24; add.s64 %in, %in, %offset;
mul.wide.u32 %offset, %lane, 16; add.s64 %out, %out, %offset;
{loads}
{body}
{stores}
ret; }}"
    );
    let mut input = Vec::new();
    for row in rows {
        for column in 0..3 {
            input.extend(row.get(column).copied().unwrap_or(0).to_le_bytes());
        }
    }
    let mut output = vec![0; rows.len() * 16];
    launch(
        &text,
        Shape::new(1, rows.len() as u32),
        &mut [Argument::Memory(&mut input), Argument::Memory(&mut output)],
    )?;
    Ok(output
        .chunks_exact(16)
        .map(|pair| {
            let value = |at: usize| u64::from_le_bytes(pair[at..at + 8].try_into().unwrap());
            [value(0), value(8)]
        })
        .collect())
}

/// Holds an instruction to values: each row is its sources and its result.
pub fn check(registers: &str, body: &str, table: &[(&[u64], u64)]) {
    let input: Vec<_> = table.iter().map(|(sources, _)| sources.to_vec()).collect();
    let found = rows(registers, body, &input).unwrap_or_else(|report| panic!("{body}: {report}"));
    for ((sources, expected), found) in table.iter().zip(found) {
        assert_eq!(
            found[0], *expected,
            "{body} of {sources:#x?}: {:#x} where {expected:#x} is due",
            found[0]
        );
    }
}

pub fn bytes_of<T: Copy, const N: usize>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| f(value)).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|raw| f32::from_le_bytes(raw.try_into().unwrap()))
        .collect()
}

/// Numbers between -1 and 1.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}
