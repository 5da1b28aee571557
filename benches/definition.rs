//! Workloads: which op at which shapes, read from `definitions/*.toml`.
//!
//! ```toml
//! about = "What these shapes are for."
//!
//! [[workload]]
//! name = "gemv_4096"
//! op = "gemm"
//! dtypes = ["F32", "F16"]                        # measured one after the other
//! tensors = { a = "T 1 4096", b = "T 4096 4096" } # dtype (T: the one being measured) and extents
//! attrs = { trans_b = true }
//! fill = { topk_ids = "distinct 64" }            # how I32 tensors are filled
//! prepared = ["b"]                               # weights that an engine would prepare once
//! limit = "read"                                 # what bounds it: "compute", "read" or "copy"
//! cold = true                                    # rotate through operands that no cache holds
//! ```

use std::collections::BTreeMap;

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Op, OpKind, Signature};
use ropeway_core::request::{HostTensor, Operands, Request};
use ropeway_core::spec::Random;
use ropeway_core::{DType, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The definitions that come with the program.
pub const BUILT_IN: [(&str, &str); 7] = [
    ("gemm", include_str!("definitions/gemm.toml")),
    ("attention", include_str!("definitions/attention.toml")),
    ("moe", include_str!("definitions/moe.toml")),
    ("layer", include_str!("definitions/layer.toml")),
    ("models", include_str!("definitions/models.toml")),
    ("engines", include_str!("definitions/engines.toml")),
    ("quantised", include_str!("definitions/quantised.toml")),
];

/// The layers of models at their full size, which `ropeway tune --model` picks by the model's name.
const MODEL_LAYERS: &str = include_str!("definitions/model_layers.toml");

/// Every workload that says whose layer it is.
fn layers_of_models() -> Result<Vec<Workload>> {
    let mut layers = Vec::new();
    for (name, text) in BUILT_IN.into_iter().chain([("model_layers", MODEL_LAYERS)]) {
        let definition = Definition::parse(text).map_err(|error| error.within(name))?;
        layers.extend(definition.workloads);
    }
    layers.retain(|workload| workload.model.is_some());
    Ok(layers)
}

/// The names of the models, sorted.
///
/// # Errors
/// None that a build does not have for all its users.
pub fn models() -> Result<Vec<String>> {
    let mut names: Vec<String> = layers_of_models()?
        .into_iter()
        .filter_map(|w| w.model)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The layers of the models whose name begins so.
///
/// # Errors
/// `InvalidArgument` if there is none.
pub fn of_model(prefix: &str) -> Result<Vec<Workload>> {
    let mut layers = layers_of_models()?;
    let prefix = prefix.to_lowercase();
    layers.retain(|layer| {
        layer
            .model
            .as_ref()
            .is_some_and(|name| name.starts_with(&prefix))
    });
    match layers.is_empty() {
        true => Err(Error::invalid(
            "--model",
            format!("{prefix:?}"),
            format!("the beginning of one of {:?}", models()?),
        )),
        false => Ok(layers),
    }
}

/// Random values that are made; larger tensors repeat them.
const DISTINCT: u64 = 1 << 20;

/// A file of workloads.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What the shapes are for.
    pub about: String,
    /// The workloads.
    #[serde(rename = "workload")]
    pub workloads: Vec<Workload>,
}

/// What a workload is bounded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Multiply-adds.
    Compute,
    /// Reading memory.
    Read,
    /// Reading and writing memory.
    Copy,
}

/// An op at certain shapes, in one or several dtypes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name, by which it is picked.
    pub name: String,
    /// The model whose layer it is, by which `ropeway tune --model` picks it.
    #[serde(default)]
    pub model: Option<String>,
    /// The op.
    pub op: String,
    /// The dtypes that `T` stands for.
    pub dtypes: Vec<String>,
    /// Inputs: dtype and extents.
    pub tensors: BTreeMap<String, String>,
    /// Attributes.
    #[serde(default)]
    pub attrs: Map<String, Value>,
    /// Content of I32 tensors: `constant V`, `steps V` (0, V, 2 V …), `rows R` (offsets that spread R rows evenly), `skewed R` (offsets
    /// that leave every other expert without rows), `ragged N` (numbers from 0 to N, 0 first), `distinct N` (different numbers below N in
    /// each row) or `permutation`.
    #[serde(default)]
    pub fill: BTreeMap<String, String>,
    /// Operands that are prepared once.
    #[serde(default)]
    pub prepared: Vec<String>,
    /// What bounds it.
    pub limit: Limit,
    /// Whether each run finds its operands in memory rather than in a cache.
    #[serde(default)]
    pub cold: bool,
}

impl Definition {
    /// Reads a definition.
    ///
    /// # Errors
    /// `InvalidArgument` with the line.
    pub fn parse(text: &str) -> Result<Definition> {
        toml::from_str(text)
            .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))
    }
}

