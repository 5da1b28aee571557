//! Integers on the device that no host has checked: kernels stay in bounds, skip them, and the queue reports it.

use std::sync::Arc;

use ropeway_core::DType::{self, F16, F32, I32};
use ropeway_core::device::{Device, QueueKind};
use ropeway_core::spec::{DataClass, Fill, Recipe};

use super::{Outcome, TIMEOUT, ensure};
use crate::ops::{self, Subject};

fn recipe(op: &str) -> Recipe {
    Recipe::new(op, "out_of_range", DataClass::Random, 11)
}

fn random() -> Fill {
    Fill::Uniform { scale: 1.0 }
}

fn integers(values: &[i32]) -> Fill {
    Fill::Values(values.iter().map(|&value| value.into()).collect())
}

/// Runs each recipe between canaries; then the queue must work as before.
fn reported(device: &Arc<dyn Device>, recipes: &[Recipe]) -> Outcome {
    reported_beside(device, recipes, |_| true)
}

/// As [`reported`]; besides, `sound` must hold for every element of the float outputs.
fn reported_beside(
    device: &Arc<dyn Device>,
    recipes: &[Recipe],
    sound: impl Fn(f64) -> bool,
) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let subject = Subject::new(Arc::clone(device));
    for (number, recipe) in recipes.iter().enumerate() {
        let (mut findings, outputs) = ops::check_out_of_range(&subject, &*queue, recipe)?;
        for (name, output) in &outputs {
            if let Some(value) = output.to_f64().into_iter().find(|&value| !sound(value)) {
                findings.push(format!("{name} holds {value}"));
            }
        }
        ensure!(
            findings.is_empty(),
            "{} with values out of range, variant {number}: {}",
            recipe.op,
            findings.join("; ")
        );
        queue.synchronize(Some(TIMEOUT))?;
    }
    Ok(())
}

/// Offsets that descend, do not begin at 0, or pass the last row.
pub(super) fn grouped_gemm(device: &Arc<dyn Device>) -> Outcome {
    let offsets: [&[i32]; 4] = [
        &[0, 5, 3, 9],
        &[0, 4, 9, 10_000_000],
        &[0, -5, 4, 9],
        &[2_000_000_000, -2_000_000_000, 2_000_000_000, 9],
    ];
    let recipes = offsets.map(|offsets| {
        recipe("grouped_gemm")
            .tensor("a", F32, &[9, 40], random())
            .tensor("b", F32, &[3, 33, 40], random())
            .tensor("expert_offsets", I32, &[4], integers(offsets))
    });
    reported(device, &recipes)
}

/// Counts below 0 and beyond the capacity.
pub(super) fn grouped_gemm_masked(device: &Arc<dyn Device>) -> Outcome {
    let counts: [&[i32]; 2] = [&[-1, 3, 2], &[2, 1_000_000, -2_000_000_000]];
    let recipes = counts.map(|counts| {
        recipe("grouped_gemm_masked")
            .tensor("a", F32, &[3, 4, 24], random())
            .tensor("b", F32, &[3, 17, 24], random())
            .tensor("counts", I32, &[3], integers(counts))
    });
    reported(device, &recipes)
}

/// What matrix units take is planned otherwise than what they do not.
const ATTENTION_DTYPES: [DType; 2] = [F32, F16];

/// Key counts below 0 and beyond the keys there are.
pub(super) fn attention(device: &Arc<dyn Device>) -> Outcome {
    let lengths: [&[i32]; 2] = [&[6, 1_000_000], &[-3, 5]];
    for dtype in ATTENTION_DTYPES {
        let recipes = lengths.map(|lengths| {
            recipe("attention")
                .tensor("q", dtype, &[2, 2, 3, 16], random())
                .tensor("k", dtype, &[2, 2, 6, 16], random())
                .tensor("v", dtype, &[2, 2, 6, 16], random())
                .tensor("kv_lens", I32, &[2], integers(lengths))
        });
        reported(device, &recipes)?;
    }
    Ok(())
}

/// Cumulative lengths that descend or pass the tokens there are.
pub(super) fn attention_varlen(device: &Arc<dyn Device>) -> Outcome {
    let lengths: [(&[i32], &[i32]); 3] = [
        (&[0, 1_000_000, 7], &[0, 4, 8]),
        (&[0, 3, 7], &[0, 9, -2_000_000]),
        (&[0, -4, 7], &[0, 4, 8]),
    ];
    for dtype in ATTENTION_DTYPES {
        let recipes = lengths.map(|(cu_q, cu_kv)| {
            recipe("attention_varlen")
                .tensor("q", dtype, &[7, 2, 16], random())
                .tensor("k", dtype, &[8, 2, 16], random())
                .tensor("v", dtype, &[8, 2, 16], random())
                .tensor("cu_q", I32, &[3], integers(cu_q))
                .tensor("cu_kv", I32, &[3], integers(cu_kv))
        });
        reported(device, &recipes)?;
    }
    Ok(())
}

/// Block numbers that are no block, where the lengths reach them; lengths beyond the table; lengths where there are no blocks.
pub(super) fn attention_paged(device: &Arc<dyn Device>) -> Outcome {
    for dtype in ATTENTION_DTYPES {
        attention_paged_in(device, dtype)?;
    }
    Ok(())
}

