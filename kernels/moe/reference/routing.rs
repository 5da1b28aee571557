//! Which experts a row of logits chooses, which other choices are as good, and what the chosen ones weigh.
//!
//! A device computes scores in f32, so that two of them may come out in either order where they lie closer than their errors. Each score is
//! an interval here; a choice is acceptable if scores within the intervals lead to it. Experts with equal logits and biases have equal scores on
//! every device, and go by their index.

use super::super::{Routing, Score};

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// One unit in the last place of an f32, relative to it.
const ULP: f64 = 2.0 * U;
/// What flushing a subnormal can lose.
const FLUSHED: f64 = f32::MIN_POSITIVE as f64;

/// A number known up to an error.
#[derive(Clone, Copy, Debug, PartialEq)]
struct About {
    value: f64,
    error: f64,
}

impl About {
    fn exactly(value: f64) -> About {
        About { value, error: 0.0 }
    }

    /// Whether it may come out no less than another.
    fn may_reach(self, other: About) -> bool {
        self.value + self.error >= other.value - other.error
    }

    /// Whether the two are the same number on every device.
    fn ties_with(self, other: About) -> bool {
        self.value == other.value && self.error == 0.0 && other.error == 0.0
    }
}

/// An expert, as one row sees it.
#[derive(Clone, Copy, Debug)]
struct Expert {
    logit: f64,
    bias: f64,
    /// What weighs it.
    score: About,
    /// Score and bias: what groups are ranked by.
    biased: About,
    /// What it is chosen by: the logit itself for softmax without bias, else the biased score.
    rank: About,
}

impl Expert {
    /// Whether this one may be chosen before another.
    fn may_precede(&self, index: u64, other: &Expert, other_index: u64) -> bool {
        let same_inputs = self.logit == other.logit && self.bias == other.bias;
        match same_inputs || self.rank.ties_with(other.rank) {
            true => index < other_index,
            false => self.rank.may_reach(other.rank),
        }
    }
}

/// A group, as one row sees it.
#[derive(Clone, Debug)]
struct Group {
    /// Sum of its two best biased scores.
    value: About,
    /// Logits and biases of those two.
    best: Vec<(f64, f64)>,
}

impl Group {
    fn may_precede(&self, index: u64, other: &Group, other_index: u64) -> bool {
        match self.best == other.best || self.value.ties_with(other.value) {
            true => index < other_index,
            false => self.value.may_reach(other.value),
        }
    }
}

/// How a device's choice is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The reference's.
    Same,
    /// Another that the scores' errors allow.
    NearTie,
    /// Any distinct experts will do, and these are.
    Free,
    /// None that the row allows.
    Wrong,
}

/// One row of logits.
pub(super) struct Row {
    experts: Vec<Expert>,
    groups: Vec<Group>,
    routing: Routing,
    /// The scores hold NaN.
    is_nan: bool,
    /// The specification does not say how the groups rank (−∞ and ∞ in one).
    is_open: bool,
}

impl Row {
    /// Scores of all experts. `bias` is as long as `logits`, or empty for none.
    pub(super) fn new(logits: &[f64], bias: &[f64], routing: Routing) -> Row {
        let scores = match routing.score {
            Score::Softmax => softmax(logits),
            Score::Sigmoid => logits.iter().map(|&logit| sigmoid(logit)).collect(),
        };
        let experts: Vec<Expert> = scores
            .into_iter()
            .enumerate()
            .map(|(e, score)| {
                let logit = logits[e];
                let Some(&bias) = bias.get(e) else {
                    let rank = match routing.score {
                        Score::Softmax => About::exactly(logit),
                        Score::Sigmoid => score,
                    };
                    let (bias, biased) = (0.0, score);
                    return Expert {
                        logit,
                        bias,
                        score,
                        biased,
                        rank,
                    };
                };
                let value = score.value + bias;
                let error = match value.is_finite() {
                    true => score.error + U * value.abs(),
                    false => 0.0,
                };
                let biased = About { value, error };
                Expert {
                    logit,
                    bias,
                    score,
                    biased,
                    rank: biased,
                }
            })
            .collect();
        let is_nan = experts.iter().any(|expert| expert.biased.value.is_nan());
        let size = experts.len() / routing.groups as usize;
        let groups: Vec<Group> = experts.chunks(size).map(group).collect();
        let is_open = routing.groups > 1 && groups.iter().any(|group| group.value.value.is_nan());
        Row {
            experts,
            groups,
            routing,
            is_nan,
            is_open,
        }
    }

