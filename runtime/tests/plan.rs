//! What a plan promises, shown with a kernel of the test's own on the cpu device: one plan for all row counts, errors that
//! name the operand, graphs that can be rebound, and an enqueue that allocates nothing.

use std::alloc::{GlobalAlloc, Layout as Allocation, System};
use std::cell::Cell;
use std::sync::Arc;

use ropeway::core::kernel::{Code, Config, Kernel, Language, ModuleKey, Source};
use ropeway::core::native::NativeCall;
use ropeway::core::plan::{
    Arg, Determinism, Expr, Extent, Form, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway::prelude::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Allocation) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Allocation) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// d[r, c] = factor * a[r, c], for strided a.
fn scale(call: &mut NativeCall<'_>) -> Result<()> {
    let (a, d) = (call.read::<f32>()?, call.write::<f32>()?);
    let (rows, columns, stride, factor) = (call.size()?, call.size()?, call.size()?, call.float()?);
    for row in 0..rows {
        for column in 0..columns {
            d[row * columns + column] = factor * a[row * stride + column];
        }
    }
    Ok(())
}

static SCALE: Kernel = Kernel {
    name: "scale",
    summary: "multiplies by a number",
    version: 1,
    sources: &[Source {
        language: Language::Native,
        code: Code::Native(&[("scale", scale)]),
        requires: &[],
    }],
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

const COLUMNS: u64 = 3;

fn plan(max_rows: u64) -> Plan {
    let mut plan = Plan::new("scale", Determinism::BatchInvariant);
    plan.symbols.push(Symbol {
        name: "rows",
        max: max_rows,
    });
    let rule = |name, write, outer| OperandRule {
        name,
        dtype: DType::F32,
        write,
        shape: vec![
            Extent::Varies {
                symbol: 0,
                times: 1,
                plus: 0,
            },
            Extent::Exactly(COLUMNS),
        ],
        strides: vec![outer, StrideRule::Exactly(1)],
        offset_multiple: 1,
        form: Form::Plain,
    };
    plan.operands = vec![
        rule("a", false, StrideRule::Any),
        rule("d", true, StrideRule::Exactly(COLUMNS)),
    ];
    let module = plan.module(ModuleKey {
        kernel: &SCALE,
        config: Config::default(),
    });
    plan.launches.push(Launch {
        module,
        entry: "scale",
        grid: [Expr::extent(0, 0), 1.into(), 1.into()],
        group: [1; 3],
        local_memory: 0,
        args: vec![
            Arg::operand(0),
            Arg::operand(1),
            Arg::U32(Expr::extent(0, 0)),
            Arg::U32(Expr::extent(0, 1)),
            Arg::U64(Expr::stride(0, 0)),
            Arg::F32(2.0),
        ],
    });
    plan
}

struct Bench {
    session: Session,
    executable: Arc<Executable>,
    input: Buffer,
    output: Buffer,
}

fn bench() -> Bench {
    let session = Session::new(Registry::default().open("cpu").unwrap()).unwrap();
    let executable = Arc::new(session.compile(plan(8)).unwrap());
    let input = session.device().alloc(400).unwrap();
    let output = session.device().alloc(400).unwrap();
    let values: Vec<u8> = (0..100).flat_map(|i| (i as f32).to_le_bytes()).collect();
    session.queue().upload(&input.all(), &values).unwrap();
    Bench {
        session,
        executable,
        input,
        output,
    }
}

impl Bench {
    fn views(&self, rows: u64, stride: u64) -> [View; 2] {
        let layout = Layout::strided(&[rows, COLUMNS], &[stride, 1]).unwrap();
        let a = self
            .input
            .view(
                TensorDesc {
                    dtype: DType::F32,
                    layout,
                },
                1,
            )
            .unwrap();
        let d = self
            .output
            .view(
                TensorDesc::contiguous(DType::F32, &[rows, COLUMNS]).unwrap(),
                0,
            )
            .unwrap();
        [a, d]
    }

    fn enqueue(&self, views: &[View]) -> Result<()> {
        self.executable
            .enqueue(&**self.session.queue(), views, None)
    }
}

#[test]
fn one_plan_serves_every_row_count_and_stride() {
    let bench = bench();
    for (rows, stride) in [(8, 3), (5, 4), (1, 7), (2, 0)] {
        let views = bench.views(rows, stride);
        bench.enqueue(&views).unwrap();
        let expected: Vec<f64> = (0..rows)
            .flat_map(|r| (0..COLUMNS).map(move |c| 2.0 * (1 + r * stride + c) as f64))
            .collect();
        assert_eq!(
            bench.session.read(&views[1]).unwrap().to_f64(),
            expected,
            "{rows} rows, stride {stride}"
        );
    }
    bench.enqueue(&bench.views(0, 3)).unwrap();
}

#[test]
fn views_that_do_not_fit_are_refused_by_name() {
    let bench = bench();
    let refused = |views: &[View], words: &[&str]| {
        let error = bench.enqueue(views).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            words.iter().all(|word| error.to_string().contains(word)),
            "{error}"
        );
    };
    let [a, d] = bench.views(4, 3);
    refused(&bench.views(9, 3), &["a:", "rows = 9", "at most 8"]);
    refused(
        &[a.clone(), bench.views(5, 3)[1].clone()],
        &["d:", "rows = 5", "4"],
    );
    refused(std::slice::from_ref(&a), &["1 operands", "a, d"]);
    refused(
        &[a.clone(), bench.input.view(*d.desc(), 0).unwrap()],
        &["d:", "overlaps a"],
    );
    let other = Session::new(Registry::default().open("cpu").unwrap()).unwrap();
    let foreign = other
        .device()
        .alloc(400)
        .unwrap()
        .view(*d.desc(), 0)
        .unwrap();
    refused(&[a.clone(), foreign], &["d:", "another device"]);
    let half = bench
        .input
        .view(
            TensorDesc::contiguous(DType::F16, &[4, COLUMNS]).unwrap(),
            0,
        )
        .unwrap();
    refused(&[half, d], &["a:", "F16", "F32"]);
}

