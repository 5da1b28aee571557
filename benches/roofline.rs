//! The roofline of a device, measured on the spot: its peak of fused multiply-adds, and what it reads and copies from
//! and to memory beyond the caches. Every figure of a benchmark stands beside it.

use std::sync::LazyLock;
use std::time::Duration;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use ropeway::Session;
use ropeway_core::info::{DeviceInfo, DeviceKind};
use ropeway_core::kernel::{Code, Config, Kernel, Language, ModuleKey, Source, Tunable};
use ropeway_core::memory::{TensorDesc, View};
use ropeway_core::native::NativeCall;
use ropeway_core::plan::{Arg, Determinism, Extent, Form, Launch, OperandRule, Plan, StrideRule};
use ropeway_core::{DType, Result};
use serde::{Deserialize, Serialize};

use crate::measure::measure;
use crate::spirv;

/// Bytes of the buffers that are read and copied: well beyond any cache of today's devices.
const STREAM_BYTES: u64 = 256 << 20;

/// The least time of a launch that shows the peak: far beyond what launching takes.
const LAUNCH: f64 = 10e-3;

/// Independent chains of a work-item.
const CHAINS: u64 = 12;

/// Steps of a chain that the SPIR-V kernel makes in a round of its loop: a number of steps is a multiple of this.
const STEPS: u64 = 8;

/// How long each figure is measured.
const BUDGET: Duration = Duration::from_millis(700);

/// What a device does at most.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Roofline {
    /// f32 multiply-adds from registers, counting two each, in GFLOP/s.
    pub peak_gflops: f64,
    /// Bytes read, in GB/s.
    pub read_gbs: f64,
    /// Bytes read and bytes written by a copy, in GB/s.
    pub copy_gbs: f64,
}

static KERNEL: Kernel = Kernel {
    name: "roofline",
    summary: "Peaks of arithmetic and memory",
    version: 1,
    sources: &[
        Source {
            language: Language::Native,
            code: Code::Native(&[
                ("peak_fma", peak_fma),
                ("read_all", read_all),
                ("copy_all", copy_all),
            ]),
            requires: &[],
        },
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[("roofline.cl", include_str!("roofline.cl"))]),
            requires: &[],
        },
        Source {
            language: Language::CudaC,
            code: Code::Text(&[("roofline.cu", include_str!("roofline.cu"))]),
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROOFLINE_64),
            requires: &["shaderInt64"],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(spirv::ROOFLINE),
            requires: &[],
        },
    ],
    tunables: &[
        Tunable {
            name: "WIDTH",
            values: &[4, 16],
            default: 16,
            meaning: "lanes of a vector",
        },
        Tunable {
            name: "INTERLEAVED",
            values: &[0, 1],
            default: 0,
            meaning: "whether neighbouring work-items touch neighbouring vectors",
        },
    ],
    constraints: &[],
    local_memory: |_| 0,
};

/// How the device is filled.
struct Shape {
    config: Config,
    width: u64,
    groups: u64,
    group: u32,
}

/// The kernel that a device is measured with.
pub fn module(info: &DeviceInfo) -> ModuleKey {
    ModuleKey {
        kernel: &KERNEL,
        config: Shape::of(info).config,
    }
}

impl Shape {
    fn of(info: &DeviceInfo) -> Shape {
        // A processor wants streams. Its threads are work-items where the language has the vectors that it is made of, else groups.
        let cpu = info.kind == DeviceKind::Cpu;
        let lanes = info.subgroup_sizes.iter().copied().max().unwrap_or(1);
        let (width, groups, group) = match cpu {
            true if info.vector_width > 1 => (16, 8, 1),
            true => (4, 8, lanes),
            false => (4, 64, info.limits.max_group_size.min(256)),
        };
        let mut config = Config::default();
        config.set("WIDTH", width);
        config.set("INTERLEAVED", i64::from(!cpu));
        config.set("GROUP", group.into());
        Shape {
            config,
            width: width as u64,
            groups: groups * u64::from(info.compute_units.max(1)),
            group,
        }
    }

