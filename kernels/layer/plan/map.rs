//! The planners of the ops that `map` computes: functions of elements, and rows moved by ids.

use ropeway_core::dtype::DType;
use ropeway_core::op::PlanRequest;
use ropeway_core::plan::{Arg, Expr, Plan};
use ropeway_core::{Error, Result};

use super::{Bound, Planner, RANK, repeated, u32, u64};
use crate::layer::manifest::MAP;
use crate::layer::{
    Binary, Copy, Elementwise, GetRows, Glu, GluFunction, SetRows, Unary, UnaryFunction, extents,
};

/// The constant `CLASS`: which functions are compiled in.
const MOVE: i64 = 0;
const BINARY: i64 = 1;
const UNARY: i64 = 2;
const GLU: i64 = 3;

/// The scalar `indexing`.
const PLAIN: u64 = 0;
const GATHER: u64 = 1;
const SCATTER: u64 = 2;

/// Columns of the least piece that a block takes in AscendC.
const LEAST_PIECE: u64 = 512;

/// One launch of `map`.
struct Map {
    a: Arg,
    a_strides: [Arg; RANK],
    b: Arg,
    b_extents: [Arg; RANK],
    b_strides: [Arg; RANK],
    d: Bound,
    /// The rows to go through: those of `d`, or of what is scattered into it.
    rows: Bound,
    ids: Ids,
    function: u64,
    parameters: [f32; 2],
}

/// Row numbers on the device.
struct Ids {
    arg: Arg,
    indexing: u64,
    /// From the low half of an id to the high one; 0 if there is none.
    half: Arg,
    strides: [Arg; 3],
    /// Extents of its outer axes.
    extents: [Arg; 2],
    /// Rows of the table.
    table: Arg,
}

impl Ids {
    fn none() -> Ids {
        Ids {
            arg: Arg::Absent,
            indexing: PLAIN,
            half: u64(0),
            strides: [u64(0), u64(0), u64(0)],
            extents: [u32(1), u32(1)],
            table: u32(0),
        }
    }
}

impl Map {
    fn of(a: Bound, d: Bound) -> Map {
        Map {
            a: a.arg(),
            a_strides: a.strides(),
            b: Arg::Absent,
            b_extents: [1, 1, 1, 1].map(u32),
            b_strides: [0, 0, 0, 0].map(u64),
            d,
            rows: d,
            ids: Ids::none(),
            function: 0,
            parameters: [0.0; 2],
        }
    }

    fn launch(self, planner: &mut Planner) {
        let (rows_each, blocks) = planner.blocks();
        let mut args = vec![self.a, self.b, self.ids.arg, self.d.arg(), Arg::Status];
        args.extend(self.rows.extents());
        args.extend(self.a_strides);
        args.extend(self.b_extents);
        args.extend(self.b_strides);
        args.extend(self.d.strides());
        args.push(u32(self.ids.indexing));
        args.push(self.ids.half);
        args.extend(self.ids.strides);
        args.extend(self.ids.extents);
        args.push(self.ids.table);
        args.push(u32(self.function));
        args.extend(self.parameters.map(Arg::F32));
        let rows = self.rows.rows();
        let groups = match planner.space[0] {
            0 => 0.into(),
            columns if planner.cores.is_some() => rows * columns.div_ceil(LEAST_PIECE),
            _ => rows.div_ceil(rows_each) * blocks,
        };
        if planner.cores.is_none() {
            args.extend([u32(rows_each), u32(blocks)]);
        }
        planner.launch("map", groups, args);
    }
}

fn dtypes(planner: &mut Planner, class: i64, a: DType, b: DType, d: DType) {
    // Bits that are only moved may be any of their width: those of BF16 need no conversion.
    let (a, b, d) = match (a, d) {
        (DType::I32, DType::I32) => (DType::F32, DType::F32, DType::F32),
        (DType::F16, DType::F16) if class == MOVE => (DType::BF16, DType::BF16, DType::BF16),
        _ => (a, b, d),
    };
    planner
        .config()
        .set("CLASS", class)
        .set_dtype("A_DTYPE", a)
        .set_dtype("B_DTYPE", b)
        .set_dtype("D_DTYPE", d);
}