#[test]
fn a_graph_replays_and_rebinds() {
    let bench = bench();
    let views = bench.views(2, 3);
    let bound = BoundPlan {
        executable: Arc::clone(&bench.executable),
        operands: views.to_vec(),
        workspace: None,
    };
    let graph = bench.session.device().instantiate(vec![bound]).unwrap();
    let queue = bench.session.queue();
    queue.replay(&*graph).unwrap();
    assert_eq!(
        bench.session.read(&views[1]).unwrap().to_f64(),
        [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    );

    graph
        .rebind(0, &[(0, bench.views(2, 0)[0].clone())])
        .unwrap();
    queue.replay(&*graph).unwrap();
    assert_eq!(
        bench.session.read(&views[1]).unwrap().to_f64(),
        [2.0, 4.0, 6.0, 2.0, 4.0, 6.0]
    );

    let error = graph
        .rebind(0, &[(0, bench.views(3, 3)[0].clone())])
        .unwrap_err();
    assert!(error.to_string().contains("d:"), "d has two rows: {error}");
    queue.replay(&*graph).unwrap();
    assert_eq!(
        bench.session.read(&views[1]).unwrap().to_f64()[3],
        2.0,
        "a refused view changes nothing"
    );

    let [a, d] = bench.views(3, 3);
    graph.rebind(0, &[(0, a), (1, d.clone())]).unwrap();
    queue.replay(&*graph).unwrap();
    assert_eq!(
        bench.session.read(&d).unwrap().to_f64().len(),
        9,
        "operands that share a row count change together"
    );
}

#[test]
fn enqueueing_a_plan_allocates_nothing() {
    let bench = bench();
    let views = bench.views(8, 3);
    let run = || {
        bench.enqueue(&views).unwrap();
        bench.session.queue().synchronize(None).unwrap();
    };
    // The queue grows its ring of commands and argument lists while it warms up.
    run();
    let before = ALLOCATIONS.get();
    for _ in 0..50 {
        run();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
