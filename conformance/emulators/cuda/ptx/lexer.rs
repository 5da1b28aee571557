//! Splits PTX text into tokens, each with its line.

use super::Error;

/// A token of PTX.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// An identifier, directive, opcode with its modifiers, register or special register: letters, digits, `_ $ % .` and `::`.
    Word(&'a str),
    /// An integer; negative ones carry a [`Token::Mark`] `-` before them.
    Integer(u64),
    /// The bits of a single-precision literal (`0f3F800000`).
    Single(u32),
    /// The bits of a double-precision literal (`0d3FF0000000000000` or decimal).
    Double(u64),
    /// A string without its quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// A token and the line it stands on, counted from 1.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The token.
    pub token: Token<'a>,
    /// Its line.
    pub line: u32,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit()
}

/// Splits a text into tokens; comments are dropped.
///
/// # Errors
/// A comment or string that does not end, a malformed number.
pub fn tokens(text: &str) -> Result<Vec<Placed<'_>>, Error> {
    let bytes = text.as_bytes();
    let mut found = Vec::with_capacity(text.len() / 4);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let begin = at;
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            byte if byte.is_ascii_whitespace() || byte == 0 => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..]
                    .find("*/")
                    .ok_or_else(|| Error::new(line, "a comment does not end"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
            }
            b'"' => {
                let end = text[at + 1..]
                    .find('"')
                    .ok_or_else(|| Error::new(line, "a string does not end"))?;
                let content = &text[at + 1..at + 1 + end];
                found.push(Placed {
                    token: Token::Text(content),
                    line,
                });
                line += content.matches('\n').count() as u32;
                at += end + 2;
            }
            byte if byte.is_ascii_digit() => {
                while at < bytes.len() && (continues_word(bytes[at])) {
                    at += 1;
                }
                // An exponent's sign belongs to the number.
                if !text[begin..].starts_with("0x")
                    && text[begin..at].contains('.')
                    && matches!(bytes[at - 1], b'e' | b'E')
                    && matches!(bytes.get(at), Some(b'+' | b'-'))
                {
                    at += 1;
                    while at < bytes.len() && bytes[at].is_ascii_digit() {
                        at += 1;
                    }
                }
                let token = number(&text[begin..at]).ok_or_else(|| {
                    Error::new(line, format!("not a number: {}", &text[begin..at]))
                })?;
                found.push(Placed { token, line });
            }
            byte if starts_word(byte) => {
                loop {
                    while at < bytes.len() && continues_word(bytes[at]) {
                        at += 1;
                    }
                    if bytes[at..].starts_with(b"::") {
                        at += 2;
                    } else {
                        break;
                    }
                }
                found.push(Placed {
                    token: Token::Word(&text[begin..at]),
                    line,
                });
            }
            byte if byte.is_ascii() => {
                found.push(Placed {
                    token: Token::Mark(char::from(byte)),
                    line,
                });
                at += 1;
            }
            _ => return Err(Error::new(line, "a character that is not ASCII")),
        }
    }
    Ok(found)
}

fn number(text: &str) -> Option<Token<'_>> {
    let integer = |digits: &str, radix| {
        u64::from_str_radix(digits.trim_end_matches(['U', 'u']), radix)
            .ok()
            .map(Token::Integer)
    };
    let prefix = text.get(..2).unwrap_or("");
    match prefix {
        "0x" | "0X" => integer(&text[2..], 16),
        "0f" | "0F" if text.len() == 10 => {
            u32::from_str_radix(&text[2..], 16).ok().map(Token::Single)
        }
        "0d" | "0D" if text.len() == 18 => {
            u64::from_str_radix(&text[2..], 16).ok().map(Token::Double)
        }
        "0b" | "0B" => integer(&text[2..], 2),
        _ if text.contains('.') => text
            .parse::<f64>()
            .ok()
            .map(|value| Token::Double(value.to_bits())),
        _ if text.len() > 1 && text.starts_with('0') && text.as_bytes()[1].is_ascii_digit() => {
            integer(&text[1..], 8)
        }
        _ => integer(text, 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Token<'_>> {
        tokens(text)
            .unwrap()
            .into_iter()
            .map(|placed| placed.token)
            .collect()
    }

    #[test]
    fn opcodes_keep_their_modifiers() {
        assert_eq!(
            of("ld.global.L2::128B.f32 %f1, [%rd1+-4];"),
            [
                Token::Word("ld.global.L2::128B.f32"),
                Token::Word("%f1"),
                Token::Mark(','),
                Token::Mark('['),
                Token::Word("%rd1"),
                Token::Mark('+'),
                Token::Mark('-'),
                Token::Integer(4),
                Token::Mark(']'),
                Token::Mark(';'),
            ]
        );
    }

    #[test]
    fn literals() {
        assert_eq!(
            of("0f3F800000 0d3FF0000000000000 0x1F 017 0b101 7U 1.5"),
            [
                Token::Single(0x3F80_0000),
                Token::Double(1f64.to_bits()),
                Token::Integer(31),
                Token::Integer(15),
                Token::Integer(5),
                Token::Integer(7),
                Token::Double(1.5f64.to_bits()),
            ]
        );
        assert_eq!(tokens("0fxyz").unwrap_err().line, 1);
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let found = tokens("a // x\n/* y\n z */ b:\nc").unwrap();
        let lines: Vec<_> = found.iter().map(|placed| placed.line).collect();
        assert_eq!(lines, [1, 3, 3, 4]);
    }
}