    fn items(&self) -> u64 {
        self.groups * u64::from(self.group)
    }

    /// Vectors for each work-item; all together fill no more than the stream's bytes.
    fn share(&self) -> u64 {
        STREAM_BYTES / 4 / self.width / self.items() / 4 * 4
    }

    fn elements(&self) -> u64 {
        self.share() * self.items() * self.width
    }
}

impl Roofline {
    /// The larger of each.
    pub fn max(self, other: Roofline) -> Roofline {
        Roofline {
            peak_gflops: self.peak_gflops.max(other.peak_gflops),
            read_gbs: self.read_gbs.max(other.read_gbs),
            copy_gbs: self.copy_gbs.max(other.copy_gbs),
        }
    }

    /// Measures a device. Takes about three seconds.
    ///
    /// # Errors
    /// What compiling, allocating or launching can fail with.
    pub fn measure(session: &Session) -> Result<Roofline> {
        let shape = Shape::of(session.device().info());
        let device = session.device();
        let vector = |elements| TensorDesc::contiguous(DType::F32, &[elements]);
        let sums = vector(shape.items() * shape.width)?;
        let sums = device.alloc(sums.span_bytes()?)?.view(sums, 0)?;
        let stream = vector(shape.elements())?;
        let allocate = || device.alloc(stream.span_bytes()?)?.view(stream, 0);
        let (from, to) = (allocate()?, allocate()?);
        // Touched, so that the pages are there; not with zeros, which some memory controllers store without writing them.
        session.queue().fill(&from.bytes(), 0x3f)?;
        session.queue().fill(&to.bytes(), 0)?;

        let share = Arg::U64(shape.share().into());
        let peak = peak(session, &shape, &sums)?;
        let read = [(&from, false), (&sums, true)];
        let read = launch(
            session,
            &shape,
            "read_all",
            &read,
            std::slice::from_ref(&share),
        )?;
        let copy = [(&from, false), (&to, true)];
        let copy = launch(session, &shape, "copy_all", &copy, &[share])?;
        let bytes = 4 * shape.elements();
        Ok(Roofline {
            peak_gflops: peak / 1e9,
            read_gbs: bytes as f64 / read / 1e9,
            copy_gbs: 2.0 * bytes as f64 / copy / 1e9,
        })
    }
}

/// Multiply-adds a second, counting two each, in a launch that is long enough to show them.
fn peak(session: &Session, shape: &Shape, sums: &View) -> Result<f64> {
    // Rounds of all loops of a work-item count, which takes its lanes one after the other; a few belong to other loops.
    let info = session.device().info();
    let most = info.limits.loop_rounds.map_or(1 << 28, |rounds| {
        rounds.saturating_sub(64) / shape.width * STEPS
    });
    let mut iterations = 64;
    loop {
        let scalars = [Arg::U32(iterations.into()), Arg::F32(0.999)];
        let seconds = launch(session, shape, "peak_fma", &[(sums, true)], &scalars)?;
        let flops = 2 * CHAINS * iterations * shape.items() * shape.width;
        if seconds >= LAUNCH || iterations == most {
            return Ok(flops as f64 / seconds);
        }
        // Not by much more than is needed: some drivers end a launch that takes seconds.
        let factor = (1.5 * LAUNCH / seconds.max(1e-6)).clamp(2.0, 64.0);
        iterations = ((iterations as f64 * factor) as u64 / STEPS * STEPS).min(most);
    }
}

