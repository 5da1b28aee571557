//! Failures on demand.
//!
//! A list, separated by commas, comes from the environment or from [`set`](Faults::set) (exported as `ropeway_emulated_cann_set_fault`),
//! which also starts the counts anew:
//!
//! | fault | effect |
//! |---|---|
//! | `NAME:n=CODE` | the n-th call of the function NAME fails with this code and has no effect; `n` may be left out (1), and the code (507899) |
//! | `*:n=CODE` | the n-th call of any function does |
//! | `compile:n` | the n-th compilation fails, with a log |
//! | `aicore:n`, `vector:n` | the n-th launch meets 507015 or 507035, which shows when its stream is synchronised |
//! | `timeout:n` | the n-th launch meets 507014, likewise |
//! | `stall:n=MS` | the n-th piece of work of any stream begins so many milliseconds late |

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::lock;
use super::status::{self, Status};

#[derive(Debug, Default)]
struct Counts {
    /// What fails at which turn, and with which number.
    list: Vec<(String, u64, i64)>,
    counts: HashMap<String, u64>,
}

/// Faults on demand of a process.
#[derive(Debug)]
pub struct Faults(Mutex<Counts>);

fn parse(list: &str) -> Option<Vec<(String, u64, i64)>> {
    let entry = |text: &str| {
        let (what, value) = match text.split_once('=') {
            Some((what, value)) => (what, Some(value.trim().parse().ok()?)),
            None => (text, None),
        };
        let (name, turn) = match what.split_once(':') {
            Some((name, turn)) => (name, turn.trim().parse().ok()?),
            None => (what, 1),
        };
        let name = name.trim();
        let of_call = name == "*" || name.starts_with("acl");
        let known = of_call || ["compile", "aicore", "vector", "timeout", "stall"].contains(&name);
        if !known || (value.is_some() && !of_call && name != "stall") {
            return None;
        }
        Some((
            name.to_owned(),
            turn,
            value.unwrap_or(i64::from(status::DRIVER.0)),
        ))
    };
    list.split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(entry)
        .collect()
}

impl Faults {
    /// Faults by the environment.
    pub fn new(list: &str) -> Faults {
        let faults = Faults(Mutex::default());
        if !faults.set(list) {
            eprintln!(
                "emulated CANN: ROPEWAY_EMULATED_CANN_FAULT={list} is not understood, and ignored"
            );
        }
        faults
    }

    /// Replaces the list and starts counting anew; false if the list is not understood, and then there are none.
    pub fn set(&self, list: &str) -> bool {
        let list = parse(list);
        let understood = list.is_some();
        *lock(&self.0) = Counts {
            list: list.unwrap_or_default(),
            ..Counts::default()
        };
        understood
    }

    /// Counts something that has a name; gives what goes with it if it shall fail now.
    fn count(&self, name: &str) -> Option<i64> {
        let mut counts = lock(&self.0);
        let now = counts.counts.entry(name.to_owned()).or_default();
        *now += 1;
        let now = *now;
        let found = counts
            .list
            .iter()
            .find(|(known, turn, _)| known == name && *turn == now);
        found.map(|(_, _, value)| *value)
    }

    /// How often a function was called since the list was set; of `*`, all functions together.
    pub fn calls(&self, name: &str) -> u64 {
        lock(&self.0).counts.get(name).copied().unwrap_or(0)
    }

    /// Counts a call; gives what it shall fail with.
    pub fn call(&self, name: &str) -> Option<Status> {
        let any = self.count("*");
        let own = self.count(name);
        own.or(any).map(|code| Status(code as i32))
    }

    /// Counts a compilation; whether it shall fail.
    pub fn compilation(&self) -> bool {
        self.count("compile").is_some()
    }

    /// Counts a launch; gives what it shall meet.
    pub fn launch(&self) -> Option<Status> {
        let kinds = [
            ("aicore", status::AICORE_EXCEPTION),
            ("vector", status::VECTOR_EXCEPTION),
            ("timeout", status::AICORE_TIMEOUT),
        ];
        let mut met = None;
        for (name, status) in kinds {
            if self.count(name).is_some() {
                met = Some(status);
            }
        }
        met
    }

    /// Counts a piece of work; gives by how much it is late.
    pub fn stall(&self) -> Option<Duration> {
        self.count("stall")
            .map(|late| Duration::from_millis(late.max(0) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_at_their_turn() {
        let faults = Faults::new("");
        assert!(faults.set("aclrtMalloc:2=207001, aicore:1, stall:1=5,compile"));
        assert_eq!(faults.call("aclrtMalloc"), None);
        assert_eq!(faults.call("aclrtFree"), None);
        assert_eq!(faults.call("aclrtMalloc"), Some(status::OUT_OF_MEMORY));
        assert_eq!(faults.call("aclrtMalloc"), None);
        assert_eq!((faults.calls("aclrtMalloc"), faults.calls("*")), (3, 4));
        assert_eq!(faults.launch(), Some(status::AICORE_EXCEPTION));
        assert_eq!(faults.launch(), None);
        assert_eq!(faults.stall(), Some(Duration::from_millis(5)));
        assert!(faults.compilation() && !faults.compilation());
        assert!(faults.set("*:2"));
        assert_eq!(faults.call("aclInit"), None);
        assert_eq!(faults.call("aclrtFree"), Some(status::DRIVER));
        for wrong in ["nonsense", "aclrtFree:x", "aicore:1=5", "aclrtFree=high"] {
            assert!(!faults.set(wrong), "{wrong}");
        }
    }
}
