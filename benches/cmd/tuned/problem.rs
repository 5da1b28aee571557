//! From the key of a tuned entry back to a problem whose planner asks for it.

use std::collections::BTreeMap;

use ropeway_core::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::op::Op;
use ropeway_core::{Error, Result};
use serde_json::{Value, json};

use crate::definition::{BUILT_IN, Definition, Limit, Workload};
use crate::tune::question::{Question, questions};

/// Operations and bytes of a problem that the f64 reference settles in well under a second.
const CHECKED_WORK: f64 = 2e7;

/// Sizes by name.
pub type Sizes = BTreeMap<String, u64>;

/// Bytes of all operands of an op.
pub fn bytes(op: &dyn Op) -> Result<u64> {
    op.operands().iter().try_fold(0, |sum: u64, operand| {
        Ok(sum.saturating_add(operand.desc.span_bytes()?))
    })
}

/// A workload in one dtype, and the question that its planner asks.
#[derive(Clone, Debug)]
pub struct Posed {
    /// The workload.
    pub workload: Workload,
    /// What `T` stands for in it.
    pub dtype: String,
    /// The question.
    pub question: Question,
}

/// The problem of these words: a workload that comes with the program if one has just these sizes, else the plainest problem of the op.
///
/// # Errors
/// `Unsupported` if neither leads to the key on this device.
pub fn pose(op: &str, variant: &str, sizes: &Sizes, info: &DeviceInfo) -> Result<Posed> {
    let of_name = |(_, text): &(&str, &str)| Definition::parse(text).map(|read| read.workloads);
    for workloads in BUILT_IN.iter().map(of_name) {
        for workload in workloads?.into_iter().filter(|workload| workload.op == op) {
            for dtype in workload.dtypes.clone() {
                if let Some(question) = asks(&workload, &dtype, info, op, variant, sizes) {
                    return Ok(Posed {
                        workload,
                        dtype,
                        question,
                    });
                }
            }
        }
    }
    let (workload, dtype) = plain(op, variant, sizes)?;
    match asks(&workload, &dtype, info, op, variant, sizes) {
        Some(question) => Ok(Posed {
            workload,
            dtype,
            question,
        }),
        None => Err(Error::unsupported(format!(
            "no problem of {op} is known that {} looks up as {variant} {sizes:?}",
            info.name
        ))),
    }
}

fn asks(
    workload: &Workload,
    dtype: &str,
    info: &DeviceInfo,
    op: &str,
    variant: &str,
    sizes: &Sizes,
) -> Option<Question> {
    let problem = workload.op(dtype).ok()?;
    let asked = questions(&*problem, info).ok()?;
    asked.into_iter().find(|asked| asked.is(op, variant, sizes))
}

/// The plain problems of an op that hold an entry to its shape and its edges: the shape, made smaller where the reference would take
/// long; the same off every tile; and with one row.
pub fn checks(op: &str, variant: &str, sizes: &Sizes) -> Vec<(Workload, String)> {
    let mut reduced = sizes.clone();
    let work = |sizes: &Sizes| {
        let (workload, dtype) = plain(op, variant, sizes).ok()?;
        let cost = workload.op(&dtype).ok()?.cost();
        Some(cost.flops + cost.bytes)
    };
    while work(&reduced).is_some_and(|work| work > CHECKED_WORK) {
        let largest = reduced
            .iter_mut()
            .filter(|(name, size)| is_extent(name) && **size > 32)
            .max_by_key(|(_, size)| **size);
        match largest {
            Some((_, size)) => *size = size.div_ceil(2),
            None => break,
        }
    }
    let mut tails = reduced.clone();
    for (_, size) in tails
        .iter_mut()
        .filter(|(name, size)| is_extent(name) && **size > 1)
    {
        *size -= 1;
    }
    // Weights in blocks have whole ones.
    if plain(op, variant, &tails).is_err()
        && let Some(k) = reduced.get("k")
    {
        tails.insert("k".into(), *k);
    }
    let mut one = tails.clone();
    for (_, size) in one.iter_mut().filter(|(name, _)| is_rows(name)) {
        *size = 1;
    }
    let all = [reduced, tails, one];
    all.iter()
        .filter_map(|sizes| plain(op, variant, sizes).ok())
        .collect()
}

