//! What is appended to a source: for each kernel a function that takes its arguments as bytes, and the tables that name them.
//!
//! The layout of the arguments is left to the compiler: it is that of a structure with the kernel's parameters.

use std::fmt::Write;

/// A kernel's declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name, perhaps one of a macro.
    pub name: String,
    /// The types of its parameters.
    pub parameters: Vec<String>,
}

/// The kernels of a source: each `extern "C" __global__ __aicore__ void NAME(…)`.
///
/// # Errors
/// A parameter that cannot be understood.
pub fn kernels(source: &str) -> Result<Vec<Kernel>, String> {
    let tokens = tokens(source);
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut at = 0;
    while let Some(found) = tokens[at..].iter().position(|token| token == "__global__") {
        at += found + 1;
        let before = at.saturating_sub(3);
        if tokens[before..at - 1] != ["extern", "\"C\""] {
            continue;
        }
        if tokens.get(at).map(String::as_str) != Some("__aicore__")
            || tokens.get(at + 1).map(String::as_str) != Some("void")
            || tokens.get(at + 3).map(String::as_str) != Some("(")
        {
            continue;
        }
        let name = tokens[at + 2].clone();
        at += 4;
        let mut depth = 1;
        let mut list = vec![Vec::new()];
        while depth > 0 {
            let Some(token) = tokens.get(at) else {
                return Err(format!("the parameters of kernel {name} do not end"));
            };
            at += 1;
            match token.as_str() {
                "(" | "[" | "<" | "{" => depth += 1,
                ")" | "]" | ">" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 1 && token == "," {
                list.push(Vec::new());
            } else if depth > 0
                && let Some(last) = list.last_mut()
            {
                last.push(token.clone());
            }
        }
        // A declaration ahead of the definition.
        if kernels.iter().any(|known| known.name == name) {
            continue;
        }
        if list.len() == 1 && (list[0].is_empty() || list[0] == ["void"]) {
            list.clear();
        }
        let parameters = list
            .iter()
            .enumerate()
            .map(|(index, tokens)| {
                parameter(tokens).ok_or_else(|| {
                    format!("parameter {index} of kernel {name}: {}", tokens.join(" "))
                })
            })
            .collect::<Result<_, _>>()?;
        kernels.push(Kernel { name, parameters });
    }
    Ok(kernels)
}

/// The type of a parameter, which is a type and a name.
fn parameter(tokens: &[String]) -> Option<String> {
    let (name, ty) = tokens.split_last()?;
    let is_word = |token: &str| token.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let named = is_word(name) && ty.iter().any(|token| is_word(token) && token != "const");
    named.then(|| ty.join(" "))
}

/// Words, and other characters one by one, without comments; literals are kept whole.
fn tokens(source: &str) -> Vec<String> {
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
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        if !first.is_whitespace() && !token.starts_with("//") && !token.starts_with("/*") {
            tokens.push(token.to_owned());
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
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            // A separator of digits, or text that is no C++: it ends with its line.
            '\n' => return at,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The text to append.
pub fn text(kernels: &[Kernel]) -> String {
    let mut text = String::from(
        "#line 1 \"what the run-time compiler adds\"
#include \"ropeway_runtime.h\"
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#define ROPEWAY_TEXT_OF(name) #name
#define ROPEWAY_TEXT(name) ROPEWAY_TEXT_OF(name)
namespace {
struct ropeway_parameter_entry { const char *kernel; std::uint32_t index, offset, bytes; };
",
    );
    let mut table = String::new();
    let mut parameters = String::new();
    for (number, kernel) in kernels.iter().enumerate() {
        let Kernel {
            name,
            parameters: types,
        } = kernel;
        let arguments = format!("ropeway_arguments_{number}");
        let _ = writeln!(text, "struct {arguments} {{");
        for (index, ty) in types.iter().enumerate() {
            let _ = writeln!(text, "    std::remove_cv_t<{ty}> p{index};");
        }
        let bytes = match types.len().checked_sub(1) {
            Some(last) => format!("offsetof({arguments}, p{last}) + sizeof({arguments}::p{last})"),
            None => "0".into(),
        };
        let list: Vec<String> = (0..types.len())
            .map(|index| format!("arguments.p{index}"))
            .collect();
        let _ = writeln!(
            text,
            "}};
constexpr std::size_t {arguments}_bytes = {bytes};
void ropeway_thunk_{number}(const void *bytes) {{
    {arguments} arguments{{}};
    std::memcpy(&arguments, bytes, {arguments}_bytes);
    {name}({});
}}",
            list.join(", ")
        );
        let _ = writeln!(
            table,
            "    {{ROPEWAY_TEXT({name}), ropeway_thunk_{number}, {arguments}_bytes}},"
        );
        // A kernel without parameters is in the table, too.
        let _ = writeln!(
            parameters,
            "    {{ROPEWAY_TEXT({name}), UINT32_MAX, 0, 0}},"
        );
        for index in 0..types.len() {
            let _ = writeln!(
                parameters,
                "    {{ROPEWAY_TEXT({name}), {index}, offsetof({arguments}, p{index}), sizeof({arguments}::p{index})}},"
            );
        }
    }
    let _ = write!(
        text,
        "const ropeway_parameter_entry ropeway_parameters[] = {{
{parameters}    {{nullptr, 0, 0, 0}},
}};
}}
extern const ropeway_kernel ropeway_kernels[];
const ropeway_kernel ropeway_kernels[] = {{
{table}    {{nullptr, nullptr, 0}},
}};
extern \"C\" __attribute__((visibility(\"default\"))) int ropeway_parameter(
    const char *kernel, std::uint32_t index, std::uint32_t *offset, std::uint32_t *bytes) {{
    int found = 2;
    for (const ropeway_parameter_entry *entry = ropeway_parameters; entry->kernel; ++entry) {{
        if (std::strcmp(entry->kernel, kernel) != 0) continue;
        found = 1;
        if (entry->index != index) continue;
        *offset = entry->offset;
        *bytes = entry->bytes;
        return 0;
    }}
    return found;
}}
"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_among_other_text() {
        let source = r#"
            // extern "C" __global__ __aicore__ void commented(GM_ADDR a) {}
            /* extern "C" __global__ __aicore__ void commented_too(GM_ADDR a) {} */
            const char *text = "extern \"C\" __global__ __aicore__ void quoted(GM_ADDR a)";
            __global__ __aicore__ void mangled(GM_ADDR a) {}
            extern "C" __global__ __aicore__ void declared(GM_ADDR a, uint32_t n);
            extern "C" __global__ __aicore__ void
            declared(GM_ADDR a, // the input
                     const uint32_t n, __gm__ uint8_t *out, std::array<int, 2> pair) {}
            extern "C" __global__ __aicore__ void empty() {}
            extern "C" __global__ __aicore__ void nothing(void) {}
        "#;
        let found = kernels(source).unwrap();
        let names: Vec<&str> = found.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(names, ["declared", "empty", "nothing"]);
        assert_eq!(found[0].parameters, ["GM_ADDR", "uint32_t"]);
        assert!(found[1].parameters.is_empty() && found[2].parameters.is_empty());
    }

    #[test]
    fn types_are_all_but_the_name() {
        let source = "extern \"C\" __global__ __aicore__ void k(__gm__ uint8_t *a, const uint32_t n, std::array<int, 2> pair) {}";
        let found = kernels(source).unwrap();
        assert_eq!(
            found[0].parameters,
            [
                "__gm__ uint8_t *",
                "const uint32_t",
                "std :: array < int , 2 >"
            ]
        );
    }

    #[test]
    fn parameters_without_names_are_refused() {
        for list in ["GM_ADDR", "GM_ADDR a, uint32_t", "const n", "uint32_t n[4]"] {
            let source = format!("extern \"C\" __global__ __aicore__ void k({list}) {{}}");
            assert!(kernels(&source).unwrap_err().contains("kernel k"), "{list}");
        }
    }
}
