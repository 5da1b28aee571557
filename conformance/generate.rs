//! Generated cases: one seed, one case; what fails is shrunk.
//!
//! A case's seed follows from the run's seed, the op and the case's number; the case's id carries it, and the recipe follows from it
//! alone, so that an id replays on any machine (with the same version of Ropeway, since strategies may change between versions).

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ropeway_core::op::OpKind;
use ropeway_core::spec::{Random, Recipe};
use ropeway_core::{Error, ErrorKind, Result};

/// How often a failing case is run again at most to make it smaller.
const SHRINK_RUNS: usize = 256;

/// The seed of case `number` of `op` in a run of this seed.
pub fn case_seed(run: u64, op: &str, number: usize) -> u64 {
    // FNV-1a over the name, so that ops draw from different streams.
    let name = op.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Random::new(run ^ name ^ (number as u64).wrapping_mul(0xd134_2543_de82_ef95)).next()
}

/// A generated case that can be made smaller.
pub struct Generated(Box<dyn ValueTree<Value = Recipe>>);

impl Generated {
    /// The case of this seed.
    ///
    /// # Errors
    /// `InvalidArgument` if the op's strategy rejects everything it draws.
    pub fn new(kind: &dyn OpKind, seed: u64) -> Result<Generated> {
        let mut stream = Random::new(seed);
        let mut key = [0; 32];
        for part in key.chunks_exact_mut(8) {
            part.copy_from_slice(&stream.next().to_le_bytes());
        }
        let config = Config {
            failure_persistence: None,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &key);
        let tree = kind
            .spec()
            .strategy()
            .new_tree(&mut TestRunner::new_with_rng(config, rng))
            .map_err(|reason| {
                let context = format!("the strategy of {} gives no case: {reason}", kind.name());
                Error::new(ErrorKind::InvalidArgument, context)
            })?;
        Ok(Generated(tree))
    }

    /// The case.
    pub fn recipe(&self) -> Recipe {
        self.0.current()
    }

    /// The smallest case found that still fails, and how many were tried. `fails` runs a case.
    pub fn shrink(mut self, mut fails: impl FnMut(&Recipe) -> bool) -> (Recipe, usize) {
        let mut smallest = self.0.current();
        let mut runs = 0;
        if !self.0.simplify() {
            return (smallest, runs);
        }
        while runs < SHRINK_RUNS {
            runs += 1;
            let candidate = self.0.current();
            let moved = if fails(&candidate) {
                smallest = candidate;
                self.0.simplify()
            } else {
                self.0.complicate()
            };
            if !moved {
                break;
            }
        }
        (smallest, runs)
    }
}
