//! From the key of a tuned entry back to a problem whose planner asks for it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ropeway::TunedEntry;
use ropeway_core::DType;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::Op;
use ropeway_core::{Error, Result};
use serde_json::{Value, json};

use crate::definition::{BUILT_IN, Definition, Limit, Workload, of_model};
use crate::tune::form::{self, Sizes};
use crate::tune::question::{Question, questions};

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

/// The workloads that come with the program, models' layers included.
static SHIPPED: LazyLock<Vec<Workload>> = LazyLock::new(|| {
    let definitions = BUILT_IN.iter().map(|(_, text)| Definition::parse(text));
    let workloads = definitions.flatten().flat_map(|read| read.workloads);
    workloads.chain(of_model("").unwrap_or_default()).collect()
});

/// The problems that a planner looks up by these words: workloads that come with the program, then the plainest problem of the op.
pub fn known<'a>(
    op: &'a str,
    variant: &'a str,
    sizes: &'a Sizes,
    info: &'a DeviceInfo,
) -> impl Iterator<Item = Posed> {
    let of_op = SHIPPED.iter().filter(move |workload| workload.op == op);
    let in_dtypes = |workload: &'a Workload| {
        let dtypes = workload.dtypes.iter();
        dtypes.map(|dtype| (workload.clone(), dtype.clone()))
    };
    let all = of_op.flat_map(in_dtypes).chain(plain(op, variant, sizes));
    all.filter_map(move |(workload, dtype)| {
        Some(Posed {
            question: asks(&workload, &dtype, info, op, variant, sizes)?,
            workload,
            dtype,
        })
    })
}

/// The first of the [`known`] problems.
///
/// # Errors
/// `Unsupported` if none leads to the key on this device; `InvalidArgument` for words that no problem of the op can have.
pub fn pose(op: &str, variant: &str, sizes: &Sizes, info: &DeviceInfo) -> Result<Posed> {
    if let Some(posed) = known(op, variant, sizes, info).next() {
        return Ok(posed);
    }
    plain(op, variant, sizes)?;
    Err(Error::unsupported(format!(
        "no problem of {op} is known that {} looks up as {variant} {sizes:?}",
        info.name
    )))
}

/// The problem of an entry: of those that are known, the first that its kernel is a candidate for.
///
/// # Errors
/// As [`pose`].
pub fn pose_entry(entry: &TunedEntry, info: &DeviceInfo) -> Result<Posed> {
    let takes = |posed: &Posed| posed.candidate(entry).is_some();
    match known(&entry.op, &entry.variant, &entry.sizes, info).find(takes) {
        Some(posed) => Ok(posed),
        None => pose(&entry.op, &entry.variant, &entry.sizes, info),
    }
}

impl Posed {
    /// The candidate that an entry names.
    pub fn candidate(&self, entry: &TunedEntry) -> Option<&'static Kernel> {
        let mut candidates = self.question.candidates.iter();
        candidates.find(|k| k.name == entry.kernel).copied()
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

/// The problems that hold an entry to its shape and its edges, each in its dtype: those that the tuner checks too. A workload of no known
/// form leaves them to the plainest problem of its key.
///
/// # Errors
/// As [`Workload::op`].
pub fn checks(posed: &Posed, entry: &TunedEntry) -> Result<Vec<(Workload, String)>> {
    let mut dtype = posed.dtype.clone();
    let mut found = form::checks(&posed.workload, &dtype)?;
    if found.is_empty()
        && let Ok((plain, of_plain)) = plain(&entry.op, &entry.variant, &entry.sizes)
    {
        found = form::checks(&plain, &of_plain)?;
        dtype = of_plain;
    }
    Ok(found.into_iter().map(|w| (w, dtype.clone())).collect())
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

    /// Of a product in batches the form is not known: its entry is held to the plain product of the same sizes.
    #[test]
    fn an_entry_of_any_workload_has_edges() {
        let cpu = Registry::default().open("cpu").expect("always there");
        let sizes = |m| Sizes::from([("m".into(), m), ("n".into(), 4096), ("k".into(), 4096)]);
        for (variant, sizes) in [
            ("f32_f32_nt", sizes(4096)),
            ("f32_f32_nn", sizes(1)),
            ("f32_q4_0_nt", sizes(512)),
            ("f32_q6_k_nt", sizes(1)),
        ] {
            let posed = pose("gemm", variant, &sizes, cpu.info()).expect("of the cpu device");
            let entry = TunedEntry {
                op: "gemm".into(),
                variant: variant.into(),
                sizes,
                kernel: String::new(),
                version: 1,
                config: BTreeMap::new(),
                measured: None,
                provenance: None,
            };
            let checked = checks(&posed, &entry).unwrap();
            assert!(checked.len() >= 2, "{variant}: {checked:?}");
            let mut batched = posed.clone();
            let a = batched.workload.tensors["a"].replacen("T ", "T 2 ", 1);
            batched.workload.tensors.insert("a".into(), a);
            assert_eq!(checks(&batched, &entry).unwrap().len(), checked.len());
        }
    }
}
