//! What a backend is known not to do, and why: `expectations/<backend>.toml`.
//!
//! Two lists. A case under `[[unsupported]]` must be skipped, with a reason that contains `says`. A case under
//! `[[expected_failure]]` must fail. Each entry has a `reason` for the reader. The lists are held to their word in both directions: a case
//! that passes although it is listed fails; a case that is skipped although no entry says so fails; an entry that matches no case fails.
//! So an op cannot silently fall out of the suite, and a list cannot rot.

use std::collections::BTreeSet;

use ropeway_core::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::verdict::Verdict;

/// The lists that ship with the suite, by backend.
const SHIPPED: &[(&str, &str)] = &[
    ("cpu", include_str!("cpu.toml")),
    ("null", include_str!("null.toml")),
    ("cuda", include_str!("cuda.toml")),
    ("opencl", include_str!("opencl.toml")),
    ("vulkan", include_str!("vulkan.toml")),
    ("ascend", include_str!("ascend.toml")),
];

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// A case's id, in which `*` stands for anything.
    case: String,
    /// Part of the reason with which the case is skipped; empty for failures.
    #[serde(default)]
    says: String,
    /// Only on devices in whose name this occurs.
    #[serde(default)]
    device: String,
    /// Why this is so.
    reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    #[serde(default)]
    unsupported: Vec<Entry>,
    #[serde(default)]
    expected_failure: Vec<Entry>,
}

/// The lists of one device.
#[derive(Clone, Debug)]
pub struct Expectations {
    lists: Lists,
    /// Without lists of its own a backend may skip what it likes: its authors have not written any yet.
    strict: bool,
}

/// What a verdict becomes in the light of the lists.
#[derive(Clone, Debug, PartialEq)]
pub enum Judged {
    /// It counts as it is.
    AsIs(Verdict),
    /// It failed, as it must; the reason.
    ExpectedFailure(String),
}

impl Expectations {
    /// The shipped lists of a backend for a device of this name; empty ones for a backend that has none.
    ///
    /// # Errors
    /// `File` if the lists do not parse.
    pub fn of(backend: &str, device: &str) -> Result<Expectations> {
        match SHIPPED.iter().find(|(name, _)| *name == backend) {
            Some((_, text)) => Expectations::parse(text, device),
            None => Ok(Expectations {
                lists: Lists::default(),
                strict: false,
            }),
        }
    }

    /// Lists from their text, as far as they concern a device of this name.
    ///
    /// # Errors
    /// `File` if it is not what this page describes.
    pub fn parse(text: &str, device: &str) -> Result<Expectations> {
        let mut lists: Lists = toml::from_str(text)
            .map_err(|error| Error::new(ErrorKind::File, format!("expectations: {error}")))?;
        for entries in [&mut lists.unsupported, &mut lists.expected_failure] {
            entries.retain(|entry| device.contains(&entry.device));
        }
        Ok(Expectations {
            lists,
            strict: true,
        })
    }

    /// Holds a verdict against the lists.
    pub fn judge(&self, id: &str, verdict: Verdict) -> Judged {
        if let Some(entry) = find(&self.lists.expected_failure, id) {
            return match verdict {
                Verdict::Failed(_) => Judged::ExpectedFailure(entry.reason.clone()),
                Verdict::Passed(_) => unexpected(format!(
                    "passed, although it is listed as an expected failure: {}",
                    entry.reason
                )),
                skipped => Judged::AsIs(skipped),
            };
        }
        match verdict {
            Verdict::Skipped(said) => {
                let listed = self
                    .lists
                    .unsupported
                    .iter()
                    .any(|entry| glob(&entry.case, id) && said.contains(&entry.says));
                match listed || !self.strict {
                    true => Judged::AsIs(Verdict::Skipped(said)),
                    false => unexpected(format!(
                        "skipped ({said}), and no entry of the expectations says so"
                    )),
                }
            }
            // An entry with `says` speaks of some cases under its pattern only.
            Verdict::Passed(_) => match find(&self.lists.unsupported, id) {
                Some(entry) if entry.says.is_empty() => unexpected(format!(
                    "passed, although it is listed as unsupported: {}",
                    entry.reason
                )),
                _ => Judged::AsIs(verdict),
            },
            failed => Judged::AsIs(failed),
        }
    }

