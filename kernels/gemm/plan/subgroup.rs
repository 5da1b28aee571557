//! The launches of `gemm_subgroup` and `grouped_subgroup`: a tile of d in the registers of one subgroup, operands as they lie.

use ropeway_core::dtype::DType;
use ropeway_core::error::{Error, Result};
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel};
use ropeway_core::plan::{Arg, Expr, Launch, Plan};

use super::super::Activation;
use super::super::grouped::GroupedProduct;
use super::super::manifest::{GEMV_LANES, GROUPED_SUBGROUP, GROUPED_TILED, SUBGROUP, TILED};
use super::{Problem, SKINNY, activation_code, available, module};

/// Rounds of loops beside the one over k, generously.
const OTHER_ROUNDS: u64 = 512;

/// Those of `wanted` that the device can run, without the kernels of this module where it would end their loops over k: a round may be
/// one k.
pub(in super::super) fn available_for(
    k: u64,
    mut wanted: Vec<&'static Kernel>,
    info: &DeviceInfo,
) -> Result<Vec<&'static Kernel>> {
    let most = info.limits.loop_rounds.unwrap_or(u64::MAX);
    // A tile in shared memory takes at least two k a round, lanes that share a row at least eight.
    let rounds_of: [(u64, &[&str]); 3] = [
        (k, &[SUBGROUP.name, GROUPED_SUBGROUP.name]),
        (k / 2, &[TILED.name, GROUPED_TILED.name]),
        (k / 8, &[GEMV_LANES.name]),
    ];
    for (rounds, kernels) in rounds_of {
        if rounds.saturating_add(OTHER_ROUNDS) > most {
            wanted.retain(|kernel| !kernels.contains(&kernel.name));
        }
    }
    available(&wanted, info).map_err(|lack| match k.saturating_add(OTHER_ROUNDS) > most {
        true => Error::unsupported(format!(
            "k {k}: loops end after {most} rounds on {}",
            info.name
        )),
        false => lack,
    })
}

/// Most invocations of a group.
const MOST_LANES: u32 = 32;

/// Most rows of a tile whose lanes lie along k, and most lanes: each has a sum for every row and column of the tile.
const DOT_ROWS: u64 = 4;
const DOT_LANES: u64 = 16;

/// Where four elements of an operand lie side by side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AlongK,
    Across,
    Nowhere,
}

impl Order {
    /// From the strides along k and along the other axis. A view that is bound later may have others: the kernel looks again, and
    /// takes its elements one by one.
    fn of(k: u64, other: u64, dtype: DType) -> Order {
        // Four elements are aligned to 8 bytes, or to all four if they are less.
        let whole = if dtype == DType::F32 { 2 } else { 4 };
        match (k, other) {
            (1, other) if other.is_multiple_of(whole) => Order::AlongK,
            (k, 1) if k.is_multiple_of(whole) => Order::Across,
            _ => Order::Nowhere,
        }
    }

    fn code(self) -> i64 {
        match self {
            Order::AlongK => 0,
            Order::Across => 1,
            Order::Nowhere => 2,
        }
    }
}

/// The tile of a problem: rows, and columns in units of lanes.
struct Tile {
    lanes: u64,
    rows: u64,
    vectors: u64,
    swiglu: bool,
    orders: [Order; 2],
    dots: bool,
}

impl Tile {
    fn new(
        config: &Config,
        info: &DeviceInfo,
        rows_max: u64,
        swiglu: bool,
        orders: [Order; 2],
    ) -> Tile {
        let smallest = info.subgroup_sizes.iter().copied().min().unwrap_or(1);
        let lanes = smallest.clamp(1, MOST_LANES);
        let rows = rows_max
            .max(1)
            .next_power_of_two()
            .min(config.value("ROWS") as u64);
        // Few rows leave registers for more columns. Gate and value each need as many vectors as a load has elements.
        let vectors = match config.value("VECTORS") as u64 {
            least if rows <= SKINNY || swiglu => least.max(8),
            vectors => vectors,
        };
        let rows = if swiglu { rows.min(16) } else { rows };
        let lanes = 1 << lanes.ilog2();
        let dots = rows <= DOT_ROWS && lanes <= DOT_LANES && orders == [Order::AlongK; 2];
        Tile {
            lanes,
            rows,
            vectors: match dots {
                true => 1 + u64::from(swiglu),
                false => vectors,
            },
            swiglu,
            orders,
            dots,
        }
    }

    /// Columns of d.
    fn columns(&self) -> u64 {
        self.lanes * self.vectors / if self.swiglu { 2 } else { 1 }
    }

    fn a_order(&self, order: Order) -> Order {
        match order {
            Order::Across if !self.rows.is_multiple_of(4 * self.lanes) => Order::Nowhere,
            order => order,
        }
    }

    fn set(&self, config: &mut Config) {
        let [a, b] = self.orders;
        config
            .set("LANES", self.lanes as i64)
            .set("ROWS", self.rows as i64)
            .set("VECTORS", self.vectors as i64)
            .set("SWIGLU", self.swiglu.into())
            .set("DOTS", self.dots.into())
            .set("A_ORDER", self.a_order(a).code())
            .set("B_ORDER", b.code());
    }

    fn group(&self) -> [u32; 3] {
        [self.lanes as u32, 1, 1]
    }
}