fn attention_paged_in(device: &Arc<dyn Device>, dtype: DType) -> Outcome {
    let tables: [(u64, &[i32], &[i32]); 4] = [
        (3, &[0, 5_000_000, 2, -1], &[7, 3]),
        (3, &[-1, 1, 2, -1], &[7, 3]),
        (3, &[0, 1, 2, 0], &[7, 1_000_000]),
        (0, &[0, 0, 0, 0], &[7, 3]),
    ];
    let recipes = tables.map(|(blocks, table, lengths)| {
        recipe("attention_paged")
            .tensor("q", dtype, &[3, 2, 16], random())
            .tensor("cu_q", I32, &[3], integers(&[0, 2, 3]))
            .tensor("k_cache", dtype, &[blocks, 4, 2, 16], random())
            .tensor("v_cache", dtype, &[blocks, 4, 2, 16], random())
            .tensor("block_table", I32, &[2, 2], integers(table))
            .tensor("kv_lens", I32, &[2], integers(lengths))
    });
    reported(device, &recipes)?;

    // A block that nothing names is never read: NaN in it reaches no row, neither of few queries nor of many.
    let unnamed = Fill::Poisoned {
        base: Box::new(random()),
        period: 3 * 4 * 2 * 16,
        begin: 0,
        end: 4 * 2 * 16,
    };
    let recipes = [[0, 20, 21], [0, 1, 21]].map(|cu_q| {
        recipe("attention_paged")
            .tensor("q", dtype, &[21, 2, 16], random())
            .tensor("cu_q", I32, &[3], integers(&cu_q))
            .tensor("k_cache", dtype, &[3, 4, 2, 16], unnamed.clone())
            .tensor("v_cache", dtype, &[3, 4, 2, 16], unnamed.clone())
            .tensor(
                "block_table",
                I32,
                &[2, 2],
                integers(&[1, 5_000_000, -1, 2]),
            )
            .tensor("kv_lens", I32, &[2], integers(&[7, 7]))
    });
    reported_beside(device, &recipes, f64::is_finite)
}

/// Expert numbers that are no expert, -1 aside.
pub(super) fn expert_scatter(device: &Arc<dyn Device>) -> Outcome {
    let ids: [&[i32]; 3] = [
        &[0, 1, 99, 2, 3, 0],
        &[0, 1, -2, 2, 3, 0],
        &[i32::MAX, i32::MIN, -1, 4, 4, 4],
    ];
    let recipes = ids.map(|ids| {
        recipe("expert_scatter")
            .tensor("x", F32, &[3, 20], random())
            .tensor("topk_ids", I32, &[3, 2], integers(ids))
            .attr("experts", 4)
    });
    reported(device, &recipes)
}

/// Sources that are no row, and one that is named twice.
pub(super) fn expert_gather(device: &Arc<dyn Device>) -> Outcome {
    let sources: [&[i32]; 3] = [
        &[0, 1, 2, 3, 4, 1_000_000],
        &[0, 1, 2, 3, 4, -2],
        &[0, 1, 2, 3, 3, 5],
    ];
    let recipes = sources.map(|source| {
        recipe("expert_gather")
            .tensor("rows", F32, &[6, 20], random())
            .tensor("source", I32, &[6], integers(source))
            .tensor("topk_weights", F32, &[3, 2], random())
    });
    reported(device, &recipes)
}

/// A queue that has replayed a graph, whose launches may have a status word of their own, still reports what its own launches find.
pub(super) fn after_a_replay(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let subject = Subject::new(Arc::clone(device));
    let graph = ops::graph_of(
        &subject,
        &*queue,
        &recipe("expert_scatter")
            .tensor("x", F32, &[3, 20], random())
            .tensor("topk_ids", I32, &[3, 2], integers(&[0, 1, 3, 2, 3, 0]))
            .attr("experts", 4),
    )?;
    queue.synchronize(Some(TIMEOUT))?;
    let wrong = recipe("expert_scatter")
        .tensor("x", F32, &[3, 20], random())
        .tensor("topk_ids", I32, &[3, 2], integers(&[0, 1, 99, 2, 3, 0]))
        .attr("experts", 4);
    queue.replay(&*graph)?;
    let (findings, _) = ops::check_out_of_range(&subject, &*queue, &wrong)?;
    ensure!(findings.is_empty(), "{}", findings.join("; "));
    queue.replay(&*graph)?;
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}

/// Ids that are no row: what they would name is zero, or is not set.
pub(super) fn get_rows(device: &Arc<dyn Device>) -> Outcome {
    let ids: [&[i32]; 2] = [&[0, 5, -1], &[2_000_000_000, 4, -2_000_000_000]];
    let recipes = ids.map(|ids| {
        recipe("get_rows")
            .tensor("x", F32, &[5, 24], random())
            .tensor("ids", I32, &[3], integers(ids))
    });
    reported_beside(device, &recipes, f64::is_finite)
}

/// The same, and ids of which only the high half is out of range.
pub(super) fn set_rows(device: &Arc<dyn Device>) -> Outcome {
    let ids: [(&[u64], &[i32]); 3] = [
        (&[3], &[0, 5, -1]),
        (&[3], &[2_000_000_000, 4, -2_000_000_000]),
        (&[3, 2], &[1, 0, 2, 1, 3, -1]),
    ];
    let recipes = ids.map(|(shape, ids)| {
        recipe("set_rows")
            .tensor("x", F32, &[3, 24], random())
            .tensor("ids", I32, shape, integers(ids))
            .tensor("data", F32, &[5, 24], random())
    });
    reported_beside(device, &recipes, f64::is_finite)
}
