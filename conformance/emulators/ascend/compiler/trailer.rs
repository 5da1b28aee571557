//! What is appended to a source: the table of its kernels, and their parameters.
//!
//! Only the kernels' names are found here; what their parameters are, C++ says itself.

use std::fmt::Write;

/// The names of a source's kernels: each `extern "C" __global__ __aicore__ void NAME(…)`.
pub fn kernels(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut kernels: Vec<String> = Vec::new();
    for window in tokens.windows(7) {
        if let ["extern", "\"C\"", "__global__", "__aicore__", "void", name, "("] = window
            // A declaration ahead of the definition.
            && !kernels.iter().any(|known| known == name)
        {
            kernels.push((*name).to_owned());
        }
    }
    kernels
}

/// Words, and other characters one by one, without comments; literals are kept whole.
fn tokens(source: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' || first == '\'' {
            literal(rest, first)
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            end.unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        if !first.is_whitespace() && !token.starts_with("//") && !token.starts_with("/*") {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

/// The length of a literal, quotes included.
fn literal(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            // A separator of digits, or text that is no C++: it ends with its line.
            '\n' if !escaped => return at,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The text to append.
pub fn text(kernels: &[String]) -> String {
    let mut text = String::from(BEFORE);
    let entries: Vec<String> = kernels
        .iter()
        .map(|name| format!("ROPEWAY_KERNEL({name})"))
        .collect();
    let _ = writeln!(text, "ROPEWAY_KERNELS({})", entries.join(", "));
    text.push_str("int ropeway_parameter(const char *kernel, uint32_t index, uint32_t *offset, uint32_t *bytes) {\n");
    for name in kernels {
        let _ = writeln!(
            text,
            "  if (!std::strcmp(kernel, \"{name}\")) return ropeway::parameter_of(&{name}, index, offset, bytes);"
        );
    }
    text.push_str("  return 2;\n}\n");
    text
}

/// `ropeway_parameter` gives 0 and a parameter, 1 where the kernel has no such parameter, 2 where there is no such kernel.
const BEFORE: &str = r#"
#line 1 "what the run-time compiler adds"
#include "ropeway_runtime.h"
#include <cstring>
extern "C" __attribute__((visibility("default"))) int ropeway_parameter(const char *, uint32_t, uint32_t *, uint32_t *);
namespace ropeway {
template <class... Arguments>
int parameter_of(void (*)(Arguments...), uint32_t index, uint32_t *offset, uint32_t *bytes) {
  constexpr Layout<Arguments...> layout;
  constexpr size_t sizes[] = {sizeof(Arguments)..., 0};
  if (index >= sizeof...(Arguments)) return 1;
  *offset = uint32_t(layout.offsets[index]);
  *bytes = uint32_t(sizes[index]);
  return 0;
}
}  // namespace ropeway
"#;

#[cfg(test)]
mod tests {
    use super::kernels;

    #[test]
    fn kernels_are_found_among_other_text() {
        let source = r#"
            // extern "C" __global__ __aicore__ void commented(GM_ADDR a) {}
            /* extern "C" __global__ __aicore__ void commented_too(GM_ADDR a) {} */
            const char *text = "extern \"C\" __global__ __aicore__ void quoted(GM_ADDR a)";
            constexpr int separated = 1'000;
            __global__ __aicore__ void mangled(GM_ADDR a) {}
            extern "C" __global__ __aicore__ void declared(GM_ADDR a, uint32_t n);
            extern "C" __global__ __aicore__ void
            declared(GM_ADDR a, // the input
                     const uint32_t n) {}
            extern "C" __global__ __aicore__ void empty() {}
        "#;
        assert_eq!(kernels(source), ["declared", "empty"]);
    }
}
