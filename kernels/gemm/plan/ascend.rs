//! The launches of `gemm_cube` and `grouped_cube`: an Ascend NPU's cube cores, with its vector cores before and behind them.
//!
//! An operand that does not lie as cube cores take it is packed into the workspace first. Sums go straight to d where the copy out of
//! the cube core can finish them; else to the workspace, and an epilogue of the vector cores takes them from there.

use ropeway_core::dtype::DType;
use ropeway_core::error::Result;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel, ModuleKey};
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::{Arg, Expr, Launch, Plan, StrideRule};

use super::super::Activation;
use super::super::grouped::GroupedProduct;
use super::super::manifest::{CUBE, CUBE_LINES, GROUPED_CUBE};
use super::{
    HAS_BIAS, HAS_C, Problem, Side, activation_code, f32_bytes, inner_extents, module, workspace,
};

/// Vector cores of a cube core.
const VECTORS: u64 = 2;
/// Fewest stages of k in a part: fewer would hardly fill the pipes.
const LEAST_STAGES: u64 = 2;
/// Fewest lines of blocks that a vector core unpacks: it writes tables first.
const LEAST_LINES: u64 = 16;
/// Most parts of k: each costs a round trip of all sums through memory.
const MOST_PARTS: u64 = 16;

/// The dtype in which cube cores multiply these two. Of two, that which holds both.
fn cube_dtype(a: DType, b: DType) -> DType {
    if a == b { a } else { DType::F32 }
}

/// The dtype of sums.
fn sum_dtype(cube: DType) -> DType {
    match cube {
        DType::I8 => DType::I32,
        _ => DType::F32,
    }
}

/// How an operand comes to the cube cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it lies, k side by side.
    Along,
    /// As it lies, lines side by side.
    Across,
    /// Through the workspace.
    Packed,
}

impl Way {
    /// From an operand's strides from line to line and along k.
    fn of(line: u64, k: u64, dtype: DType, cube: DType) -> Way {
        match (line, k) {
            _ if dtype != cube => Way::Packed,
            (_, 1) => Way::Along,
            (1, _) if dtype.size() == Some(2) => Way::Across,
            _ => Way::Packed,
        }
    }
}

/// A grouped product's operand: k of an [.., k] view must lie side by side to be taken as it lies.
pub(in super::super) fn grouped_way(desc: &TensorDesc, other: DType) -> Way {
    let axis = desc.layout.rank() - 1;
    let k = match desc.shape()[axis] {
        0 | 1 => 1,
        _ => desc.layout.strides()[axis],
    };
    // Lines are never side by side: 0 stands for none.
    Way::of(0, k, desc.dtype, cube_dtype(desc.dtype, other))
}

/// Requires what a way takes for granted of one axis.
pub(in super::super) fn require_unit(plan: &mut Plan, operand: usize, axis: usize) {
    plan.operands[operand].strides[axis] = StrideRule::Exactly(1);
}

/// An operand as a kernel gets it: where it is, and its strides from line to line, outer and inner batch.
struct Source {
    arg: Arg,
    strides: [Expr; 3],
}

/// Vector cores that pack so many lines of this dtype.
fn packers(lines: Expr, dtype: DType, cores: u64) -> [Expr; 3] {
    let each = match DType::GGML_BLOCKS.contains(&dtype) {
        true => LEAST_LINES,
        false => 1,
    };
    blocks(lines.div_ceil(each), cores)
}

fn blocks(work: Expr, cores: u64) -> [Expr; 3] {
    [work.min(cores), 1.into(), 1.into()]
}

fn launch(module: usize, entry: &'static str, grid: [Expr; 3], args: Vec<Arg>) -> Launch {
    Launch {
        module,
        entry,
        grid,
        group: [1; 3],
        local_memory: 0,
        args,
    }
}

/// One side of a product on its way to the cube cores.
struct Packing<'a> {
    entry: &'static str,
    side: &'a Side,
    /// Strides from line to line, and along k.
    line: &'a Expr,
    stride: &'a Expr,
    lines: Expr,
    lines_max: u64,
    k: u64,
    dtype: DType,
    way: Way,
    cube: DType,
    /// The range that packed lines take, if any do.
    range: std::ops::Range<u64>,
}

