//! The README's table of ops and dtypes says what the planners say.

use std::collections::BTreeMap;

use ropeway::Registry;
use ropeway_core::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{PlanRequest, Signature};
use serde_json::json;

const BEGIN: &str = "<!-- ops and dtypes: kept by benches/tests/readme.rs -->";
const END: &str = "<!-- end -->";
const BACKENDS: [&str; 4] = ["cpu", "cuda", "opencl", "vulkan"];

/// A small problem of every op: tensors with dtype (`A` and `B`: those being asked for) and extents, and attributes.
const PROBLEMS: [(&str, &str, &str); 21] = [
    ("gemm", "a A 4 8, b B 8 4", "{}"),
    (
        "grouped_gemm",
        "a A 4 8, b B 2 4 8, expert_offsets I32 3",
        "{}",
    ),
    (
        "grouped_gemm_masked",
        "a A 2 3 8, b B 2 4 8, counts I32 2",
        "{}",
    ),
    ("attention", "q A 1 2 3 8, k B 1 2 3 8, v B 1 2 3 8", "{}"),
    (
        "attention_varlen",
        "q A 3 2 8, k B 3 2 8, v B 3 2 8, cu_q I32 2, cu_kv I32 2",
        "{}",
    ),
    (
        "attention_paged",
        "q A 3 2 8, cu_q I32 2, k_cache B 4 4 2 8, v_cache B 4 4 2 8, block_table I32 1 2, kv_lens I32 1",
        "{}",
    ),
    ("moe_route", "logits A 3 4", r#"{"topk": 2}"#),
    (
        "expert_scatter",
        "x A 3 8, topk_ids I32 3 2",
        r#"{"experts": 4}"#,
    ),
    (
        "expert_gather",
        "rows A 6 8, source I32 6, topk_weights F32 3 2",
        "{}",
    ),
    (
        "moe_ffn",
        "x A 3 8, logits F32 3 4, w_gate_up B 4 16 8, w_down B 4 8 8",
        r#"{"topk": 2}"#,
    ),
    ("elementwise", "a A 3 8, b B 8", "{}"),
    ("unary", "x A 3 8", r#"{"function": "silu"}"#),
    ("glu", "x A 3 8", "{}"),
    ("copy", "x A 3 8", "{}"),
    ("get_rows", "x A 5 8, ids I32 3", "{}"),
    ("set_rows", "x A 3 8, ids I32 3", r#"{"rows": 5}"#),
    ("norm", "x A 3 8, weight B 8", "{}"),
    ("sum_rows", "x A 3 8", "{}"),
    ("softmax", "x A 2 3 8", "{}"),
    ("rope", "x A 3 2 8, positions I32 3", "{}"),
    ("argsort", "x A 3 8", "{}"),
];

fn signature(tensors: &str, attrs: &str, a: DType, b: DType) -> Signature {
    let tensors = tensors.split(", ").map(|tensor| {
        let mut words = tensor.split(' ');
        let name = words.next().unwrap().to_owned();
        let dtype = match words.next().unwrap() {
            "A" => a,
            "B" => b,
            word => DType::from_name(word).unwrap(),
        };
        let shape: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        (name, TensorDesc::contiguous(dtype, &shape).unwrap())
    });
    Signature {
        tensors: tensors.collect::<BTreeMap<_, _>>(),
        attrs: serde_json::from_str(attrs).unwrap(),
    }
}

/// The dtypes and pairs of dtypes for which the planner finds kernels on a device.
fn supported(info: &DeviceInfo, op: &str, tensors: &str, attrs: &str) -> String {
    let kind = ropeway_kernels::op(op).expect("the op is shipped");
    let plans = |a, b| {
        let op = kind.parse(&signature(tensors, attrs, a, b));
        op.is_ok_and(|op| op.plan(&PlanRequest::new(info)).is_ok())
    };
    let mut words = Vec::new();
    for a in DType::ALL {
        if plans(a, a) {
            words.push(a.name().to_lowercase());
        }
    }
    if tensors.contains(" B ") {
        for (a, b) in DType::ALL
            .into_iter()
            .flat_map(|a| DType::ALL.map(|b| (a, b)))
        {
            if a != b && plans(a, b) {
                words.push(format!("{a}×{b}").to_lowercase());
            }
        }
    }
    match words.is_empty() {
        true => "–".into(),
        false => words.join(" "),
    }
}

#[test]
fn the_readme_lists_what_can_be_planned() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme
        .split_once(BEGIN)
        .expect("the table's begin is marked");
    let (table, _) = rest.split_once(END).expect("the table's end is marked");
    let stated: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let devices: Vec<Option<DeviceInfo>> = BACKENDS
        .iter()
        .map(|backend| {
            if *backend == "cuda" {
                // By its description: a GPU is rarely there to be asked.
                return ropeway_backends::cuda::described(80)
                    .ok()?
                    .into_iter()
                    .next();
            }
            let probes = Registry::default().probe();
            let probe = probes.into_iter().find(|probe| probe.backend == *backend)?;
            probe.devices.ok()?.into_iter().next()
        })
        .collect();
    assert!(devices[0].is_some(), "the cpu device is always there");
    let mut wrong = Vec::new();
    for (number, (op, tensors, attrs)) in PROBLEMS.iter().enumerate() {
        let row = stated.get(number).cloned().unwrap_or_default();
        let mut expected = vec![format!("`{op}`")];
        for (column, info) in devices.iter().enumerate() {
            expected.push(match info {
                Some(info) => supported(info, op, tensors, attrs),
                // Not there to be asked: what the README says stands.
                None => row.get(column + 1).unwrap_or(&"").to_string(),
            });
        }
        if row != expected {
            wrong.push(format!("| {} |", expected.join(" | ")));
        }
    }
    assert!(
        wrong.is_empty(),
        "these rows of the README should be:\n{}",
        wrong.join("\n")
    );
    assert_eq!(stated.len(), PROBLEMS.len());
    let shipped: Vec<_> = ropeway_kernels::ops().iter().map(|op| op.name()).collect();
    let listed: Vec<_> = PROBLEMS.iter().map(|(op, _, _)| *op).collect();
    assert_eq!(shipped, listed, "{}", json!(shipped));
}
