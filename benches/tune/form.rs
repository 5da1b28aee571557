//! The forms of workloads: which extents of which tensors are one size, so that a workload can be posed at other sizes.
//!
//! A tuned configuration must be right at its shape *and* at its edges: one row, tails that fill no tile, experts without rows. From the
//! form of its op, a workload's sizes follow, and from changed sizes a workload that is quick to check. A workload of another form
//! (batches of matrices, say) is checked at its own shape and by the op's conformance cases.

mod edges;

use std::collections::BTreeMap;

use ropeway_core::dtype::Block;
use ropeway_core::{DType, Error, Result};
use serde_json::{Value, json};

pub use self::edges::{checks, elsewhere, varying};
use crate::definition::{Limit, Workload};

/// Operations to a byte below which memory is the limit on most devices.
const INTENSE: f64 = 24.0;

/// Sizes by name.
pub type Sizes = BTreeMap<String, u64>;

/// An op's tensors as extents of named sizes.
struct Form {
    op: &'static str,
    /// Tensors that must be there: name, dtype (`T`: the workload's), extents. An extent is a size, `N*size`, `size*size` or `size+1`.
    tensors: &'static [Tensor],
    /// Tensors that may be there.
    optional: &'static [Tensor],
    /// Integer contents: tensor, evenly, at the edges (`{size}` stands for its value).
    fill: &'static [(&'static str, &'static str, &'static str)],
    /// Sizes that vary from call to call: tokens, rows, lengths. May be 1.
    rows: &'static [&'static str],
    /// Other sizes that may be anything.
    free: &'static [&'static str],
    /// Sizes that may be fewer, but not just any number: experts, sequences, blocks of keys.
    counts: &'static [&'static str],
    /// Sizes that one may leave out, and the size or the number whose value they then have.
    defaults: &'static [(&'static str, &'static str)],
}

