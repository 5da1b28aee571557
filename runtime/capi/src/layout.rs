//! The place of every field of every struct, as compiled programs know them: tests/layout.txt holds them, and this crate must not move them. (The
//! test `programs` has C compilers confirm the same.) A struct or table that has grown is added to that file by
//!
//! ```text
//! ROPEWAY_UPDATE_LAYOUT=1 cargo test -p ropeway-capi --lib
//! ```

use std::fmt::Write;
use std::mem::MaybeUninit;

use crate::api::ropeway_api;
use crate::device::{
    ropeway_backend_info, ropeway_device_info, ropeway_device_options, ropeway_memory_use,
};
use crate::execution::ropeway_execution;
use crate::ops::{
    ropeway_attention, ropeway_attention_paged, ropeway_attention_varlen, ropeway_expert_gather,
    ropeway_expert_scatter, ropeway_gemm, ropeway_grouped_gemm, ropeway_grouped_gemm_masked,
    ropeway_moe_ffn, ropeway_moe_route,
};
use crate::plan::{
    ropeway_attribute, ropeway_operand_info, ropeway_plan_info, ropeway_plan_options,
    ropeway_request, ropeway_tunable,
};
use crate::tensor::ropeway_tensor;

fn size_of_pointee<T>(_: *const T) -> usize {
    size_of::<T>()
}

/// Writes the place of each field, after checking that one begins where the one before ends.
macro_rules! layouts {
    ($($name:ident { $($field:ident),* $(,)? })*) => {{
        let mut text = String::new();
        $(
            let object = MaybeUninit::<$name>::uninit();
            let object = object.as_ptr();
            let mut end = 0;
            $(
                let offset = std::mem::offset_of!($name, $field);
                assert_eq!(offset, end, concat!("padding before ", stringify!($name), ".", stringify!($field)));
                writeln!(text, "{} {} {offset}", stringify!($name), stringify!($field)).unwrap();
                // SAFETY: only the place of the field is named, inside an object that is there.
                end = offset + size_of_pointee(unsafe { &raw const (*object).$field });
            )*
            assert_eq!(size_of::<$name>(), end, concat!("padding or a field not listed at the end of ", stringify!($name)));
            writeln!(text, "{} - {end}", stringify!($name)).unwrap();
        )*
        text
    }};
}

#[test]
fn no_field_has_moved() {
    let found = layouts! {
        ropeway_api { struct_size, library_version, last_error, set_log, probe, probe_backend_count, probe_backend, probe_device, probe_release, device_open, device_adopt, device_info, device_memory, device_native_context, device_release, buffer_create, buffer_import, buffer_size, buffer_release, pinned_create, pinned_data, pinned_size, pinned_wait, pinned_release, queue_create, queue_import, queue_upload, queue_read_blocking, queue_download, queue_copy, queue_fill, queue_execute, queue_replay, queue_record, queue_wait, queue_flush, queue_synchronize, queue_release, event_is_done, event_wait, event_elapsed, event_release, op_name, plan_create, plan_gemm, plan_grouped_gemm, plan_grouped_gemm_masked, plan_attention, plan_attention_varlen, plan_attention_paged, plan_moe_route, plan_expert_scatter, plan_expert_gather, plan_moe_ffn, plan_info, plan_operand, plan_prepare, plan_release, graph_create, graph_rebind, graph_release }
        ropeway_backend_info { struct_size, name, device_count, reason, remedy, unavailable, reserved }
        ropeway_device_info { struct_size, selector, backend, name, vendor, platform, architecture, driver_version, compiler_version, memory, max_buffer, base_alignment, compute_units, ordinal, kind, execution, storage_dtypes, arithmetic_dtypes, unified_memory, reserved }
        ropeway_device_options { struct_size, cache_dir, binaries_dir }
        ropeway_memory_use { struct_size, used, free, total }
        ropeway_tensor { struct_size, name, buffer, offset, dtype, rank, shape, strides, layout, reserved }
        ropeway_execution { struct_size, plan, operands, operand_count, workspace, workspace_offset }
        ropeway_attribute { struct_size, name, integer, number, word, kind, reserved }
        ropeway_request { struct_size, op, inputs, input_count, attributes, attribute_count }
        ropeway_plan_options { struct_size, kernel, prepared, prepared_count, config, config_count }
        ropeway_tunable { struct_size, name, value }
        ropeway_plan_info { struct_size, op, description, workspace_bytes, operand_count, operations, bytes, determinism, launch_count }
        ropeway_operand_info { struct_size, name, bytes, dtype, rank, shape, strides, layout, is_output, is_prepared, reserved, in_place }
        ropeway_gemm { struct_size, a, b, c, bias, a_scale, b_scale, alpha, beta, trans_a, trans_b, activation, out_dtype, b_format }
        ropeway_grouped_gemm { struct_size, a, b, expert_offsets, a_scale, b_scale, b_format, activation, out_dtype }
        ropeway_grouped_gemm_masked { struct_size, a, b, counts, a_scale, b_scale, b_format, activation, out_dtype }
        ropeway_attention { struct_size, q, k, v, mask, kv_lens, sinks, alibi_slopes, scale, softcap, window, causal, return_lse }
        ropeway_attention_varlen { struct_size, q, k, v, cu_q, cu_kv, sinks, alibi_slopes, scale, softcap, window, causal, return_lse }
        ropeway_attention_paged { struct_size, q, cu_q, k_cache, v_cache, block_table, kv_lens, sinks, alibi_slopes, scale, softcap, window, causal, return_lse }
        ropeway_moe_route { struct_size, logits, bias, scale, topk, groups, topk_groups, score, renormalize }
        ropeway_expert_scatter { struct_size, x, topk_ids, experts }
        ropeway_expert_gather { struct_size, rows, source, topk_weights }
        ropeway_moe_ffn { struct_size, x, logits, bias, w_gate_up, w_down, scale, topk, groups, topk_groups, score, renormalize }
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/layout.txt");
    let frozen = std::fs::read_to_string(path).unwrap_or_default();
    // What is frozen stays in its place; the size of a struct (its line `-`) may grow.
    for line in frozen.lines().filter(|line| !line.contains(" - ")) {
        assert!(
            found.lines().any(|now| now == line),
            "a compiled program relies on: {line}"
        );
    }
    if std::env::var_os("ROPEWAY_UPDATE_LAYOUT").is_some() {
        std::fs::write(path, &found).unwrap();
        return;
    }
    assert_eq!(found, frozen, "tests/layout.txt lacks what is new");
}

#[test]
fn handles_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<crate::device::ropeway_probe>();
    shared::<crate::device::ropeway_device>();
    shared::<crate::memory::ropeway_buffer>();
    shared::<crate::memory::ropeway_pinned>();
    shared::<crate::queue::ropeway_queue>();
    shared::<crate::event::ropeway_event>();
    shared::<crate::plan::ropeway_plan>();
    shared::<crate::graph::ropeway_graph>();
}