/// Sizes that may be any number: not those that an op ties to others.
fn is_extent(name: &str) -> bool {
    is_rows(name) || ["n", "k", "keys", "hidden", "inter", "columns"].contains(&name)
}

/// Sizes that change from call to call.
fn is_rows(name: &str) -> bool {
    ["m", "rows", "tokens"].contains(&name)
}

/// The plainest problem of an op at these sizes, and its dtype.
fn plain(op: &str, variant: &str, sizes: &Sizes) -> Result<(Workload, String)> {
    let size = |name: &str| {
        sizes
            .get(name)
            .copied()
            .ok_or_else(|| Error::invalid(name, "nothing", format!("a size of {op}")))
    };
    let mut made = Plain::new(op);
    let words: Vec<&str> = variant.split('_').collect();
    let dtype = match op {
        "gemm" => made.gemm(&words, size("m")?, size("n")?, size("k")?)?,
        "grouped_gemm" => {
            let (rows, experts) = (size("rows")?, size("experts")?);
            let dtype = name_of(words.first().copied().unwrap_or_default())?;
            made.tensor("a", "T", &[rows, size("k")?]);
            made.weight(&words[1..].join("_"), &[experts, size("n")?], size("k")?)?;
            made.tensor("expert_offsets", "I32", &[experts.saturating_add(1)]);
            made.fill("expert_offsets", format!("rows {rows}"));
            dtype
        }
        "attention" | "attention_varlen" | "attention_paged" => {
            made.attention(
                op,
                size("rows")?,
                size("keys")?,
                size("heads")?,
                [size("d")?, size("dv")?],
            );
            name_of(variant)?
        }
        "moe_route" => {
            made.tensor("logits", "T", &[size("tokens")?, size("experts")?]);
            made.attr("topk", json!(size("topk")?));
            name_of(variant)?
        }
        "expert_scatter" => {
            made.tensor("x", "T", &[size("tokens")?, size("hidden")?]);
            made.tensor("topk_ids", "I32", &[size("tokens")?, size("topk")?]);
            made.fill("topk_ids", format!("distinct {}", size("experts")?));
            made.attr("experts", json!(size("experts")?));
            name_of(variant)?
        }
        "expert_gather" => {
            let pairs = size("tokens")?.saturating_mul(size("topk")?);
            made.tensor("rows", "T", &[pairs, size("hidden")?]);
            made.tensor("source", "I32", &[pairs]);
            made.fill("source", "permutation".into());
            made.tensor("topk_weights", "F32", &[size("tokens")?, size("topk")?]);
            name_of(variant)?
        }
        "moe_ffn" => {
            let [tokens, experts] = [size("tokens")?, size("experts")?];
            let [hidden, inter] = [size("hidden")?, size("inter")?];
            made.tensor("x", "T", &[tokens, hidden]);
            made.tensor("logits", "T", &[tokens, experts]);
            made.tensor(
                "w_gate_up",
                "T",
                &[experts, inter.saturating_mul(2), hidden],
            );
            made.tensor("w_down", "T", &[experts, hidden, inter]);
            made.attr("topk", json!(size("topk")?));
            name_of(variant)?
        }
        "norm" | "softmax" | "argsort" | "copy" | "unary" | "glu" => {
            made.layer(op, &words, size("rows")?, size("columns")?)?
        }
        _ => {
            return Err(Error::unsupported(format!(
                "no plain problem of {op} is known"
            )));
        }
    };
    Ok((made.0, dtype))
}