const FORMS: &[Form] = &[
    Form {
        op: "gemm",
        tensors: &[("a", "T", "m k"), ("b", "T", "k n")],
        optional: &[("bias", "T", "n"), ("c", "T", "m n")],
        fill: &[],
        rows: &["m"],
        free: &["n", "k"],
        counts: &[],
        defaults: &[],
    },
    Form {
        op: "grouped_gemm",
        tensors: &[
            ("a", "T", "rows k"),
            ("b", "T", "experts n k"),
            ("expert_offsets", "I32", "experts+1"),
        ],
        optional: &[],
        fill: &[("expert_offsets", "rows {rows}", "skewed {rows}")],
        rows: &["rows"],
        free: &["n", "k"],
        counts: &["experts"],
        defaults: &[],
    },
    Form {
        op: "grouped_gemm_masked",
        tensors: &[
            ("a", "T", "experts capacity k"),
            ("b", "T", "experts n k"),
            ("counts", "I32", "experts"),
        ],
        optional: &[],
        fill: &[("counts", "constant {capacity}", "ragged {capacity}")],
        rows: &["capacity"],
        free: &["n", "k"],
        counts: &["experts"],
        defaults: &[],
    },
    Form {
        op: "attention",
        tensors: &[
            ("q", "T", "batch heads q_len d"),
            ("k", "T", "batch kv_heads kv_len d"),
            ("v", "T", "batch kv_heads kv_len dv"),
        ],
        optional: &[],
        fill: &[],
        rows: &["q_len"],
        free: &["kv_len"],
        counts: &["batch"],
        defaults: &[
            ("batch", "1"),
            ("kv_heads", "heads"),
            ("dv", "d"),
            ("kv_len", "q_len"),
        ],
    },
    Form {
        op: "attention_varlen",
        tensors: &[
            ("q", "T", "tokens heads d"),
            ("k", "T", "kv_tokens kv_heads d"),
            ("v", "T", "kv_tokens kv_heads dv"),
            ("cu_q", "I32", "sequences+1"),
            ("cu_kv", "I32", "sequences+1"),
        ],
        optional: &[],
        fill: &[
            ("cu_q", "rows {tokens}", "skewed {tokens}"),
            ("cu_kv", "rows {kv_tokens}", "skewed {kv_tokens}"),
        ],
        rows: &["tokens"],
        free: &["kv_tokens"],
        counts: &["sequences"],
        defaults: &[("kv_heads", "heads"), ("dv", "d"), ("kv_tokens", "tokens")],
    },
    Form {
        op: "attention_paged",
        tensors: &[
            ("q", "T", "tokens heads d"),
            ("cu_q", "I32", "batch+1"),
            ("k_cache", "T", "blocks block_size kv_heads d"),
            ("v_cache", "T", "blocks block_size kv_heads dv"),
            ("block_table", "I32", "batch max_blocks"),
            ("kv_lens", "I32", "batch"),
        ],
        optional: &[],
        fill: &[
            ("cu_q", "rows {tokens}", "skewed {tokens}"),
            ("block_table", "permutation", "permutation"),
            (
                "kv_lens",
                "constant {max_blocks*block_size}",
                "ragged {max_blocks*block_size}",
            ),
        ],
        rows: &["tokens"],
        free: &[],
        counts: &["batch", "max_blocks"],
        defaults: &[
            ("block_size", "16"),
            ("kv_heads", "heads"),
            ("dv", "d"),
            ("blocks", "batch*max_blocks"),
        ],
    },
    Form {
        op: "moe_route",
        tensors: &[("logits", "T", "tokens experts")],
        optional: &[("bias", "F32", "experts")],
        fill: &[],
        rows: &["tokens"],
        free: &[],
        counts: &[],
        defaults: &[],
    },
    Form {
        op: "expert_scatter",
        tensors: &[
            ("x", "T", "tokens hidden"),
            ("topk_ids", "I32", "tokens topk"),
        ],
        optional: &[],
        fill: &[("topk_ids", "distinct {experts}", "distinct {experts}")],
        rows: &["tokens"],
        free: &["hidden"],
        counts: &[],
        defaults: &[],
    },
    Form {
        op: "expert_gather",
        tensors: &[
            ("rows", "T", "tokens*topk hidden"),
            ("source", "I32", "tokens*topk"),
            ("topk_weights", "F32", "tokens topk"),
        ],
        optional: &[],
        fill: &[("source", "permutation", "permutation")],
        rows: &["tokens"],
        free: &["hidden"],
        counts: &[],
        defaults: &[],
    },
    Form {
        op: "moe_ffn",
        tensors: &[
            ("x", "T", "tokens hidden"),
            ("logits", "T", "tokens experts"),
            ("w_gate_up", "T", "experts 2*inter hidden"),
            ("w_down", "T", "experts hidden inter"),
        ],
        optional: &[("bias", "F32", "experts")],
        fill: &[],
        rows: &["tokens"],
        free: &["hidden", "inter"],
        counts: &[],
        defaults: &[],
    },
    rows_of("norm", ONE_ROW, &[("weight", "F32", "columns")]),
    rows_of("softmax", ONE_ROW, &[]),
    rows_of("argsort", ONE_ROW, &[]),
    rows_of("unary", ONE_ROW, &[]),
    rows_of("copy", ONE_ROW, &[]),
    rows_of("glu", &[("x", "T", "rows 2*columns")], &[]),
];