    fn group_of(&self, expert: u64) -> u64 {
        expert / (self.experts.len() as u64 / self.routing.groups)
    }

    /// The choice in exact arithmetic, best first.
    pub(super) fn choice(&self) -> Vec<u64> {
        let topk = self.routing.topk as usize;
        if self.is_nan || self.is_open {
            return (0..self.routing.topk).collect();
        }
        let mut groups: Vec<u64> = (0..self.routing.groups).collect();
        groups.sort_by(|&a, &b| {
            let value = |g: u64| self.groups[g as usize].value.value;
            value(b).total_cmp(&value(a)).then(a.cmp(&b))
        });
        groups.truncate(self.routing.topk_groups as usize);
        let experts = 0..self.experts.len() as u64;
        let mut eligible: Vec<u64> = experts
            .filter(|&e| groups.contains(&self.group_of(e)))
            .collect();
        eligible.sort_by(|&a, &b| {
            // + 0.0 makes the two zeros one.
            let rank = |e: u64| self.experts[e as usize].rank.value + 0.0;
            rank(b).total_cmp(&rank(a)).then(a.cmp(&b))
        });
        eligible.truncate(topk);
        eligible
    }

    /// Distinct experts that exist.
    fn is_valid(&self, ids: &[i64]) -> bool {
        let in_range = |&id: &i64| (0..self.experts.len() as i64).contains(&id);
        ids.iter().all(in_range) && (1..ids.len()).all(|at| !ids[..at].contains(&ids[at]))
    }

    /// Judges a device's choice.
    pub(super) fn judge(&self, ids: &[i64]) -> Choice {
        if !self.is_valid(ids) {
            return Choice::Wrong;
        }
        if self.is_nan || self.is_open {
            return Choice::Free;
        }
        let ids: Vec<u64> = ids.iter().map(|&id| id as u64).collect();
        match ids {
            ids if ids == self.choice() => Choice::Same,
            ids if self.allows(&ids) => Choice::NearTie,
            _ => Choice::Wrong,
        }
    }

    fn precedes(&self, a: u64, b: u64) -> bool {
        self.experts[a as usize].may_precede(a, &self.experts[b as usize], b)
    }

    /// Whether scores within their errors lead to these distinct experts, in this order.
    fn allows(&self, ids: &[u64]) -> bool {
        let in_order =
            (1..ids.len()).all(|at| ids[..at].iter().all(|&a| self.precedes(a, ids[at])));
        // A group may take part if none of its other experts had to be chosen before those that were.
        let fits = |g: &u64| {
            let size = self.experts.len() as u64 / self.routing.groups;
            let members = g * size..(g + 1) * size;
            let mut rest = members.filter(|e| !ids.contains(e));
            rest.all(|other| ids.iter().all(|&id| self.precedes(id, other)))
        };
        let mut chosen: Vec<u64> = Vec::new();
        for &id in ids {
            let group = self.group_of(id);
            if !chosen.contains(&group) {
                chosen.push(group);
            }
        }
        if !in_order || chosen.len() > self.routing.topk_groups as usize || !chosen.iter().all(fits)
        {
            return false;
        }
        // Groups that took part without an expert of theirs being chosen: the best that fit.
        let all = 0..self.routing.groups;
        let mut others: Vec<u64> = all.filter(|g| !chosen.contains(g)).filter(fits).collect();
        others.sort_by(|&a, &b| {
            let value = |g: u64| self.groups[g as usize].value.value;
            value(b).total_cmp(&value(a)).then(a.cmp(&b))
        });
        chosen.extend(others);
        chosen.truncate(self.routing.topk_groups as usize);
        let out = (0..self.routing.groups).filter(|g| !chosen.contains(g));
        let precedes =
            |a: u64, b: u64| self.groups[a as usize].may_precede(a, &self.groups[b as usize], b);
        chosen.len() == self.routing.topk_groups as usize
            && out
                .into_iter()
                .all(|b| chosen.iter().all(|&a| precedes(a, b)))
    }