impl Workload {
    fn wrong(&self, what: &str, found: &str, expected: &str) -> Error {
        Error::invalid(what, format!("{found:?}"), expected).within(&self.name)
    }

    /// The request in one dtype; the same each time.
    ///
    /// # Errors
    /// `InvalidArgument` naming what cannot be read, or as the op checks it.
    pub fn request(&self, dtype: &str) -> Result<(Request, Box<dyn Op>)> {
        self.request_of(dtype, |_| true)
    }

    /// The op in one dtype, with nothing made of what its tensors hold.
    ///
    /// # Errors
    /// `InvalidArgument` naming what cannot be read, or as the op checks it.
    pub fn op(&self, dtype: &str) -> Result<Box<dyn Op>> {
        let signature = self.signature(dtype)?;
        let parsed = self.kind()?.parse(&signature);
        parsed.map_err(|error| error.within(&self.name))
    }

    fn kind(&self) -> Result<&'static dyn OpKind> {
        ropeway_kernels::op(&self.op).ok_or_else(|| self.wrong("op", &self.op, "an op"))
    }

    fn signature(&self, dtype: &str) -> Result<Signature> {
        let mut signature = Signature {
            attrs: self.attrs.clone(),
            ..Signature::default()
        };
        for (name, text) in &self.tensors {
            let mut words = text.split_whitespace();
            let word = match words.next() {
                Some("T") => dtype,
                Some(word) => word,
                None => "",
            };
            let element =
                DType::from_name(word).ok_or_else(|| self.wrong(name, text, "a dtype"))?;
            let shape = words
                .map(|word| word.parse().map_err(|_| self.wrong(name, text, "extents")))
                .collect::<Result<Vec<u64>>>()?;
            let desc = TensorDesc::contiguous(element, &shape)?;
            signature.tensors.insert(name.clone(), desc);
        }
        Ok(signature)
    }

    /// The request with the content of those tensors only whose dtype is `wanted`.
    fn request_of(
        &self,
        dtype: &str,
        wanted: impl Fn(DType) -> bool,
    ) -> Result<(Request, Box<dyn Op>)> {
        let kind = self.kind()?;
        let signature = self.signature(dtype)?;
        let mut inputs = Operands::new();
        for (index, (name, desc)) in signature.tensors.iter().enumerate() {
            if wanted(desc.dtype) {
                let fill = self.fill.get(name).map(String::as_str);
                let mut random = Random::new(index as u64);
                let shape = desc.layout.shape();
                let values = self.values(name, desc.dtype, shape, fill, &mut random)?;
                let tensor = repeat(desc.dtype, shape, &values);
                let tensor = tensor.map_err(|error| error.within(name).within(&self.name))?;
                inputs.insert(name.clone(), tensor);
            }
        }
        let op = kind
            .parse(&signature)
            .map_err(|error| error.within(&self.name))?;
        kind.check_values(&*op, &inputs)
            .map_err(|error| error.within(&self.name))?;
        let request = Request {
            op: self.op.clone(),
            inputs,
            attrs: self.attrs.clone(),
        };
        Ok((request, op))
    }

    fn values(
        &self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        fill: Option<&str>,
        random: &mut Random,
    ) -> Result<Vec<f64>> {
        let elements: u64 = shape.iter().product();
        let Some(fill) = fill else {
            let scale = if dtype.is_float() { 1.0 } else { 100.0 };
            let values = (0..elements.min(DISTINCT)).map(|_| (random.unit() * 2.0 - 1.0) * scale);
            return Ok(values.collect());
        };
        let (word, number) = fill.split_once(' ').unwrap_or((fill, "0"));
        // Of I32: neither a value nor the number of them is larger, so that no product below overflows.
        let fits = |number: &u64| *number <= i32::MAX as u64;
        let number: u64 = number
            .parse()
            .ok()
            .filter(fits)
            .ok_or_else(|| self.wrong(name, fill, "a number below 2³¹"))?;
        if !fits(&elements) {
            let found = format!("{shape:?}");
            return Err(self.wrong(name, &found, "fewer than 2³¹ elements"));
        }
        Ok(match word {
            "constant" => vec![number as f64; elements as usize],
            "rows" => {
                let experts = elements.saturating_sub(1).max(1);
                (0..elements)
                    .map(|e| (e * number / experts) as f64)
                    .collect()
            }
            // Pairs of experts: the first of each goes empty.
            "skewed" => {
                let pairs = (elements / 2).max(1);
                let last = elements.saturating_sub(1).max(1);
                let offset = |e| {
                    if e == last {
                        number
                    } else {
                        e / 2 * number / pairs
                    }
                };
                (0..elements).map(|e| offset(e) as f64).collect()
            }
            "ragged" => (0..elements)
                .map(|e| {
                    if e == 0 {
                        0.0
                    } else {
                        random.below(number + 1) as f64
                    }
                })
                .collect(),
            "steps" => (0..elements).map(|step| (step * number) as f64).collect(),
            "permutation" => shuffled(elements, random),
            "distinct" => {
                let row = shape.last().copied().unwrap_or(1);
                let rows = (0..elements / row.max(1)).flat_map(|_| {
                    let mut ids = shuffled(number, random);
                    ids.truncate(row as usize);
                    ids
                });
                rows.collect()
            }
            _ => {
                return Err(self.wrong(
                    name,
                    fill,
                    "constant, rows, skewed, ragged, steps, distinct or permutation",
                ));
            }
        })
    }
}