/// A tensor of a form: name, dtype, extents.
type Tensor = (&'static str, &'static str, &'static str);

const ONE_ROW: &[Tensor] = &[("x", "T", "rows columns")];

/// An op over rows of one tensor.
const fn rows_of(
    op: &'static str,
    tensors: &'static [Tensor],
    optional: &'static [Tensor],
) -> Form {
    Form {
        op,
        tensors,
        optional,
        fill: &[],
        rows: &["rows"],
        free: &["columns"],
        counts: &[],
        defaults: &[],
    }
}

/// An extent as a factor, sizes, and a number to add.
fn extent(text: &str) -> (u64, Vec<&str>, u64) {
    let (product, add) = match text.split_once('+') {
        Some((product, add)) => (product, add.parse().unwrap_or(0)),
        None => (text, 0),
    };
    let mut factor = 1;
    let mut names = Vec::new();
    for part in product.split('*') {
        match part.parse::<u64>() {
            Ok(number) => factor *= number,
            Err(_) => names.push(part),
        }
    }
    (factor, names, add)
}

fn evaluate(text: &str, sizes: &Sizes) -> Result<u64> {
    let (factor, names, add) = extent(text);
    let mut value = factor;
    let mut named = Vec::new();
    for name in names {
        let size = sizes
            .get(name)
            .ok_or_else(|| Error::invalid("--shape", "nothing", format!("{name}=…")))?;
        named.push(format!("{name}={size}"));
        value = value
            .checked_mul(*size)
            .ok_or_else(|| too_large(text, &named.join(" ")))?;
    }
    value
        .checked_add(add)
        .ok_or_else(|| too_large(text, &named.join(" ")))
}

fn too_large(extent: &str, sizes: &str) -> Error {
    Error::invalid(extent, sizes, "sizes whose product fits 64 bits")
}

/// Finds the one size that is not known yet in an extent; whether the extent agrees with what is known.
fn solve<'a>(text: &'a str, value: u64, sizes: &mut BTreeMap<&'a str, u64>) -> bool {
    let (mut factor, names, add) = extent(text);
    let Some(rest) = value.checked_sub(add) else {
        return false;
    };
    let mut unknown = None;
    for name in names {
        match sizes.get(name) {
            Some(size) => match factor.checked_mul(*size) {
                Some(product) => factor = product,
                None => return false,
            },
            None => unknown = Some(name),
        }
    }
    match unknown {
        None => factor == rest,
        Some(_) if factor == 0 || rest % factor != 0 => false,
        Some(name) => {
            sizes.insert(name, rest / factor);
            true
        }
    }
}

/// The blocks in which a tensor's last size lies: `b_format` says so of b, whose bytes are its extents then.
fn blocks(tensor: &str, workload: &Workload) -> Option<Block> {
    let format = workload.attrs.get("b_format").and_then(Value::as_str);
    let format = DType::from_name(&format?.to_uppercase())?;
    let is_b = tensor == "b" && DType::GGML_BLOCKS.contains(&format);
    format.block().filter(|_| is_b)
}

/// The workload's form with transposed operands as they lie.
fn extents_of(
    form: &Form,
    tensor: &str,
    extents: &'static str,
    workload: &Workload,
) -> &'static str {
    let set = |name| workload.attrs.get(name) == Some(&Value::Bool(true));
    match (form.op, tensor) {
        ("gemm", "a") if set("trans_a") => "k m",
        ("gemm", "b") if set("trans_b") => "n k",
        _ => extents,
    }
}

fn form_of(op: &str) -> Option<&'static Form> {
    FORMS.iter().find(|form| form.op == op)
}

/// The ops that `--shape` can describe.
pub fn ops() -> impl Iterator<Item = &'static str> {
    FORMS.iter().map(|form| form.op)
}

/// A workload's sizes by name, if it has its op's plain form.
pub fn sizes(workload: &Workload) -> Option<Sizes> {
    let form = form_of(&workload.op)?;
    let mut sizes = BTreeMap::new();
    // Products are solved once their factors are known.
    let mut tensors: Vec<_> = form.tensors.iter().chain(form.optional).collect();
    tensors.sort_by_key(|(_, _, extents)| extents.contains("*topk"));
    let mut found = 0;
    for &&(name, _, extents) in &tensors {
        let Some(text) = workload.tensors.get(name) else {
            if form.tensors.iter().any(|(required, ..)| *required == name) {
                return None;
            }
            continue;
        };
        found += 1;
        let mut values: Vec<u64> = text
            .split_whitespace()
            .skip(1)
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()
            .ok()?;
        if let (Some(block), Some(last)) = (blocks(name, workload), values.last_mut()) {
            let whole = last.is_multiple_of(block.bytes);
            *last = (*last / block.bytes)
                .checked_mul(block.elements)
                .filter(|_| whole)?;
        }
        let extents: Vec<_> = extents_of(form, name, extents, workload)
            .split_whitespace()
            .collect();
        let fits = extents.len() == values.len()
            && extents
                .into_iter()
                .zip(values)
                .all(|(extent, value)| solve(extent, value, &mut sizes));
        if !fits {
            return None;
        }
    }
    let mut sizes: Sizes = sizes
        .into_iter()
        .map(|(name, size)| (name.to_owned(), size))
        .collect();
    if let Some(experts) = workload.attrs.get("experts").and_then(Value::as_u64) {
        sizes.insert("experts".into(), experts);
    }
    (found == workload.tensors.len()).then_some(sizes)
}