/// The least time of a launch in seconds.
fn launch(
    session: &Session,
    shape: &Shape,
    entry: &'static str,
    operands: &[(&View, bool)],
    scalars: &[Arg],
) -> Result<f64> {
    let mut plan = Plan::new("roofline", Determinism::RunToRun);
    let module = plan.module(ModuleKey {
        kernel: &KERNEL,
        config: shape.config.clone(),
    });
    for (view, write) in operands {
        plan.operands.push(OperandRule {
            name: "buffer",
            dtype: DType::F32,
            write: *write,
            shape: vec![Extent::Exactly(view.layout().shape()[0])],
            strides: vec![StrideRule::Exactly(1)],
            offset_multiple: 1,
            form: Form::Plain,
        });
    }
    let args = (0..operands.len()).map(Arg::operand);
    plan.launches.push(Launch {
        module,
        entry,
        grid: [shape.groups.into(), 1.into(), 1.into()],
        group: [shape.group, 1, 1],
        local_memory: 0,
        args: args.chain(scalars.iter().cloned()).collect(),
    });
    let executable = session.compile(plan)?;
    let views: Vec<View> = operands.iter().map(|(view, _)| (*view).clone()).collect();
    let timing = measure(session.queue(), BUDGET, |_| {
        executable.enqueue(&**session.queue(), &views, None)
    })?;
    Ok(timing.least)
}

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

struct Chains {
    iterations: usize,
    factor: f32,
    addend: f32,
}

impl WithSimd for Chains {
    /// The sum of all lanes and the number of lanes.
    type Output = (f32, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, usize) {
        let factor = simd.splat_f32s(self.factor);
        let addend = simd.splat_f32s(self.addend);
        let mut chains: [_; CHAINS as usize] = std::array::from_fn(|i| simd.splat_f32s(i as f32));
        for _ in 0..self.iterations {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, factor, addend);
            }
        }
        let sum = chains
            .into_iter()
            .fold(simd.splat_f32s(0.0), |sum, chain| simd.add_f32s(sum, chain));
        (simd.reduce_sum_f32s(sum), S::F32_LANES)
    }
}

struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (vectors, rest) = S::as_simd_f32s(self.0);
        let mut sums = [simd.splat_f32s(0.0); 8];
        let (blocks, tail) = vectors.as_chunks::<8>();
        for block in blocks {
            for (sum, vector) in sums.iter_mut().zip(block) {
                *sum = simd.add_f32s(*sum, *vector);
            }
        }
        let sums = sums.iter().chain(tail);
        let sum = sums.fold(simd.splat_f32s(0.0), |sum, vector| {
            simd.add_f32s(sum, *vector)
        });
        simd.reduce_sum_f32s(sum) + rest.iter().sum::<f32>()
    }
}

/// As many lanes in all as the OpenCL kernel has, in vectors of the processor's width.
fn peak_fma(call: &mut NativeCall<'_>) -> Result<()> {
    let out = call.write::<f32>()?;
    let iterations = call.size()?;
    let factor = call.float()?;
    let items = call.grid()[0] as usize;
    out.par_chunks_mut(out.len() / items)
        .enumerate()
        .for_each(|(item, out)| {
            let mut lanes = 0;
            let mut sum = 0.0;
            while lanes < out.len() {
                let addend = (item + lanes) as f32 + 1.0;
                let chains = Chains {
                    iterations,
                    factor,
                    addend,
                };
                let (part, width) = ARCH.dispatch(chains);
                sum += part;
                lanes += width;
            }
            out.fill(sum);
        });
    Ok(())
}

fn read_all(call: &mut NativeCall<'_>) -> Result<()> {
    let data = call.read::<f32>()?;
    let out = call.write::<f32>()?;
    let items = call.grid()[0] as usize;
    let share = data.len() / items;
    out.par_chunks_mut(out.len() / items)
        .zip(data.par_chunks(share))
        .for_each(|(out, data)| out.fill(ARCH.dispatch(Sum(data))));
    Ok(())
}

fn copy_all(call: &mut NativeCall<'_>) -> Result<()> {
    let from = call.read::<f32>()?;
    let to = call.write::<f32>()?;
    let share = from.len() / call.grid()[0] as usize;
    to.par_chunks_mut(share)
        .zip(from.par_chunks(share))
        .for_each(|(to, from)| to.copy_from_slice(from));
    Ok(())
}