/// The plan of a product. With few columns it is that of the transposed problem, whose rows are few.
pub(super) fn gemm(problem: &Problem<'_>, config: &Config, info: &DeviceInfo, plan: &mut Plan) {
    let op = problem.op;
    let swiglu = op.activation == Activation::Swiglu;
    let blocks = op.b_format.is_some();
    let swapped = problem.n <= SKINNY && problem.m_max > SKINNY && !swiglu && !blocks;
    let [a_row, a_k, b_k, b_column] = problem.element_strides();
    let orders = match (Order::of(a_k, a_row, op.a.dtype), blocks) {
        (order, false) => [order, Order::of(b_k, b_column, op.b.dtype)],
        (Order::AlongK, true) => [Order::AlongK; 2],
        (_, true) => [Order::Nowhere, Order::AlongK],
    };
    let bias = Arg::U64(problem.bias_stride());
    let zero = Arg::U64(Expr::Const(0));
    let n = Expr::from(problem.n);
    let (a, b, rows, columns, rows_max, orders, bias_strides) = match swapped {
        false => (
            problem.a.clone(),
            problem.b.clone(),
            problem.m.clone(),
            n,
            problem.m_max,
            orders,
            [zero, bias],
        ),
        true => (
            problem.b.swapped(),
            problem.a.swapped(),
            n,
            problem.m.clone(),
            problem.n,
            [orders[1], orders[0]],
            [bias, zero],
        ),
    };
    let tile = Tile::new(config, info, rows_max, swiglu, orders);
    let mut config = config.clone();
    tile.set(&mut config);
    config
        .set("INTEGER", (op.a.dtype == DType::I8).into())
        .set("HAS", problem.has)
        .set("ACTIVATION", activation_code(op.activation));
    let key = {
        let [a, b] = if swapped {
            [op.b.dtype, op.a.dtype]
        } else {
            [op.a.dtype, op.b_dtype()]
        };
        config.set_dtype(
            "C_DTYPE",
            match op.a.dtype {
                DType::I8 => DType::I32,
                dtype => dtype,
            },
        );
        module(&SUBGROUP, &config, [a, b, op.d.dtype])
    };
    let module = plan.module(key);
    let swap = |mut strides: [Arg; 4]| {
        if swapped {
            strides.swap(0, 1);
        }
        strides
    };
    let [outer, inner] = problem.launch_batch();
    let d_columns = match swiglu {
        true => (problem.n / 2).into(),
        false => columns.clone(),
    };
    for leading in problem.launches() {
        let source = |side: &super::Side| match problem.k {
            0 => Arg::Absent,
            _ => side.arg(&leading),
        };
        let mut args = vec![
            source(&a),
            source(&b),
            problem.c_arg(&leading),
            problem.bias_arg(),
            problem.d.arg(&leading),
            Arg::U32(rows.clone()),
            Arg::U32(columns.clone()),
            Arg::U32(problem.k.into()),
            Arg::U32(inner.into()),
            Arg::F32(op.alpha),
            Arg::F32(op.beta),
        ];
        args.extend(a.strides());
        args.extend(b.strides());
        args.extend(swap(problem.c_strides()));
        args.extend(bias_strides.clone());
        args.extend(swap(problem.d.strides()));
        plan.launches.push(Launch {
            module,
            entry: "gemm_subgroup",
            grid: [
                d_columns.clone().div_ceil(tile.columns()),
                rows.clone().div_ceil(tile.rows),
                outer.saturating_mul(inner).into(),
            ],
            group: tile.group(),
            local_memory: 0,
            args,
        });
    }
}

/// Adds the launch of a grouped product to a plan.
pub(in super::super) fn append_grouped(
    plan: &mut Plan,
    config: &Config,
    info: &DeviceInfo,
    product: &GroupedProduct,
) {
    let swiglu = product.activation == Activation::Swiglu;
    // Twice an expert's share: blocks that are nearly empty cost as much as full ones, a second block reads the weights again.
    let share = match product.capacity {
        Some(capacity) => capacity,
        None => (2 * product.rows_max).div_ceil(product.experts.max(1)),
    };
    let share = share.min(product.rows_max);
    // Rows and weights usually lie along k; where they do not, the kernel notices.
    let tile = Tile::new(config, info, share, swiglu, [Order::AlongK; 2]);
    let mut config = config.clone();
    tile.set(&mut config);
    config.set("MASKED", product.capacity.is_some().into());
    let module = plan.module(module(&GROUPED_SUBGROUP, &config, product.dtypes));
    let mut args = vec![
        product.a.clone(),
        product.b.clone(),
        product.routing.clone(),
        product.d.clone(),
        Arg::Status,
        Arg::U32(product.rows.clone()),
    ];
    args.extend(
        [
            product.experts,
            product.capacity.unwrap_or(0),
            product.n,
            product.k,
        ]
        .map(|v| Arg::U32(v.into())),
    );
    for strides in [&product.a_strides, &product.b_strides, &product.d_strides] {
        args.extend(strides.clone().map(Arg::U64));
    }
    let columns = product.n / if swiglu { 2 } else { 1 };
    plan.launches.push(Launch {
        module,
        entry: "grouped_subgroup",
        grid: [
            columns.div_ceil(tile.columns()).into(),
            product.blocks(tile.rows),
            1.into(),
        ],
        group: tile.group(),
        local_memory: 0,
        args,
    });
}