/// A dtype by its name in any case.
fn name_of(word: &str) -> Result<String> {
    let known = DType::ALL
        .into_iter()
        .find(|dtype| dtype.name().eq_ignore_ascii_case(word));
    match known {
        Some(dtype) => Ok(dtype.name().into()),
        None => Err(Error::invalid("variant", format!("{word:?}"), "a dtype")),
    }
}

/// A workload that is being put together.
struct Plain(Workload);

impl Plain {
    fn new(op: &str) -> Plain {
        Plain(Workload {
            name: format!("plain_{op}"),
            model: None,
            op: op.into(),
            dtypes: Vec::new(),
            tensors: BTreeMap::new(),
            attrs: serde_json::Map::new(),
            fill: BTreeMap::new(),
            prepared: Vec::new(),
            limit: Limit::Compute,
            cold: false,
        })
    }

    fn tensor(&mut self, name: &str, dtype: &str, shape: &[u64]) {
        let extents: Vec<_> = shape.iter().map(u64::to_string).collect();
        let text = format!("{dtype} {}", extents.join(" "));
        self.0.tensors.insert(name.into(), text);
    }

    fn attr(&mut self, name: &str, value: Value) {
        self.0.attrs.insert(name.into(), value);
    }

    fn fill(&mut self, name: &str, text: String) {
        self.0.fill.insert(name.into(), text);
    }

    /// `f32_f32_nt`: dtypes of a and b, and whether each is transposed.
    fn gemm(&mut self, words: &[&str], m: u64, n: u64, k: u64) -> Result<String> {
        let (first, last) = match words {
            [first, .., last] if words.len() >= 3 && last.len() == 2 => (*first, *last),
            _ => return Err(Error::invalid("variant", words.join("_"), "f32_f32_nn")),
        };
        let b = words[1..words.len() - 1].join("_");
        let (trans_a, trans_b) = (last.starts_with('t'), last.ends_with('t'));
        self.tensor("a", "T", &if trans_a { [k, m] } else { [m, k] });
        match trans_b {
            true => self.weight(&b, &[n], k)?,
            false => self.tensor("b", &name_of(&b)?, &[k, n]),
        }
        self.attr("trans_a", json!(trans_a));
        self.attr("trans_b", json!(trans_b));
        name_of(first)
    }

    /// Operand b with its reduction last; GGML's blocks as the bytes that they are.
    fn weight(&mut self, word: &str, lead: &[u64], k: u64) -> Result<()> {
        let name = name_of(word)?;
        let mut shape = lead.to_vec();
        match DType::from_name(&name).and_then(DType::block) {
            None => {
                shape.push(k);
                self.tensor("b", &name, &shape);
            }
            Some(block) if k.is_multiple_of(block.elements) => {
                shape.push((k / block.elements).saturating_mul(block.bytes));
                self.tensor("b", "U8", &shape);
                self.attr("b_format", json!(name.to_lowercase()));
            }
            Some(block) => {
                return Err(Error::invalid(
                    "k",
                    k,
                    format!("a multiple of {}", block.elements),
                ));
            }
        }
        Ok(())
    }

    /// `F32_F16`: dtypes of the inputs, then of the output.
    fn layer(&mut self, op: &str, words: &[&str], rows: u64, columns: u64) -> Result<String> {
        let (first, last) = match (op, words) {
            ("norm", [first, weight, last]) => {
                self.tensor("weight", &name_of(weight)?, &[columns]);
                (first, last)
            }
            (_, [first, last]) => (first, last),
            _ => return Err(Error::invalid("variant", words.join("_"), "F32_F32")),
        };
        let stored = match op {
            "glu" => columns.saturating_mul(2),
            _ => columns,
        };
        self.tensor("x", "T", &[rows, stored]);
        if op == "unary" {
            self.attr("function", json!("silu"));
        }
        if first != last && op != "argsort" {
            self.attr("dtype", json!(last));
        }
        name_of(first)
    }