/// The workload at other sizes; at the edges, with integers that leave experts and sequences empty.
fn resized(workload: &Workload, sizes: &Sizes, edge: bool) -> Result<Workload> {
    let form = form_of(&workload.op).ok_or_else(|| Error::unsupported(&*workload.op))?;
    let mut resized = workload.clone();
    for &(name, _, extents) in form.tensors.iter().chain(form.optional) {
        let Some(text) = workload.tensors.get(name) else {
            continue;
        };
        let dtype = text.split_whitespace().next().unwrap_or("T");
        let extents = extents_of(form, name, extents, workload);
        let text = tensor_text(dtype, extents, blocks(name, workload), sizes)?;
        resized.tensors.insert(name.into(), text);
    }
    set_fill(form, &mut resized, sizes, edge)?;
    Ok(resized)
}

/// Dtype and extents, the last of them in bytes if it lies in blocks.
fn tensor_text(dtype: &str, extents: &str, blocks: Option<Block>, sizes: &Sizes) -> Result<String> {
    let names: Vec<_> = extents.split_whitespace().collect();
    let mut text = dtype.to_owned();
    for (axis, extent) in names.iter().enumerate() {
        let mut value = evaluate(extent, sizes)?;
        if let Some(block) = blocks.filter(|_| axis + 1 == names.len()) {
            if !value.is_multiple_of(block.elements) {
                let expected = format!("a multiple of {}, its block", block.elements);
                return Err(Error::invalid(extent, value, expected));
            }
            value = (value / block.elements)
                .checked_mul(block.bytes)
                .ok_or_else(|| too_large(extent, &format!("{extent}={value}")))?;
        }
        text += &format!(" {value}");
    }
    Ok(text)
}

fn set_fill(form: &Form, workload: &mut Workload, sizes: &Sizes, edge: bool) -> Result<()> {
    for &(name, even, at_edge) in form.fill {
        let text = if edge { at_edge } else { even };
        let text = match text.split_once('{') {
            Some((word, size)) => {
                format!("{word}{}", evaluate(size.trim_end_matches('}'), sizes)?)
            }
            None => text.into(),
        };
        workload.fill.insert(name.into(), text);
    }
    Ok(())
}

/// The words of a shape, `m=512 n=64` with spaces or commas between, as names and values.
///
/// # Errors
/// `InvalidArgument` naming what is no such word or stands there twice.
pub fn words(shape: &str) -> Result<Vec<(&str, &str)>> {
    let mut words: Vec<(&str, &str)> = Vec::new();
    for word in shape.split([',', ' ']).filter(|word| !word.is_empty()) {
        let found = || format!("{word:?}");
        match word.split_once('=') {
            None => return Err(Error::invalid("--shape", found(), "NAME=VALUE")),
            Some((name, _)) if words.iter().any(|(known, _)| *known == name) => {
                return Err(Error::invalid("--shape", found(), "each name once"));
            }
            Some(pair) => words.push(pair),
        }
    }
    Ok(words)
}

/// The value of a size in a shape.
///
/// # Errors
/// `InvalidArgument` naming the size.
pub fn size(name: &str, value: &str) -> Result<u64> {
    let found = || format!("\"{name}={value}\"");
    value
        .parse()
        .map_err(|_| Error::invalid("--shape", found(), "a whole number of 64 bits"))
}