impl Packing<'_> {
    fn batches(&self) -> [u64; 2] {
        inner_extents(&self.side.batch_extents)
    }

    fn reserve(&mut self, plan: &mut Plan) -> Result<()> {
        if self.way == Way::Packed {
            let [outer, inner] = self.batches();
            // As f32, whatever it is: few operands are packed.
            self.range = plan.take_workspace(f32_bytes(&[outer, inner, self.lines_max, self.k])?);
        }
        Ok(())
    }

    /// The operand for these leading batches; packs it where it must be.
    fn source(&self, plan: &mut Plan, module: usize, cores: u64, leading: &[u64]) -> Source {
        let [outer, inner] = self.side.batch_strides();
        if self.way != Way::Packed {
            let line = if self.way == Way::Along {
                self.line
            } else {
                self.stride
            };
            return Source {
                arg: self.side.arg(leading),
                strides: [line.clone(), outer, inner],
            };
        }
        let [outer_extent, inner_extent] = self.batches();
        let work = self.lines.clone() * Expr::from(outer_extent * inner_extent);
        let mut args = vec![
            self.side.arg(leading),
            workspace(&self.range, self.cube, true),
            Arg::U32(self.lines.clone()),
        ];
        args.extend([self.k, outer_extent, inner_extent].map(|v| Arg::U32(v.into())));
        args.extend([self.line.clone(), self.stride.clone(), outer, inner].map(Arg::U64));
        plan.launches.push(launch(
            module,
            self.entry,
            packers(work, self.dtype, cores),
            args,
        ));
        let size = self.lines.clone() * Expr::from(self.k);
        let stride = |own: u64, times: u64| match own {
            1 => Expr::Const(0),
            _ => size.clone() * Expr::from(times),
        };
        Source {
            arg: workspace(&self.range, self.cube, false),
            strides: [
                self.k.into(),
                stride(outer_extent, inner_extent),
                stride(inner_extent, 1),
            ],
        }
    }
}

/// The modules of a product: on cube cores, and on vector cores.
fn modules(
    plan: &mut Plan,
    kernel: &'static Kernel,
    config: &Config,
    dtypes: [DType; 3],
    out: DType,
    ways: [Way; 2],
) -> [usize; 2] {
    let [a, b, _] = dtypes;
    let cube = cube_dtype(a, b);
    let mut on_cubes = config.clone();
    on_cubes
        .set_dtype("CUBE_DTYPE", cube)
        .set_dtype("OUT_DTYPE", out)
        .set("A_ACROSS", (ways[0] == Way::Across).into())
        .set("B_ACROSS", (ways[1] == Way::Across).into());
    let mut on_vectors = module(&CUBE_LINES, &CUBE_LINES.default_config(), dtypes);
    on_vectors.config.set_dtype("CUBE_DTYPE", cube);
    [
        plan.module(ModuleKey {
            kernel,
            config: on_cubes,
        }),
        plan.module(on_vectors),
    ]
}