    /// One sequence, each query head with its own key head.
    fn attention(&mut self, op: &str, rows: u64, keys: u64, heads: u64, [d, dv]: [u64; 2]) {
        match op {
            "attention" => {
                self.tensor("q", "T", &[1, heads, rows, d]);
                self.tensor("k", "T", &[1, heads, keys, d]);
                self.tensor("v", "T", &[1, heads, keys, dv]);
            }
            "attention_varlen" => {
                self.tensor("q", "T", &[rows, heads, d]);
                self.tensor("k", "T", &[keys, heads, d]);
                self.tensor("v", "T", &[keys, heads, dv]);
                self.tensor("cu_q", "I32", &[2]);
                self.fill("cu_q", format!("steps {rows}"));
                self.tensor("cu_kv", "I32", &[2]);
                self.fill("cu_kv", format!("steps {keys}"));
            }
            _ => {
                let block = if keys.is_multiple_of(16) { 16 } else { 1 };
                let blocks = keys / block;
                self.tensor("q", "T", &[rows, heads, d]);
                self.tensor("cu_q", "I32", &[2]);
                self.fill("cu_q", format!("steps {rows}"));
                self.tensor("k_cache", "T", &[blocks, block, heads, d]);
                self.tensor("v_cache", "T", &[blocks, block, heads, dv]);
                self.tensor("block_table", "I32", &[1, blocks]);
                self.fill("block_table", "permutation".into());
                self.tensor("kv_lens", "I32", &[1]);
                self.fill("kv_lens", format!("constant {keys}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ropeway::Registry;

    use super::*;

    /// What the planners of the shipped workloads ask can be posed again from the key alone, so that any entry of theirs can be verified.
    #[test]
    fn keys_lead_back_to_problems() {
        let cpu = Registry::default().open("cpu").expect("always there");
        let mut posed = BTreeMap::<String, usize>::new();
        for (_, text) in BUILT_IN {
            for workload in Definition::parse(text).expect("ships").workloads {
                for dtype in &workload.dtypes {
                    let Ok(op) = workload.op(dtype) else { continue };
                    let Ok(asked) = questions(&*op, cpu.info()) else {
                        continue;
                    };
                    for question in asked {
                        let sizes: Sizes = question
                            .sizes
                            .iter()
                            .map(|(name, size)| ((*name).to_owned(), *size))
                            .collect();
                        let Ok((plain, dtype)) = plain(&question.op, &question.variant, &sizes)
                        else {
                            continue;
                        };
                        let again = asks(
                            &plain,
                            &dtype,
                            cpu.info(),
                            &question.op,
                            &question.variant,
                            &sizes,
                        );
                        assert!(
                            again.is_some(),
                            "{}: {question:?} from {plain:?}",
                            workload.name
                        );
                        *posed.entry(question.op).or_default() += 1;
                    }
                }
            }
        }
        for op in [
            "copy",
            "norm",
            "gemm",
            "grouped_gemm",
            "attention",
            "attention_paged",
            "moe_route",
            "expert_scatter",
            "expert_gather",
            "moe_ffn",
        ] {
            assert!(posed.contains_key(op), "{op}: {posed:?}");
        }
    }

    #[test]
    fn edges_are_small_and_off_the_tiles() {
        let sizes = Sizes::from([("m".into(), 4096), ("n".into(), 4096), ("k".into(), 4096)]);
        let checks = checks("gemm", "f32_f32_nt", &sizes);
        let shapes: Vec<_> = checks
            .iter()
            .map(|(workload, _)| workload.tensors["a"].clone())
            .collect();
        assert_eq!(shapes, ["T 256 256", "T 255 255", "T 1 255"]);
        let blocks = super::checks("gemm", "f32_q4_0_nt", &sizes);
        assert_eq!(blocks[1].0.tensors["a"], "T 255 256");
        assert!(
            checks
                .iter()
                .all(|(workload, dtype)| workload.op(dtype).is_ok())
        );
    }
}