/// A workload of what `--shape` says: `m=512 n=512 k=512 trans_b=true`. What is no size of the op is an attribute.
///
/// # Errors
/// `InvalidArgument` naming what cannot be read or is missing.
pub fn workload(op: &str, shape: &str, dtype: &str) -> Result<Workload> {
    let form = form_of(op).ok_or_else(|| {
        let known: Vec<_> = ops().collect();
        Error::invalid(
            "OP",
            format!("{op:?}"),
            format!("with --shape, one of {known:?}"),
        )
    })?;
    let mut workload = Workload {
        name: format!(
            "{op} {}",
            shape
                .split([',', ' '])
                .filter(|w| !w.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        ),
        model: None,
        op: op.into(),
        dtypes: vec![dtype.into()],
        tensors: BTreeMap::new(),
        attrs: serde_json::Map::new(),
        fill: BTreeMap::new(),
        prepared: Vec::new(),
        limit: Limit::Compute,
        cold: false,
    };
    let mut sizes = Sizes::new();
    let all = form.tensors.iter().chain(form.optional);
    let mut names: Vec<&str> = all
        .flat_map(|(_, _, e)| e.split_whitespace())
        .flat_map(|e| extent(e).1)
        .collect();
    names.extend(form.fill.iter().flat_map(|(_, text, _)| {
        let inside = text
            .split_once('{')
            .map_or("", |(_, inside)| inside.trim_end_matches('}'));
        extent(inside).1
    }));
    for (name, value) in words(shape)? {
        if names.contains(&name) {
            sizes.insert(name.into(), size(name, value)?);
        } else {
            let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            workload.attrs.insert(name.into(), value);
        }
        if op == "expert_scatter" && name == "experts" {
            workload
                .attrs
                .insert(name.into(), json!(size(name, value)?));
        }
    }
    for (name, default) in form.defaults {
        if !sizes.contains_key(*name) {
            let value = match default.parse() {
                Ok(number) => number,
                Err(_) => evaluate(default, &sizes)?,
            };
            sizes.insert((*name).into(), value);
        }
    }
    for &(name, element, extents) in form.tensors {
        let extents = extents_of(form, name, extents, &workload);
        let blocks = blocks(name, &workload);
        let element = blocks.map_or(element, |_| "U8");
        let text = tensor_text(element, extents, blocks, &sizes)?;
        workload.tensors.insert(name.into(), text);
    }
    set_fill(form, &mut workload, &sizes, false)?;
    let cost = workload.op(dtype)?.cost();
    if cost.flops < INTENSE * cost.bytes {
        workload.limit = if cost.flops < cost.bytes {
            Limit::Copy
        } else {
            Limit::Read
        };
        workload.cold = true;
    }
    debug_assert!(DType::from_name(dtype).is_some());
    Ok(workload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes_of(workload: &Workload) -> String {
        let sizes = sizes(workload).expect("a known form");
        let words: Vec<_> = sizes.iter().map(|(n, s)| format!("{n}={s}")).collect();
        words.join(" ")
    }

    #[test]
    fn a_shape_in_words_becomes_a_workload_and_back() {
        for (op, shape) in [
            ("gemm", "k=7 m=5 n=6"),
            ("grouped_gemm", "experts=4 k=32 n=48 rows=100"),
            ("grouped_gemm_masked", "capacity=9 experts=4 k=32 n=48"),
            (
                "attention",
                "batch=2 d=64 dv=64 heads=8 kv_heads=2 kv_len=100 q_len=10",
            ),
            (
                "attention_paged",
                "batch=3 block_size=16 blocks=12 d=64 dv=64 heads=8 kv_heads=2 max_blocks=4 tokens=3",
            ),
            ("expert_scatter", "experts=16 hidden=64 tokens=9 topk=4"),
            ("expert_gather", "hidden=64 tokens=9 topk=4"),
            ("moe_ffn", "experts=8 hidden=64 inter=48 tokens=9"),
            ("norm", "columns=100 rows=20"),
            ("glu", "columns=100 rows=20"),
            ("gemm", "k=96 m=5 n=6 trans_b=true b_format=q4_0"),
            ("gemm", "k=512 m=5 n=6 trans_b=true b_format=q6_k"),
            ("grouped_gemm", "experts=4 k=64 n=48 rows=100 b_format=q8_0"),
        ] {
            let (shape, attrs) = match shape.find(" trans_b").or(shape.find(" b_format")) {
                Some(at) => shape.split_at(at),
                None => (shape, if op == "moe_ffn" { " topk=2" } else { "" }),
            };
            let made = workload(op, &format!("{shape}{attrs}"), "F32").unwrap();
            assert_eq!(sizes_of(&made), shape);
            made.request("F32").expect("integers in range");
        }
        let transposed = workload("gemm", "m=5,n=6,k=7,trans_b=true", "F16").unwrap();
        assert_eq!(transposed.tensors["b"], "T 6 7");
        assert!(transposed.cold, "so small a product is bound by memory");
        assert!(!workload("gemm", "m=512 n=512 k=512", "F32").unwrap().cold);
    }

    #[test]
    fn what_cannot_be_read_or_is_missing_is_named() {
        let error = |op, shape| workload(op, shape, "F32").unwrap_err().to_string();
        assert!(error("gemm", "m=5 n=6").contains("k=…"));
        assert!(error("gemm", "m=five n=6 k=7").contains("m=five"));
        assert!(error("gemm", "m").contains("NAME=VALUE"));
        assert!(error("gemm", "m=5 n=6 k=7 z=1").contains('z'));
        assert!(error("dot", "m=5").contains("grouped_gemm"));
        assert!(error("gemm", "m=5 n=6 k=7 m=8").contains("m=8"));
        let quantised = error("gemm", "m=5 n=6 k=80 trans_b=true b_format=q4_0");
        assert!(
            quantised.contains("multiple of 32") && quantised.contains("80"),
            "{quantised}"
        );
    }

    /// A product that no 64 bits hold is an error that names a size of it, in `--shape` and in a file.
    #[test]
    fn sizes_too_large_are_named() {
        for (op, shape, named) in [
            (
                "gemm",
                "m=18446744073709551616 n=1 k=1",
                "m=18446744073709551616",
            ),
            (
                "gemm",
                "m=18446744073709551615 n=1 k=2",
                "18446744073709551615",
            ),
            (
                "gemm",
                "m=9999999999999 n=9999999999999 k=99999999999",
                "9999999999999",
            ),
            (
                "grouped_gemm",
                "rows=8 experts=18446744073709551615 n=1 k=1",
                "experts=18446744073709551615",
            ),
            (
                "glu",
                "rows=1 columns=9223372036854775808",
                "columns=9223372036854775808",
            ),
            (
                "expert_gather",
                "tokens=4294967296 topk=4294967296 hidden=1",
                "topk=4294967296",
            ),
            (
                "attention_paged",
                "tokens=1 batch=4294967296 max_blocks=4294967296 heads=1 d=1",
                "max_blocks=4294967296",
            ),
            (
                "gemm",
                "m=1 n=1 k=18446744073709551584 trans_b=true b_format=q8_0",
                "k=18446744073709551584",
            ),
        ] {
            let error = workload(op, shape, "F32").unwrap_err().to_string();
            assert!(error.contains(named), "{shape}: {error}");
        }
        let mut scatter = workload("expert_gather", "tokens=4 topk=2 hidden=8", "F32").unwrap();
        for (name, text) in [
            ("topk_weights", "F32 4294967296 4294967296"),
            ("rows", "T 8 18446744073709551615"),
            ("source", "I32 18446744073709551615"),
        ] {
            scatter.tensors.insert(name.into(), text.into());
            assert!(sizes(&scatter).is_none());
            assert!(scatter.op("F32").is_err());
        }
    }
}