    /// The weights of these experts with their bounds, before they are rounded to any dtype but f32.
    pub(super) fn weights(&self, ids: &[u64]) -> Vec<(f64, f64)> {
        if self.is_nan {
            return vec![(f64::NAN, 0.0); ids.len()];
        }
        if self.is_open {
            return vec![(0.0, f64::INFINITY); ids.len()];
        }
        let scale = f64::from(self.routing.scale);
        let scores: Vec<About> = ids
            .iter()
            .map(|&id| self.experts[id as usize].score)
            .collect();
        let sum = scores.iter().map(|score| score.value).sum::<f64>() + 1e-20;
        let sum_error = scores.iter().map(|score| score.error).sum::<f64>()
            + (scores.len() + 1) as f64 * U * sum;
        scores
            .into_iter()
            .map(|score| {
                let (value, error) = match self.routing.renormalize {
                    false => (score.value, score.error),
                    true => {
                        let share = score.value / sum;
                        let error = (score.error + share * sum_error) / (sum - sum_error).max(0.0);
                        (share, error + 2.5 * ULP * share)
                    }
                };
                let weight = value * scale;
                (
                    weight,
                    scale.abs() * error + 2.0 * U * weight.abs() + FLUSHED,
                )
            })
            .collect()
    }
}

fn group(experts: &[Expert]) -> Group {
    let mut best: Vec<&Expert> = experts.iter().collect();
    best.sort_by(|a, b| b.biased.value.total_cmp(&a.biased.value));
    best.truncate(2);
    let value: f64 = best.iter().map(|expert| expert.biased.value).sum();
    // The two best on a device may be others, as far as their errors reach.
    let mut errors: Vec<f64> = experts.iter().map(|expert| expert.biased.error).collect();
    errors.sort_by(|a, b| b.total_cmp(a));
    let error = errors.iter().take(2).sum::<f64>() + U * value.abs();
    Group {
        value: About {
            value,
            error: if value.is_finite() { error } else { 0.0 },
        },
        best: best
            .iter()
            .map(|expert| (expert.logit, expert.bias))
            .collect(),
    }
}

/// exp(x − max) / Σ exp(x − max).
fn softmax(logits: &[f64]) -> Vec<About> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Relative error of one exponential: of its argument, and its own.
    let relative = |x: f64| (3.0 + 2.0 * x.abs().min(1e3)) * ULP + 2.0 * U * x.abs().min(1e3);
    let terms: Vec<(f64, f64)> = logits
        .iter()
        .map(|logit| ((logit - max).exp(), relative(logit - max)))
        .collect();
    let sum: f64 = terms.iter().map(|(p, _)| p).sum();
    let n = terms.len() as f64;
    let of_sum = terms.iter().map(|(p, e)| p * e).sum::<f64>() / sum + (n + 3.0) * U;
    terms
        .into_iter()
        .map(|(p, of_term)| About {
            value: p / sum,
            error: p / sum * (of_term + of_sum + 2.5 * ULP) + FLUSHED,
        })
        .collect()
}

/// 1 / (1 + exp(−x)).
fn sigmoid(x: f64) -> About {
    let value = 1.0 / (1.0 + (-x).exp());
    // The exponential's relative error reaches the quotient by 1 − σ.
    let exponential = (3.0 + 2.0 * x.abs().min(1e3)) * ULP + 2.0 * U * x.abs().min(1e3);
    let error = value * ((1.0 - value) * exponential + U + 2.5 * ULP) + FLUSHED;
    About { value, error }
}
