//! The launches of `gemv_lanes`: the large operand w read once, by neighbouring lanes.

use ropeway_core::dtype::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Language};
use ropeway_core::plan::{Arg, Expr, Launch, Plan};

use super::super::Activation;
use super::super::manifest::GEMV_LANES;
use super::{Problem, SKINNY, Side, activation_code, module};

/// Most sums of one invocation where its lanes lie along k, unless more rows of x are computed together.
const SUMS: u64 = 8;
/// The same on CUDA devices, which have registers for more.
const CUDA_SUMS: u64 = 32;
/// Fewest threads that read neighbouring rows: 128 bytes, or 64.
const LEAST_LANES: u64 = 8;
/// Elements of one load.
const FOUR: u64 = 4;

/// Whether rows or columns are few enough.
pub(super) fn takes(problem: &Problem<'_>) -> bool {
    problem.m_max <= SKINNY || few_columns(problem)
}

/// Rows of x, which are computed together.
pub(super) fn x_rows_max(problem: &Problem<'_>) -> u64 {
    match problem.m_max > SKINNY {
        true => problem.n,
        false => problem.m_max,
    }
}

/// Strides of w along k and from row to row.
fn w_strides(problem: &Problem<'_>) -> [u64; 2] {
    let [a_row, a_k, b_k, b_column] = problem.element_strides();
    match problem.m_max > SKINNY {
        true => [a_k, a_row],
        false => [b_k, b_column],
    }
}

/// Rows of w that lie side by side are read across; whatever the views' strides are then, both ways are right.
pub(super) fn is_along_k(problem: &Problem<'_>) -> bool {
    let [w_k, w_row] = w_strides(problem);
    w_k == 1 || w_row != 1
}

/// Whether w is a. The halves of d's columns under swiglu cannot be rows of x, nor can blocks of weights.
fn few_columns(problem: &Problem<'_>) -> bool {
    problem.op.b_format.is_none()
        && problem.n <= SKINNY
        && problem.op.activation != Activation::Swiglu
}

/// The plan of a product with few rows, or with few columns: that of the transposed problem.
pub(super) fn gemv(problem: &Problem<'_>, config: &Config, info: &DeviceInfo, plan: &mut Plan) {
    let op = problem.op;
    let swapped = problem.m_max > SKINNY;
    let swiglu = op.activation == Activation::Swiglu;
    let x_max = x_rows_max(problem);
    let n = Expr::from(problem.n);
    let bias = Arg::U64(problem.bias_stride());
    let zero = Arg::U64(Expr::Const(0));
    let (w, x, w_rows, x_rows, w_rows_max, dtypes, bias_strides) = match swapped {
        false => (
            problem.b.swapped(),
            problem.a.clone(),
            n,
            problem.m.clone(),
            problem.n,
            [op.a.dtype, op.b_dtype()],
            [zero, bias],
        ),
        true => (
            problem.a.clone(),
            problem.b.swapped(),
            problem.m.clone(),
            n,
            problem.m_max,
            [op.b.dtype, op.a.dtype],
            [bias, zero],
        ),
    };
    let group = config.value("GROUP") as u64;
    let x_rows_together = x_max.max(1).next_power_of_two();
    let parts = if swiglu { 2 } else { 1 };
    let along_k = is_along_k(problem);
    let wide = Wide {
        along_k,
        group,
        lanes: config.value("LANES") as u64 / if along_k { 1 } else { 2 },
        sums: parts * x_rows_together,
        d_rows: w_rows_max / parts,
        two_bytes: dtypes[1].size() == Some(2),
    };
    let [lanes, rows] = match info.languages.contains(&Language::CudaC) {
        true => wide.on_cuda(u64::from(info.compute_units)),
        false => wide.elsewhere(),
    };
    let outputs = rows * if along_k { group / lanes } else { lanes };
    let mut config = config.clone();
    config
        .set("LANES", lanes as i64)
        .set("ROWS", rows as i64)
        .set("X_ROWS", x_rows_together as i64)
        .set("ALONG_K", along_k.into())
        .set("SWIGLU", swiglu.into())
        .set("INTEGER", (op.a.dtype == DType::I8).into());
    config.set_dtype(
        "C_DTYPE",
        match op.a.dtype {
            DType::I8 => DType::I32,
            dtype => dtype,
        },
    );
    let module = plan.module(module(
        &GEMV_LANES,
        &config,
        [dtypes[0], dtypes[1], op.d.dtype],
    ));
    let swap = |mut strides: [Arg; 4]| {
        if swapped {
            strides.swap(0, 1);
        }
        strides
    };
    let d_columns = match swiglu {
        true => (problem.n / 2).into(),
        false => w_rows.clone(),
    };
    let [outer, inner] = problem.launch_batch();
    for leading in problem.launches() {
        let source = |side: &Side| match problem.k {
            0 => Arg::Absent,
            _ => side.arg(&leading),
        };
        let mut args = vec![
            source(&w),
            source(&x),
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U32(w_rows.clone()),
            Arg::U32(x_rows.clone()),
            Arg::U32(problem.k.into()),
            Arg::U32(inner.into()),
            Arg::F32(op.alpha),
            Arg::F32(op.beta),
            Arg::U32(problem.has.into()),
            Arg::U32(activation_code(op.activation).into()),
        ];
        args.extend(w.strides());
        args.extend(x.strides());
        args.extend(swap(problem.c_strides()));
        args.extend(bias_strides.clone());
        args.extend(swap(problem.d.strides()));
        plan.launches.push(Launch {
            module,
            entry: "gemv_lanes",
            grid: [
                d_columns.clone().div_ceil(outputs),
                // A run without rows of x has nothing to do.
                x_rows.clone().min(1),
                outer.saturating_mul(inner).into(),
            ],
            group: [group as u32, 1, 1],
            local_memory: 0,
            args,
        });
    }
}

/// What decides how the threads of a block share w.
struct Wide {
    along_k: bool,
    /// Threads of a block.
    group: u64,
    /// Threads of a team, as tuned.
    lanes: u64,
    /// Sums that each row of a thread needs.
    sums: u64,
    /// Rows of w, or gates.
    d_rows: u64,
    two_bytes: bool,
}

impl Wide {
    /// Lanes of a team, and rows of w in a thread.
    fn elsewhere(&self) -> [u64; 2] {
        let rows = match self.along_k {
            true => (SUMS / self.sums).clamp(1, FOUR),
            false => FOUR,
        };
        [self.lanes, rows]
    }

    /// As [`Wide::elsewhere`], with two blocks a multiprocessor if there are rows enough.
    fn on_cuda(&self, compute_units: u64) -> [u64; 2] {
        let blocks = 2 * compute_units.max(1);
        if self.along_k {
            // A thread's loads of x are shared by its rows.
            let fewest = if self.sums > 2 { 2 } else { 1 };
            let most = (CUDA_SUMS / self.sums).clamp(1, FOUR);
            let teams = self.group / self.lanes * blocks;
            let rows = (self.d_rows / teams).max(fewest).min(most);
            return [self.lanes, 1 << rows.ilog2()];
        }
        let rows = match self.two_bytes && self.sums <= SUMS {
            true => 2 * FOUR,
            false => FOUR,
        };
        let mut lanes = self.lanes;
        while lanes > LEAST_LANES && self.d_rows.div_ceil(lanes * rows) < blocks {
            lanes /= 2;
        }
        [lanes, rows]
    }
}
