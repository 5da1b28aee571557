//! The kernel that device tests launch, and plans of it.

use std::sync::Arc;

use ropeway_core::device::{Device, Queue};
use ropeway_core::kernel::{Code, Config, Kernel, Language, ModuleKey, Source};
use ropeway_core::memory::TensorDesc;
use ropeway_core::native::NativeCall;
use ropeway_core::plan::{
    Arg, Determinism, Executable, Expr, Extent, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway_core::{DType, Error, ErrorKind, Result, View};

use super::TIMEOUT;

/// Entries described in `probe.cl`.
pub(super) static PROBE: Kernel = Kernel {
    name: "probe",
    summary: "Makes order, arguments and grids of launches visible to the device tests.",
    version: 1,
    sources: &[
        Source {
            language: Language::Native,
            code: Code::Native(&[
                ("affine", affine),
                ("spin", spin),
                ("scalars", scalars),
                ("cells", cells),
                ("complain", complain),
            ]),
            requires: &[],
        },
        Source {
            language: Language::OpenClC,
            code: Code::Text(&[("probe.cl", include_str!("probe.cl"))]),
            requires: &[],
        },
        Source {
            language: Language::CudaC,
            code: Code::Text(&[("probe.cu", include_str!("probe.cu"))]),
            requires: &[],
        },
        Source {
            language: Language::AscendC,
            code: Code::Text(&[("probe.asc", include_str!("probe.asc"))]),
            requires: &[],
        },
        Source {
            language: Language::SpirV,
            code: Code::Binaries(super::spirv::PROBE),
            requires: &[],
        },
    ],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

fn affine(call: &mut NativeCall<'_>) -> Result<()> {
    let x = call.write::<u32>()?;
    let (multiplier, addend, count) = (call.int()? as u32, call.int()? as u32, call.size()?);
    for value in &mut x[..count] {
        *value = step(*value, multiplier, addend);
    }
    Ok(())
}

fn spin(call: &mut NativeCall<'_>) -> Result<()> {
    let x = call.write::<u32>()?;
    let (multiplier, addend, rounds) = (call.int()? as u32, call.int()? as u32, call.size()?);
    for _ in 0..rounds {
        // Kept from being folded into a closed form: it shall take time.
        x[0] = std::hint::black_box(step(x[0], multiplier, addend));
    }
    Ok(())
}

fn scalars(call: &mut NativeCall<'_>) -> Result<()> {
    let out = call.write::<u32>()?;
    let absent = call.read_optional::<u32>()?.is_none();
    let (a, b, c, d) = (call.int()?, call.int()?, call.int()?, call.int()?);
    let e = call.float()?;
    let halves = [a as u32, b as u32, c as u32, (c >> 32) as u32, d as u32];
    out[..5].copy_from_slice(&halves);
    out[5] = (d >> 32) as u32;
    out[6] = e.to_bits();
    out[7] = absent.into();
    Ok(())
}

fn cells(call: &mut NativeCall<'_>) -> Result<()> {
    let groups: u64 = call.grid().iter().product();
    for (flat, cell) in call.write::<u32>()?[..groups as usize]
        .iter_mut()
        .enumerate()
    {
        *cell += flat as u32 + 1;
    }
    Ok(())
}

fn complain(call: &mut NativeCall<'_>) -> Result<()> {
    let status = call.write::<u32>()?;
    status[0] = call.int()? as u32;
    Ok(())
}

/// One step of the map that `affine` and `spin` apply.
pub(super) fn step(value: u32, multiplier: u32, addend: u32) -> u32 {
    value.wrapping_mul(multiplier).wrapping_add(addend)
}

/// What `spin` makes of `value`: the map composed with itself `rounds` times, by squaring.
pub(super) fn spun(value: u32, mut multiplier: u32, mut addend: u32, mut rounds: u64) -> u32 {
    let (mut all_multiplier, mut all_addend) = (1u32, 0u32);
    while rounds > 0 {
        if rounds % 2 == 1 {
            all_multiplier = all_multiplier.wrapping_mul(multiplier);
            all_addend = step(all_addend, multiplier, addend);
        }
        addend = step(addend, multiplier, addend);
        multiplier = multiplier.wrapping_mul(multiplier);
        rounds /= 2;
    }
    step(value, all_multiplier, all_addend)
}

/// The multiplier and addend of every `spin` (Numerical Recipes' generator).
pub(super) const STEP: (u32, u32) = (1_664_525, 1_013_904_223);

/// A plan of one launch of an entry. Its only operand `x` is a vector of up to `max` I32 elements, read and written.
fn plan(entry: &'static str, max: u64, grid: [Expr; 3], args: Vec<Arg>) -> Plan {
    let mut plan = Plan::new("probe", Determinism::RunToRun);
    plan.symbols.push(Symbol { name: "n", max });
    plan.operands.push(OperandRule {
        name: "x",
        dtype: DType::I32,
        write: true,
        shape: vec![Extent::Varies {
            symbol: 0,
            times: 1,
            plus: 0,
        }],
        strides: vec![StrideRule::Exactly(1)],
        offset_multiple: 1,
        form: Default::default(),
    });
    let module = plan.module(ModuleKey {
        kernel: &PROBE,
        config: Config::default(),
    });
    plan.launches.push(Launch {
        module,
        entry,
        grid,
        group: [1, 1, 1],
        local_memory: 0,
        args,
    });
    plan
}

fn count(value: u32) -> Expr {
    Expr::Const(value.into())
}

/// Compiles a plan of this kernel.
pub(super) fn compile(device: &dyn Device, plan: Plan) -> Result<Arc<Executable>> {
    let source = PROBE.source_for(device.info())?;
    let module = device.compile(source, &Config::default())?;
    let functions = plan
        .launches
        .iter()
        .map(|launch| module.function(launch.entry))
        .collect::<Result<_>>()?;
    Ok(Arc::new(Executable::new(plan, functions)?))
}

/// `affine` over a vector of up to `max` elements.
pub(super) fn affine_plan(max: u64, multiplier: u32, addend: u32) -> Plan {
    let n = Expr::extent(0, 0);
    plan(
        "affine",
        max,
        [n.clone().min(256), 1.into(), 1.into()],
        vec![
            Arg::operand(0),
            Arg::U32(count(multiplier)),
            Arg::U32(count(addend)),
            Arg::U64(n),
        ],
    )
}

/// Rounds of one launch of `spin`. Devices limit the time of a launch, lavapipe the iterations of its loops.
const SPIN: u64 = 1 << 22;

/// `spin` for so many rounds over a vector of one element, in as many launches as that takes.
pub(super) fn spin_plan(rounds: u64) -> Plan {
    let mut plan = plan(
        "spin",
        1,
        [1.into(), 1.into(), 1.into()],
        vec![
            Arg::operand(0),
            Arg::U32(count(STEP.0)),
            Arg::U32(count(STEP.1)),
            Arg::U64(0.into()),
        ],
    );
    let launch = plan.launches.remove(0);
    for begin in (0..rounds).step_by(SPIN as usize) {
        let mut part = launch.clone();
        part.args[3] = Arg::U64((rounds - begin).min(SPIN).into());
        plan.launches.push(part);
    }
    plan
}

/// `scalars` with extreme values.
pub(super) fn scalars_plan() -> Plan {
    plan(
        "scalars",
        8,
        [1.into(), 1.into(), 1.into()],
        vec![
            Arg::operand(0),
            Arg::Absent,
            Arg::U32(count(0xfedc_ba98)),
            Arg::I32(Expr::Const(-2)),
            Arg::U64(Expr::Const(0x0123_4567_89ab_cdef)),
            Arg::I64(Expr::Const(-3)),
            Arg::F32(-1.5),
        ],
    )
}

/// What `scalars` writes.
pub(super) fn scalars_expected() -> [u32; 8] {
    let minus_three = -3i64 as u64;
    [
        0xfedc_ba98,
        -2i32 as u32,
        0x89ab_cdef,
        0x0123_4567,
        minus_three as u32,
        (minus_three >> 32) as u32,
        (-1.5f32).to_bits(),
        1,
    ]
}

/// `cells` over a grid of this many groups.
pub(super) fn cells_plan(grid: [u64; 3]) -> Plan {
    let groups = grid.iter().product();
    plan("cells", groups, grid.map(Expr::from), vec![Arg::operand(0)])
}

/// `complain`, which sets the status word.
pub(super) fn complain_plan(code: u32) -> Plan {
    plan(
        "complain",
        1,
        [1.into(), 1.into(), 1.into()],
        vec![Arg::Status, Arg::U32(count(code))],
    )
}

/// A vector of I32 on the device.
pub(super) struct Vector {
    pub(super) view: View,
}

impl Vector {
    /// Of these values, uploaded by `queue`.
    pub(super) fn new(device: &dyn Device, queue: &dyn Queue, values: &[u32]) -> Result<Vector> {
        let desc = TensorDesc::contiguous(DType::I32, &[values.len() as u64])?;
        let buffer = device.alloc(desc.span_bytes()?)?;
        queue.upload(&buffer.all(), &bytes(values))?;
        Ok(Vector {
            view: buffer.view(desc, 0)?,
        })
    }

    /// Its values, after all earlier work of `queue`.
    pub(super) fn read(&self, queue: &dyn Queue) -> Result<Vec<u32>> {
        let mut bytes = vec![0; self.view.bytes().len() as usize];
        queue.read_blocking(&self.view.bytes(), &mut bytes)?;
        Ok(numbers(&bytes))
    }
}

pub(super) fn bytes(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

pub(super) fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        .collect()
}

/// Work that keeps a queue busy for a while.
pub(super) struct Busy {
    executable: Arc<Executable>,
    x: Vector,
    rounds: u64,
}

impl Busy {
    /// Work that takes at least `milliseconds` on this device, found by doubling.
    pub(super) fn new(device: &dyn Device, queue: &dyn Queue, milliseconds: u64) -> Result<Busy> {
        let mut rounds = 1 << 16;
        loop {
            let busy = Busy {
                executable: compile(device, spin_plan(rounds))?,
                x: Vector::new(device, queue, &[1])?,
                rounds,
            };
            queue.synchronize(Some(TIMEOUT))?;
            let begin = std::time::Instant::now();
            busy.enqueue(queue)?;
            queue.synchronize(Some(TIMEOUT))?;
            if begin.elapsed().as_millis() as u64 >= milliseconds {
                queue.upload(&busy.x.view.bytes(), &bytes(&[1]))?;
                queue.synchronize(Some(TIMEOUT))?;
                return Ok(busy);
            }
            if rounds >= 1 << 40 {
                let context = "2^40 rounds of a loop took no time: the device does not run it";
                return Err(Error::new(ErrorKind::LaunchFailed, context));
            }
            rounds *= 2;
        }
    }

    /// Enqueues it.
    pub(super) fn enqueue(&self, queue: &dyn Queue) -> Result<()> {
        self.executable
            .enqueue(queue, std::slice::from_ref(&self.x.view), None)
    }

    /// Whether it ran `times` times; waits for it.
    pub(super) fn ran(&self, queue: &dyn Queue, times: u64) -> Result<bool> {
        let expected = spun(1, STEP.0, STEP.1, self.rounds * times);
        Ok(self.x.read(queue)? == [expected])
    }
}