fn shuffled(count: u64, random: &mut Random) -> Vec<f64> {
    let mut values: Vec<f64> = (0..count).map(|value| value as f64).collect();
    for last in (1..values.len()).rev() {
        values.swap(last, random.below(last as u64 + 1) as usize);
    }
    values
}

/// A tensor of these values, over and over.
fn repeat(dtype: DType, shape: &[u64], values: &[f64]) -> Result<HostTensor> {
    let block = HostTensor::from_f64(dtype, &[values.len() as u64], values)?.data;
    let bytes = TensorDesc::contiguous(dtype, shape)?.span_bytes()?;
    let too_large = || Error::new(ErrorKind::OutOfMemory, format!("{bytes} bytes on the host"));
    let bytes = usize::try_from(bytes).map_err(|_| too_large())?;
    let mut data = Vec::new();
    data.try_reserve_exact(bytes).map_err(|_| too_large())?;
    data.extend(block.iter().copied().cycle().take(bytes));
    HostTensor::new(dtype, shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_that_are_held_out_can_be_planned() {
        let definition = Definition::parse(include_str!("tune/held_out.toml")).unwrap();
        let mut shapes: Vec<_> = definition.workloads.iter().map(|w| &w.tensors).collect();
        shapes.dedup();
        assert_eq!(shapes.len(), 19);
        for workload in &definition.workloads {
            assert!(workload.op("F32").is_ok(), "{}", workload.name);
        }
    }

    #[test]
    fn what_comes_with_the_program_can_be_read_and_checked() {
        let mut names = std::collections::BTreeSet::new();
        for (file, text) in BUILT_IN.into_iter().chain([("model_layers", MODEL_LAYERS)]) {
            let definition =
                Definition::parse(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(
                definition.about.len() > 100,
                "{file}: a paragraph says what it is for"
            );
            for workload in definition.workloads {
                assert!(
                    names.insert(workload.name.clone()),
                    "{}: twice",
                    workload.name
                );
                for dtype in &workload.dtypes {
                    // Ids and offsets alone: they are what can be out of range.
                    let made = workload.request_of(dtype, |dtype| dtype == DType::I32);
                    let unsupported = |error: &Error| error.kind() == ErrorKind::Unsupported;
                    assert!(
                        made.as_ref().err().is_none_or(unsupported),
                        "{:?}",
                        made.err()
                    );
                }
            }
        }
    }

    #[test]
    fn what_no_host_can_hold_is_an_error_with_its_name() {
        let text = |x: &str, ids: &str, fill: &str| {
            format!(
                "about = \"\"
                [[workload]]
                name = \"scatter\"
                op = \"expert_scatter\"
                dtypes = [\"F32\"]
                tensors = {{ x = \"T {x}\", topk_ids = \"I32 {ids}\" }}
                attrs = {{ experts = 4 }}
                fill = {{ topk_ids = \"{fill}\" }}
                limit = \"copy\""
            )
        };
        for (x, ids, fill, named) in [
            ("9 1000000000000000", "9 3", "distinct 4", "x"),
            ("9 9", "9 3", "distinct 9999999999999", "topk_ids"),
            ("9 9", "9 3", "steps 18446744073709551615", "topk_ids"),
            ("3000000000 1", "3000000000 1", "constant 1", "topk_ids"),
            (
                "18446744073709551615 18446744073709551615",
                "9 3",
                "distinct 4",
                "18446744073709551615",
            ),
        ] {
            let workloads = Definition::parse(&text(x, ids, fill)).unwrap().workloads;
            let Err(error) = workloads[0].request("F32") else {
                panic!("{x}, {ids}, {fill}")
            };
            assert!(
                error.to_string().contains(named),
                "{x}, {ids}, {fill}: {error}"
            );
        }
    }

    #[test]
    fn rows_of_distinct_ids_hold_no_id_twice() {
        let text = r#"about = ""
            [[workload]]
            name = "scatter"
            op = "expert_scatter"
            dtypes = ["F32"]
            tensors = { x = "T 9 4", topk_ids = "I32 9 3" }
            attrs = { experts = 4 }
            fill = { topk_ids = "distinct 4" }
            limit = "copy""#;
        let (request, _) = Definition::parse(text).unwrap().workloads[0]
            .request("F32")
            .unwrap();
        for row in request.inputs["topk_ids"].to_i32().unwrap().chunks(3) {
            assert!(
                row[0] != row[1] && row[1] != row[2] && row[0] != row[2],
                "{row:?}"
            );
        }
    }
}
