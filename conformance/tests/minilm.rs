//! A real network against the reference: all-MiniLM-L6-v2 as `examples/minilm` runs it, on every device, beside a forward pass of
//! plain loops in f64.
//!
//! How far the two may lie apart: no bound is derived through six layers of norms and softmax. The yardstick is measured
//! instead: the same plain loops in f32 have an error of their own against f64, and a device may have twice that (a device sums in
//! another order, and its erf and exp are not those of the host). Beside it 1 − cosine may be 1e-10, which is the square of
//! an error of 1.4e-5 in a vector of length 1.

#[path = "../../runtime/examples/minilm/network.rs"]
mod network;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use network::{Minilm, Weights, model_directory};
use ropeway::Registry;
use ropeway::prelude::*;
use ropeway_core::info::Execution;

const SENTENCES: [&str; 6] = [
    "This is an example sentence",
    "Each sentence is converted",
    "A cable car climbs the mountain.",
    "Soup",
    "",
    "Die Seilbahn trägt hundert Menschen den Berg hinauf, an einem Seil aus Stahl, und niemand fragt, wie viele Drähte es hat; \
     unten im Tal steht ein Motor, oben steht ein Rad, dazwischen hängt alles an der Physik und an der Sorgfalt derer, \
     die jeden Morgen prüfen, ob das Seil noch hält.",
];

