//! Runs decoded kernels: the lanes of a warp together, blocks over threads.
//!
//! | file | holds |
//! |---|---|
//! | [`launch`] | a launch: blocks dealt to threads |
//! | `cluster` | the blocks of a cluster, mostly one: warps in random order, barriers, deadlock |
//! | `warp` | a warp: groups of lanes that stand at one instruction, branches, reconvergence |
//! | `execute` | what an instruction does to a warp's registers |
//! | [`integer`], [`float`], [`convert`], [`mod@format`] | arithmetic, lane by lane |
//! | `access` | loads, stores, atomic operations in every state space |
//! | `copies` | asynchronous copies |
//! | `phases` | mbarriers |
//! | `bulk`, [`tensor`] | bulk copies, and the boxes of tensors that they copy |
//! | `matrix` | `ldmatrix`, `stmatrix`, `mma` |
//! | `products` | `wgmma` |
//! | [`shared`], [`clocks`] | shared memory and what the sanitizer knows of it |
//! | [`report`] | what it reports |
//!
//! Instructions take effect when they are executed, but for those that the ISA completes later. `cp.async` copies when it is waited for, and
//! its target may not be touched until then. Bulk copies into shared memory end at some moment, in any order, and nobody may touch what they bring
//! without having waited for their mbarrier. Products of warpgroups and bulk stores read until they are waited for: what they read may not be
//! written, and a product's sums may not be touched.

mod access;
mod bulk;
pub mod clocks;
mod cluster;
pub mod convert;
mod copies;
mod execute;
pub mod float;
pub mod format;
pub mod integer;
pub mod launch;
mod matrix;
mod phases;
mod products;
pub mod report;
pub mod shared;
pub mod tensor;
mod warp;

pub use launch::{Launch, Options, Statistics, run};
pub use report::{Detector, Report};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// A register of a warp: 64 bits a lane.
pub type Lanes = [u64; LANES];

#[inline]
fn map1(a: &Lanes, f: impl Fn(u64) -> u64) -> Lanes {
    std::array::from_fn(|lane| f(a[lane]))
}

#[inline]
fn map2(a: &Lanes, b: &Lanes, f: impl Fn(u64, u64) -> u64) -> Lanes {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline]
fn map3(a: &Lanes, b: &Lanes, c: &Lanes, f: impl Fn(u64, u64, u64) -> u64) -> Lanes {
    std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]))
}

/// The lanes of a mask.
#[inline]
fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros();
        mask &= mask - 1;
        Some(lane as usize)
    })
}