/// The plan of a product; k is cut into parts where d has too few tiles for the device.
pub(super) fn gemm(
    problem: &Problem<'_>,
    config: &Config,
    info: &DeviceInfo,
    plan: &mut Plan,
) -> Result<()> {
    let op = problem.op;
    let [a_dtype, b_dtype, d_dtype] = [op.a.dtype, op.b_dtype(), op.d.dtype];
    let cube = cube_dtype(a_dtype, b_dtype);
    let [a_m, a_k, b_k, b_n] = problem.element_strides();
    let ways = [
        Way::of(a_m, a_k, a_dtype, cube),
        Way::of(b_n, b_k, b_dtype, cube),
    ];
    let mut packings = [
        Packing {
            entry: "gemm_pack_a",
            side: &problem.a,
            line: &problem.a.row,
            stride: &problem.a.column,
            lines: problem.m.clone(),
            lines_max: problem.m_max,
            k: problem.k,
            dtype: a_dtype,
            way: ways[0],
            cube,
            range: 0..0,
        },
        Packing {
            entry: "gemm_pack_b",
            side: &problem.b,
            line: &problem.b.column,
            stride: &problem.b.row,
            lines: problem.n.into(),
            lines_max: problem.n,
            k: problem.k,
            dtype: b_dtype,
            way: ways[1],
            cube,
            range: 0..0,
        },
    ];
    let [outer, inner] = problem.launch_batch();
    let batches = outer.saturating_mul(inner);
    let [block_m, block_n] = ["BLOCK_M", "BLOCK_N"].map(|name| config.value(name) as u64);
    let tiles_n = problem.n.div_ceil(block_n);
    let tiles = problem
        .m_max
        .div_ceil(block_m)
        .saturating_mul(tiles_n)
        .saturating_mul(batches);
    let cubes = u64::from(info.compute_units.max(1));
    let vectors = VECTORS * cubes;
    let bytes = 2 * (config.value("BLOCK_K") * config.value("STEPS")) as u64;
    let stage = bytes / cube.size().unwrap_or(1);
    let wanted = (cubes / tiles.max(1))
        .min(problem.k / (LEAST_STAGES * stage))
        .clamp(1, MOST_PARTS);
    let part = problem
        .k
        .div_ceil(wanted)
        .next_multiple_of(stage)
        .max(stage);
    let parts = problem.k.div_ceil(part);
    let columns = op.d.layout.rank() - 1;
    let d_is_dense = op.d.shape()[columns] <= 1 || op.d.layout.strides()[columns] == 1;
    let direct = parts == 1
        && op.alpha == 1.0
        && problem.has & (HAS_C | HAS_BIAS) == 0
        && op.activation == Activation::None
        && d_is_dense
        && (cube != DType::I8 || d_dtype == DType::I32);
    let out = if direct { d_dtype } else { sum_dtype(cube) };
    let [on_cubes, on_vectors] =
        modules(plan, &CUBE, config, [a_dtype, b_dtype, d_dtype], out, ways);
    if problem.k > 0 {
        for (operand, axes, way) in [
            (
                0,
                [
                    problem_axis(&op.a, op.trans_a, false),
                    problem_axis(&op.a, op.trans_a, true),
                ],
                ways[0],
            ),
            (
                1,
                [
                    problem_axis(&op.b, !op.trans_b, false),
                    problem_axis(&op.b, !op.trans_b, true),
                ],
                ways[1],
            ),
        ] {
            match way {
                Way::Along => require_unit(plan, operand, axes[1]),
                Way::Across => require_unit(plan, operand, axes[0]),
                Way::Packed => {}
            }
        }
        for packing in &mut packings {
            packing.reserve(plan)?;
        }
    }
    if direct {
        require_unit(plan, problem.d.operand, columns);
    }
    let range = match direct || problem.k == 0 {
        true => 0..0,
        false => plan.take_workspace(f32_bytes(&[parts, batches, problem.m_max, problem.n])?),
    };
    let batch_size = problem.m.clone() * Expr::from(problem.n);
    for leading in problem.launches() {
        if problem.k > 0 {
            let [a, b] = [0, 1].map(|i| packings[i].source(plan, on_vectors, vectors, &leading));
            let d = match direct {
                true => {
                    let [outer, inner] = problem.d.batch_strides();
                    Source {
                        arg: problem.d.arg(&leading),
                        strides: [problem.d.row.clone(), outer, inner],
                    }
                }
                false => Source {
                    arg: workspace(&range, out, true),
                    strides: [
                        problem.n.into(),
                        batch_size.clone() * Expr::from(inner),
                        batch_size.clone(),
                    ],
                },
            };
            let sources = [a, b, d];
            let mut args: Vec<Arg> = sources.iter().map(|source| source.arg.clone()).collect();
            args.push(Arg::U32(problem.m.clone()));
            args.extend([problem.n, problem.k, outer, inner, part].map(|v| Arg::U32(v.into())));
            for source in &sources {
                args.extend(source.strides.clone().map(Arg::U64));
            }
            args.push(Arg::U64(batch_size.clone() * Expr::from(batches)));
            let work = problem.m.clone().div_ceil(block_m)
                * Expr::from(tiles_n.saturating_mul(parts).saturating_mul(batches));
            plan.launches
                .push(launch(on_cubes, "gemm_cube", blocks(work, cubes), args));
        }
        if direct && problem.k > 0 {
            continue;
        }
        let mut args = vec![
            workspace(&range, sum_dtype(cube), false),
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U32(problem.m.clone()),
        ];
        args.extend([problem.n, parts, outer, inner].map(|v| Arg::U32(v.into())));
        args.extend(problem.epilogue());
        args.extend(problem.c_strides());
        args.push(Arg::U64(problem.bias_stride()));
        args.extend(problem.d.strides());
        let work = problem.m.clone() * Expr::from(batches);
        plan.launches.push(launch(
            on_vectors,
            "gemm_finish",
            blocks(work, vectors),
            args,
        ));
    }
    Ok(())
}

/// The axis of lines, or of k, in a view whose last two axes are lines and k, or k and lines if `turned`.
fn problem_axis(desc: &TensorDesc, turned: bool, of_k: bool) -> usize {
    desc.layout.rank() - if turned == of_k { 2 } else { 1 }
}