/// Begin of the embedding of the first sentence as the model's publisher prints it (sentence-transformers, in f32).
const PUBLISHED: [f64; 5] = [
    6.765_69e-2,
    6.349_59e-2,
    4.871_31e-2,
    7.930_49e-2,
    3.744_80e-2,
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let Some(directory) = model_directory() else {
        let skipped = || {
            Ok(Completion::ignored_with(
                "no model: ./test.sh fetches it, or set ROPEWAY_MINILM to a directory that holds it",
            ))
        };
        let trials = vec![Trial::ignorable_test("minilm", skipped)];
        return libtest_mimic::run(&arguments, trials).exit_code();
    };
    let weights = Arc::new(Weights::load(&directory).expect("the model can be read"));
    let mut trials = vec![Trial::test(
        "the_reference_gives_the_published_embedding",
        {
            let (weights, directory) = (Arc::clone(&weights), directory.clone());
            move || published(&weights, &directory)
        },
    )];
    let registry = Registry::default();
    for info in registry
        .probe()
        .into_iter()
        .filter_map(|probe| probe.devices.ok())
        .flatten()
    {
        let selector = info.selector();
        let name = format!("{selector}::embeddings");
        if info.execution == Execution::Recorded {
            let skipped = || Ok(Completion::ignored_with("the device computes nothing"));
            trials.push(Trial::ignorable_test(name, skipped));
            continue;
        }
        let (weights, directory) = (Arc::clone(&weights), directory.clone());
        trials.push(Trial::ignorable_test(name, move || {
            let session = Session::new(Registry::default().open(&selector)?)?;
            match Minilm::load(session, &directory) {
                // The expectations say which devices may.
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    Ok(Completion::ignored_with(error.context().to_owned()))
                }
                network => embeddings(&weights, network?).map(|()| Completion::Completed),
            }
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn sentences() -> Vec<String> {
    SENTENCES.map(String::from).into()
}

fn published(weights: &Weights, directory: &std::path::Path) -> Result<(), Failed> {
    let session = Session::new(Registry::default().open("cpu")?)?;
    let tokens = Minilm::load(session, directory)?.tokenize(&sentences())?;
    let found = forward::<f64>(weights, &tokens[0])?;
    for (found, published) in found.iter().zip(PUBLISHED) {
        // Printed to six digits, from f32 arithmetic.
        if (found - published).abs() > 5e-7 {
            return Err(format!("{found}, published is {published}").into());
        }
    }
    Ok(())
}

fn embeddings(weights: &Weights, network: Minilm) -> Result<(), Failed> {
    let tokens = network.tokenize(&sentences())?;
    // All together, then one by one: other row counts through the same plans.
    let together = network.embed(&tokens)?;
    let mut worst = (0.0f64, 0.0f64);
    for (number, sentence) in tokens.iter().enumerate() {
        let exact = forward::<f64>(weights, sentence)?;
        let plain: Vec<f64> = forward::<f32>(weights, sentence)?
            .into_iter()
            .map(f64::from)
            .collect();
        let bound = 2.0 * distance(&plain, &exact);
        let alone = network.embed(std::slice::from_ref(sentence))?;
        for found in [&together[number], &alone[0]] {
            let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
            let error = distance(&found, &exact);
            let angle = 1.0 - cosine(&found, &exact);
            worst = (worst.0.max(error / bound), worst.1.max(angle));
            let held = error <= bound && angle <= 1e-10;
            if !held {
                let sentence = SENTENCES[number];
                return Err(format!(
                    "{sentence:?}: error {error:e}, bound {bound:e}, 1 - cosine {angle:e}"
                )
                .into());
            }
        }
    }
    eprintln!(
        "greatest error / bound {:.3}, greatest 1 - cosine {:.1e}",
        worst.0, worst.1
    );
    Ok(())
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The arithmetic that the plain forward pass needs, in f32 or f64.
trait Real:
    Copy
    + From<f32>
    + PartialOrd
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    fn erf(self) -> Self;
}

impl Real for f32 {
    fn exp(self) -> f32 {
        f32::exp(self)
    }
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn erf(self) -> f32 {
        libm::erff(self)
    }
}

impl Real for f64 {
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn erf(self) -> f64 {
        libm::erf(self)
    }
}

const HEADS: usize = 12;
const HEAD_DIM: usize = 32;

type Rows<T> = Vec<Vec<T>>;

/// One sentence through the network, row by row as the papers write it. Norms and pooling too are of type `T`.
fn forward<T: Real>(weights: &Weights, ids: &[u32]) -> Result<Vec<T>> {
    let embedding = |name: &str| tensor::<T>(weights, &format!("embeddings.{name}"));
    let word = embedding("word_embeddings.weight")?;
    let position = embedding("position_embeddings.weight")?;
    let kind = embedding("token_type_embeddings.weight")?;
    let width = HEADS * HEAD_DIM;
    let row = |ids: &[T], index: usize| ids[index * width..(index + 1) * width].to_vec();
    let mut x: Rows<T> = ids
        .iter()
        .enumerate()
        .map(|(place, &id)| {
            add(
                &add(&row(&word, id as usize), &row(&position, place)),
                &row(&kind, 0),
            )
        })
        .collect();
    x = norm(weights, "embeddings.LayerNorm", &x)?;
    for layer in 0..6 {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let q = linear(weights, &name("attention.self.query"), &x)?;
        let k = linear(weights, &name("attention.self.key"), &x)?;
        let v = linear(weights, &name("attention.self.value"), &x)?;
        let context = attention(&q, &k, &v);
        let out = linear(weights, &name("attention.output.dense"), &context)?;
        let h = norm(
            weights,
            &name("attention.output.LayerNorm"),
            &add_rows(&out, &x),
        )?;
        let mut up = linear(weights, &name("intermediate.dense"), &h)?;
        for value in up.iter_mut().flatten() {
            *value = gelu(*value);
        }
        let down = linear(weights, &name("output.dense"), &up)?;
        x = norm(weights, &name("output.LayerNorm"), &add_rows(&down, &h))?;
    }
    let pooled: Vec<T> = (0..width)
        .map(|column| x.iter().map(|row| row[column]).sum())
        .collect();
    let length = pooled.iter().map(|&x| x * x).sum::<T>().sqrt();
    Ok(pooled.into_iter().map(|x| x / length).collect())
}

fn tensor<T: Real>(weights: &Weights, name: &str) -> Result<Vec<T>> {
    Ok(weights.get(name)?.into_iter().map(T::from).collect())
}

fn add<T: Real>(a: &[T], b: &[T]) -> Vec<T> {
    a.iter().zip(b).map(|(&a, &b)| a + b).collect()
}

fn add_rows<T: Real>(a: &Rows<T>, b: &Rows<T>) -> Rows<T> {
    a.iter().zip(b).map(|(a, b)| add(a, b)).collect()
}

/// y[i] = sum over j of x[j] W[i, j] + b[i]
fn linear<T: Real>(weights: &Weights, name: &str, x: &Rows<T>) -> Result<Rows<T>> {
    let weight = tensor::<T>(weights, &format!("{name}.weight"))?;
    let bias = tensor::<T>(weights, &format!("{name}.bias"))?;
    let inner = weight.len() / bias.len();
    let project = |row: &Vec<T>| {
        let outputs = weight.chunks(inner).zip(&bias);
        let dot = |w: &[T]| w.iter().zip(row).map(|(&w, &x)| w * x).sum::<T>();
        outputs.map(|(w, &b)| dot(w) + b).collect()
    };
    Ok(x.iter().map(project).collect())
}

fn norm<T: Real>(weights: &Weights, name: &str, x: &Rows<T>) -> Result<Rows<T>> {
    let weight = tensor::<T>(weights, &format!("{name}.weight"))?;
    let bias = tensor::<T>(weights, &format!("{name}.bias"))?;
    let normalise = |row: &Vec<T>| {
        let count = T::from(row.len() as f32);
        let mean = row.iter().copied().sum::<T>() / count;
        let variance = row.iter().map(|&x| (x - mean) * (x - mean)).sum::<T>() / count;
        let scale = T::from(1.0) / (variance + T::from(1e-12)).sqrt();
        let scaled = row.iter().zip(&weight).zip(&bias);
        scaled
            .map(|((&x, &w), &b)| (x - mean) * scale * w + b)
            .collect()
    };
    Ok(x.iter().map(normalise).collect())
}

/// softmax(q kᵀ / √d) v, head by head
fn attention<T: Real>(q: &Rows<T>, k: &Rows<T>, v: &Rows<T>) -> Rows<T> {
    let scale = T::from(1.0) / T::from(HEAD_DIM as f32).sqrt();
    let attend = |query: &Vec<T>| {
        let mut context = Vec::new();
        for head in 0..HEADS {
            let part = head * HEAD_DIM..(head + 1) * HEAD_DIM;
            let dot = |key: &Vec<T>| {
                let products = query[part.clone()].iter().zip(&key[part.clone()]);
                products.map(|(&q, &k)| q * k).sum::<T>() * scale
            };
            let scores: Vec<T> = k.iter().map(dot).collect();
            let most = scores
                .iter()
                .copied()
                .fold(scores[0], |a, b| if b > a { b } else { a });
            let weights: Vec<T> = scores.iter().map(|&score| (score - most).exp()).collect();
            let total = weights.iter().copied().sum::<T>();
            context.extend(part.map(|column| {
                let weighed = weights
                    .iter()
                    .zip(v)
                    .map(|(&weight, value)| weight * value[column]);
                weighed.sum::<T>() / total
            }));
        }
        context
    };
    q.iter().map(attend).collect()
}

/// x/2 · (1 + erf(x / √2))
fn gelu<T: Real>(x: T) -> T {
    x * T::from(0.5) * (T::from(1.0) + (x / T::from(2.0).sqrt()).erf())
}