pub(in crate::layer) fn elementwise(op: &Elementwise, request: &PlanRequest<'_>) -> Result<Plan> {
    let fixed = repeated(&op.a, &op.b);
    let mut planner = Planner::new(op, request, MAP, &op.a, fixed)?;
    dtypes(&mut planner, BINARY, op.a.dtype, op.b.dtype, op.d.dtype);
    let a = planner.bind("a", &op.a, false);
    let b = planner.bind("b", &op.b, false);
    let d = planner.bind("d", &op.d, true);
    planner.in_place(d, a);
    planner.in_place(d, b);
    let mut map = Map::of(a, d);
    map.b = b.arg();
    map.b_extents = b.extents();
    map.b_strides = b.strides();
    // One element for all columns has stride 0, so that it needs no division.
    if extents(&op.b)[0] == 1 {
        map.b_extents[0] = u32(d.extent(0));
        map.b_strides[0] = u64(0);
    }
    map.function = match op.function {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
    };
    map.launch(&mut planner);
    Ok(planner.plan)
}

pub(in crate::layer) fn unary(op: &Unary, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, MAP, &op.x, [false; RANK])?;
    dtypes(&mut planner, UNARY, op.x.dtype, op.x.dtype, op.d.dtype);
    let x = planner.bind("x", &op.x, false);
    let d = planner.bind("d", &op.d, true);
    planner.in_place(d, x);
    let mut map = Map::of(x, d);
    (map.function, map.parameters) = match op.function {
        UnaryFunction::Silu => (0, [0.0; 2]),
        UnaryFunction::Gelu => (1, [0.0; 2]),
        UnaryFunction::Relu => (2, [0.0; 2]),
        UnaryFunction::GeluErf => (3, [0.0; 2]),
        UnaryFunction::GeluQuick => (4, [0.0; 2]),
        UnaryFunction::Sigmoid => (5, [0.0; 2]),
        UnaryFunction::Tanh => (6, [0.0; 2]),
        UnaryFunction::Exp => (7, [0.0; 2]),
        UnaryFunction::Neg => (8, [0.0; 2]),
        UnaryFunction::Scale { scale, bias } => (9, [scale, bias]),
        UnaryFunction::Clamp { min, max } => (10, [min, max]),
    };
    map.launch(&mut planner);
    Ok(planner.plan)
}

pub(in crate::layer) fn glu(op: &Glu, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, MAP, &op.d, [false; RANK])?;
    dtypes(&mut planner, GLU, op.x.dtype, op.x.dtype, op.d.dtype);
    let x = match op.up {
        Some(_) => planner.bind("x", &op.x, false),
        None => planner.bind_along("x", &op.x, false, [None, Some(1), Some(2), Some(3)]),
    };
    let up = op.up.map(|up| planner.bind("up", &up, false));
    let d = planner.bind("d", &op.d, true);
    let mut map = Map::of(x, d);
    map.b_extents = d.extents();
    map.b_strides = x.strides();
    match up {
        Some(up) => {
            planner.in_place(d, x);
            planner.in_place(d, up);
            map.b = up.arg();
            map.b_strides = up.strides();
        }
        None => {
            let last = x.rank - 1;
            let second = Arg::Operand {
                operand: x.index,
                at: Expr::stride(x.index, last) * extents(&op.d)[0],
            };
            map.b = second;
            if op.swapped {
                std::mem::swap(&mut map.a, &mut map.b);
            }
        }
    }
    map.function = match op.function {
        GluFunction::Swiglu => 0,
        GluFunction::Geglu => 1,
        GluFunction::Reglu => 2,
        GluFunction::GegluErf => 3,
        GluFunction::GegluQuick => 4,
    };
    map.launch(&mut planner);
    Ok(planner.plan)
}