/// Adds the launches of a grouped product.
pub(in super::super) fn append_grouped(
    plan: &mut Plan,
    config: &Config,
    info: &DeviceInfo,
    product: &GroupedProduct,
) -> Result<()> {
    let [a_dtype, b_dtype, d_dtype] = product.dtypes;
    let cube = cube_dtype(a_dtype, b_dtype);
    let cubes = u64::from(info.compute_units.max(1));
    let vectors = VECTORS * cubes;
    let direct = product.activation == Activation::None
        && product.d_is_dense
        && product.k > 0
        && (cube != DType::I8 || d_dtype == DType::I32);
    let out = if direct { d_dtype } else { sum_dtype(cube) };
    let [on_cubes, on_vectors] = modules(
        plan,
        &GROUPED_CUBE,
        config,
        product.dtypes,
        out,
        product.ways,
    );
    let range = match direct || product.k == 0 {
        true => 0..0,
        false => plan.take_workspace(f32_bytes(&[product.rows_max, product.n])?),
    };
    let sizes = || product.sizes().map(Arg::U32);
    if product.k > 0 {
        let masked = product.capacity.is_some();
        // a as it is bound: experts (masked) of rows; b: experts of columns.
        let [a, b] = [
            Grouped {
                entry: "gemm_pack_a",
                arg: &product.a,
                strides: &product.a_strides,
                experts: if masked { product.experts } else { 1 },
                lines: match product.capacity {
                    Some(capacity) => capacity.into(),
                    None => product.rows.clone(),
                },
                lines_max: product.capacity.unwrap_or(product.rows_max),
                dtype: a_dtype,
                way: product.ways[0],
            },
            Grouped {
                entry: "gemm_pack_b",
                arg: &product.b,
                strides: &product.b_strides,
                experts: product.experts,
                lines: product.n.into(),
                lines_max: product.n,
                dtype: b_dtype,
                way: product.ways[1],
            },
        ]
        .map(|side| side.source(plan, on_vectors, vectors, cube, product.k));
        let (a, b) = (a?, b?);
        // Without a direct way, sums lie one row behind the other: capacity rows an expert, if masked.
        let d_line = match direct {
            true => product.d_strides[1].clone(),
            false => product.n.into(),
        };
        let d = match direct {
            true => product.d.clone(),
            false => workspace(&range, out, true),
        };
        let mut args = vec![a.arg, b.arg, product.routing.clone(), d];
        args.extend(sizes());
        args.extend([product.n, product.k].map(|v| Arg::U32(v.into())));
        let d_expert = match direct {
            true => product.d_strides[0].clone(),
            false => Expr::from(product.capacity.unwrap_or(0)) * Expr::from(product.n),
        };
        for (expert, line) in [
            (a.strides[0].clone(), a.strides[1].clone()),
            (b.strides[0].clone(), b.strides[1].clone()),
            (d_expert, d_line),
        ] {
            args.extend([expert, line].map(Arg::U64));
        }
        let [block_m, block_n] = ["BLOCK_M", "BLOCK_N"].map(|name| config.value(name) as u64);
        let work = product.blocks(block_m) * Expr::from(product.n.div_ceil(block_n));
        plan.launches
            .push(launch(on_cubes, "grouped_cube", blocks(work, cubes), args));
    }
    let mut args = vec![
        workspace(&range, sum_dtype(cube), false),
        product.routing.clone(),
        product.d.clone(),
        Arg::Status,
    ];
    args.extend(sizes());
    args.push(Arg::U32(product.n.into()));
    args.push(Arg::U32(activation_code(product.activation).into()));
    args.push(Arg::U32(i64::from(direct).into()));
    args.extend(product.d_strides.clone().map(Arg::U64));
    plan.launches.push(launch(
        on_vectors,
        "grouped_finish",
        blocks(product.rows.clone(), vectors),
        args,
    ));
    Ok(())
}

/// One side of a grouped product: lines of k elements, by expert.
struct Grouped<'a> {
    entry: &'static str,
    arg: &'a Arg,
    /// Strides of expert, line and k.
    strides: &'a [Expr; 3],
    experts: u64,
    lines: Expr,
    lines_max: u64,
    dtype: DType,
    way: Way,
}

impl Grouped<'_> {
    /// Strides of expert and line come with it; the third is 0.
    fn source(
        self,
        plan: &mut Plan,
        module: usize,
        cores: u64,
        cube: DType,
        k: u64,
    ) -> Result<Source> {
        let [expert, line, stride] = self.strides.clone();
        if self.way == Way::Along {
            return Ok(Source {
                arg: self.arg.clone(),
                strides: [expert, line, 0.into()],
            });
        }
        let range = plan.take_workspace(f32_bytes(&[self.experts, self.lines_max, k])?);
        let mut args = vec![
            self.arg.clone(),
            workspace(&range, cube, true),
            Arg::U32(self.lines.clone()),
        ];
        args.extend([k, self.experts, 1].map(|v| Arg::U32(v.into())));
        args.extend([line, stride, expert, 0.into()].map(Arg::U64));
        let work = self.lines.clone() * Expr::from(self.experts);
        plan.launches.push(launch(
            module,
            self.entry,
            packers(work, self.dtype, cores),
            args,
        ));
        Ok(Source {
            arg: workspace(&range, cube, false),
            strides: [self.lines * Expr::from(k), k.into(), 0.into()],
        })
    }
}