    /// Entries that none of these ids, each with the reason it was skipped for (if it was), matches.
    pub fn unmatched<'a>(
        &self,
        cases: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Vec<String> {
        let mut matched = BTreeSet::new();
        for (id, said) in cases {
            for (number, entry) in self.entries().enumerate() {
                if glob(&entry.case, id) && said.unwrap_or_default().contains(&entry.says) {
                    matched.insert(number);
                }
            }
        }
        self.entries()
            .enumerate()
            .filter(|(number, _)| !matched.contains(number))
            .map(|(_, entry)| match entry.says.as_str() {
                "" => format!("{:?} matches no case", entry.case),
                says => format!("{:?} with {says:?} matches no skipped case", entry.case),
            })
            .collect()
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lists
            .unsupported
            .iter()
            .chain(&self.lists.expected_failure)
    }
}

fn unexpected(finding: String) -> Judged {
    Judged::AsIs(Verdict::Failed(vec![finding]))
}

fn find<'a>(entries: &'a [Entry], id: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| glob(&entry.case, id))
}

/// Whether `text` is `pattern`, in which `*` stands for anything.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| &rest[at..])
                .chain([""])
                .any(|rest| glob(tail, rest))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Pass;

    const TEXT: &str = r#"
        [[unsupported]]
        case = "gemm/*"
        says = "f8"
        reason = "f8 has its own issue"

        [[unsupported]]
        case = "device/graphs/rebind"
        reason = "no graphs"

        [[expected_failure]]
        case = "attention/fixed/nan"
        device = "Fast"
        reason = "driver bug 17"
    "#;

    fn passed() -> Verdict {
        Verdict::Passed(Pass::default())
    }

    fn fails(judged: &Judged) -> bool {
        matches!(judged, Judged::AsIs(Verdict::Failed(_)))
    }

    #[test]
    fn a_skip_must_be_listed_with_its_reason() {
        let lists = Expectations::parse(TEXT, "Fast").unwrap();
        let skip = |id: &str, said: &str| lists.judge(id, Verdict::Skipped(said.into()));
        assert!(!fails(&skip("gemm/fixed/a", "no f8 here")));
        assert!(fails(&skip("gemm/fixed/a", "out of luck")));
        assert!(fails(&skip("moe_route/fixed/a", "no f8 here")));
    }

    #[test]
    fn what_is_listed_may_not_pass() {
        let lists = Expectations::parse(TEXT, "Fast").unwrap();
        assert!(fails(&lists.judge("device/graphs/rebind", passed())));
        assert!(fails(&lists.judge("attention/fixed/nan", passed())));
        assert!(!fails(&lists.judge("gemm/fixed/a", passed())));
        let failed = Verdict::Failed(vec!["NaN".into()]);
        assert_eq!(
            lists.judge("attention/fixed/nan", failed.clone()),
            Judged::ExpectedFailure("driver bug 17".into())
        );
        let other = Expectations::parse(TEXT, "Slow").unwrap();
        assert!(fails(&other.judge("attention/fixed/nan", failed)));
    }

    #[test]
    fn an_entry_that_matches_nothing_is_named() {
        let lists = Expectations::parse(TEXT, "Slow").unwrap();
        let cases = [
            ("gemm/fixed/a", None),
            ("device/graphs/rebind", Some("none")),
        ];
        let unmatched = lists.unmatched(cases.into_iter());
        assert_eq!(unmatched, [r#""gemm/*" with "f8" matches no skipped case"#]);
    }

    #[test]
    fn the_shipped_lists_parse() {
        for (_, text) in SHIPPED {
            let lists = Expectations::parse(text, "").unwrap();
            assert!(lists.entries().all(|entry| !entry.reason.is_empty()));
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(glob("a/*/c", "a/b/c") && glob("*", "") && glob("a*", "a"));
        assert!(!glob("a/*/c", "a/b/d") && !glob("a", "ab") && !glob("a*b", "a"));
    }
}
