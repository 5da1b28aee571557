//! Source and configuration to module. Nothing is compiled, but an entry must be there.

use std::any::Any;
use std::sync::Arc;

use ropeway_core::device::{Function, FunctionInfo, Module};
use ropeway_core::kernel::{Code, Config, Source};
use ropeway_core::{Error, Result};

use super::device::Shared;
use super::recording::Call;

pub(super) fn compile(
    shared: &Arc<Shared>,
    source: &'static Source,
    config: &Config,
) -> Result<Arc<dyn Module>> {
    if !shared.info.languages.contains(&source.language) {
        return Err(Error::unsupported(format!(
            "{:?} on the null device",
            source.language
        )));
    }
    shared.recording.add(|| Call::Compile {
        language: source.language,
        config: config.to_string(),
    });
    Ok(Arc::new(NullModule {
        shared: shared.clone(),
        source,
        config: config.clone(),
    }))
}

struct NullModule {
    shared: Arc<Shared>,
    source: &'static Source,
    config: Config,
}

impl Module for NullModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>> {
        let there = match self.source.code {
            Code::Text(pieces) => pieces.iter().any(|(_, text)| defines(text, entry)),
            // A binary's entries are known to its own driver only.
            Code::Binary(_) => true,
            Code::Binaries(_) => self.source.binary(entry, &self.config).map(|_| true)?,
            Code::Native(_) => false,
        };
        if !there {
            return Err(Error::invalid("entry", entry, "a function of the source"));
        }
        Ok(Arc::new(NullFunction {
            shared: self.shared.clone(),
            entry: entry.to_owned(),
        }))
    }
}

/// Whether a text has the word `entry` followed by a bracket, as every language here writes a function.
fn defines(text: &str, entry: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(entry).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + entry.len()..]);
        !before.ends_with(word) && after.trim_start().starts_with('(')
    })
}

/// An entry point.
pub(super) struct NullFunction {
    pub(super) shared: Arc<Shared>,
    pub(super) entry: String,
}

impl Function for NullFunction {
    fn info(&self) -> FunctionInfo {
        FunctionInfo {
            max_group_size: Some(self.shared.info.limits.max_group_size),
            ..FunctionInfo::default()
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::defines;

    #[test]
    fn finds_whole_words_before_a_bracket() {
        let text = "__kernel void gemm_tiled (__global float* x) { gemm; }";
        assert!(defines(text, "gemm_tiled"));
        assert!(!defines(text, "tiled") && !defines(text, "gemm") && !defines(text, "x"));
    }
}