pub(in crate::layer) fn copy(op: &Copy, request: &PlanRequest<'_>) -> Result<Plan> {
    let is_reshaped = extents(&op.x) != extents(&op.d);
    let fixed = [is_reshaped; RANK];
    let elements = op.x.layout.elements();
    if is_reshaped && elements > i32::MAX as u64 {
        let context = format!("{elements} elements in another shape; they are counted in 31 bits");
        return Err(Error::unsupported(context));
    }
    let mut planner = Planner::new(op, request, MAP, &op.d, fixed)?;
    dtypes(&mut planner, MOVE, op.x.dtype, op.x.dtype, op.d.dtype);
    let x = match is_reshaped {
        true => planner.bind_along("x", &op.x, false, [None; RANK]),
        false => planner.bind("x", &op.x, false),
    };
    let d = planner.bind("d", &op.d, true);
    let mut map = Map::of(x, d);
    if is_reshaped {
        map.function = 1;
        map.b_extents = x.extents();
    }
    map.launch(&mut planner);
    Ok(planner.plan)
}

pub(in crate::layer) fn get_rows(op: &GetRows, request: &PlanRequest<'_>) -> Result<Plan> {
    let mut planner = Planner::new(op, request, MAP, &op.d, [false; RANK])?;
    dtypes(&mut planner, MOVE, op.x.dtype, op.x.dtype, op.d.dtype);
    let x = planner.bind_along("x", &op.x, false, [Some(0), None, Some(2), Some(3)]);
    let ids = planner.bind_along("ids", &op.ids, false, [Some(1), Some(2), Some(3), None]);
    let d = planner.bind("d", &op.d, true);
    let mut map = Map::of(x, d);
    map.ids = Ids {
        arg: ids.arg(),
        indexing: GATHER,
        half: u64(0),
        strides: [ids.stride(0), ids.stride(1), ids.stride(2)],
        extents: [u32(ids.extent(1)), u32(ids.extent(2))],
        table: u32(x.extent(1)),
    };
    map.launch(&mut planner);
    Ok(planner.plan)
}

pub(in crate::layer) fn set_rows(op: &SetRows, request: &PlanRequest<'_>) -> Result<Plan> {
    let wide = usize::from(op.is_wide());
    let outer = extents(&op.ids);
    let x_extents = extents(&op.x);
    // The ids' outer axes are one behind those of x, or the same if their last axis holds halves.
    let mut fixed = [false; RANK];
    for k in 2..RANK {
        let part = outer.get(k - 1 + wide).copied().unwrap_or(1);
        fixed[k] = part != x_extents[k] && part != 1;
    }
    let mut planner = Planner::new(op, request, MAP, &op.x, fixed)?;
    let x = planner.bind("x", &op.x, false);
    let axes = match wide {
        0 => [Some(1), Some(2), Some(3), None],
        _ => [None, Some(1), Some(2), Some(3)],
    };
    let ids = planner.bind_along("ids", &op.ids, false, axes);
    let own_rows = [Some(0), None, Some(2), Some(3)];
    let data = op
        .data
        .map(|data| planner.bind_along("data", &data, false, own_rows));
    let d = planner.bind_along("d", &op.d, true, own_rows);
    if let Some(data) = data {
        dtypes(&mut planner, MOVE, op.d.dtype, op.d.dtype, op.d.dtype);
        Map::of(data, d).launch(&mut planner);
    }
    dtypes(&mut planner, MOVE, op.x.dtype, op.x.dtype, op.d.dtype);
    let mut map = Map::of(x, d);
    map.rows = x;
    map.ids = Ids {
        arg: ids.arg(),
        indexing: SCATTER,
        half: match wide {
            0 => u64(0),
            _ => ids.stride(0),
        },
        strides: [ids.stride(wide), ids.stride(wide + 1), ids.stride(wide + 2)],
        extents: [u32(ids.extent(wide + 1)), u32(ids.extent(wide + 2))],
        table: u32(d.extent(1)),
    };
    map.launch(&mut planner);
    Ok(planner.plan)
}
