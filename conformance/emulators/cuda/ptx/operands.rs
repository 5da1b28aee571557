//! Which registers an instruction reads and which it writes.

use super::instruction::{BarrierKind, BarrierReduction, Factor, Op, Phase, Reg, Remote};

/// The registers of an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    /// Those it reads.
    pub reads: Box<[Reg]>,
    /// Those it writes.
    pub writes: Box<[Reg]>,
}

impl Operands {
    /// Those of an instruction; what products of warpgroups do to their sums is left to them.
    pub fn of(op: &Op) -> Operands {
        let mut reads = Vec::new();
        let mut writes = Vec::new();
        match op {
            Op::Move { d, a }
            | Op::Integer1 { d, a, .. }
            | Op::Float1 { d, a, .. }
            | Op::Convert { d, a, .. }
            | Op::WidenPair { d, a, .. }
            | Op::ConvertAddress { d, a, .. } => {
                writes.push(*d);
                reads.push(*a);
            }
            Op::Clock { d, .. } | Op::ActiveMask { d } => writes.push(*d),
            Op::Pack { d, parts, .. } => {
                writes.push(*d);
                reads.extend(parts);
            }
            Op::Unpack { d, a, .. } => {
                writes.extend(d.iter().flatten());
                reads.push(*a);
            }
            Op::Integer2 { d, a, b, .. }
            | Op::Float2 { d, a, b, .. }
            | Op::ConvertPair { d, a, b, .. }
            | Op::Set { d, a, b, .. }
            | Op::Select { d, a, b, .. }
            | Op::MapAddress { d, a, rank: b } => {
                writes.push(*d);
                reads.extend([*a, *b]);
            }
            Op::Integer3 { d, a, b, c, .. }
            | Op::Carry { d, a, b, c, .. }
            | Op::Fma { d, a, b, c, .. }
            | Op::SelectSign { d, a, b, c, .. } => {
                writes.push(*d);
                reads.extend([*a, *b, *c]);
            }
            Op::Insert {
                d,
                a,
                b,
                position,
                length,
                ..
            } => {
                writes.push(*d);
                reads.extend([*a, *b, *position, *length]);
            }
            Op::TestProperty { a, .. } | Op::IsSpace { a, .. } => reads.push(*a),
            Op::SetPredicate { a, b, .. } => reads.extend([*a, *b]),
            Op::Load { d, address, .. } => {
                writes.extend(d.iter().flatten());
                reads.push(address.base);
            }
            Op::Store {
                address, values, ..
            }
            | Op::StoreMatrix {
                address, values, ..
            } => {
                reads.push(address.base);
                reads.extend(values);
            }
            Op::Atomic {
                d, address, b, c, ..
            } => {
                writes.extend(*d);
                reads.extend([address.base, *b, *c]);
            }
            Op::Shuffle {
                d,
                a,
                b,
                c,
                members,
                ..
            } => {
                writes.push(*d);
                reads.extend([*a, *b, *c, *members]);
            }
            Op::Vote {
                mode, d, members, ..
            } => {
                // Others write a predicate.
                if *mode == super::instruction::VoteMode::Ballot {
                    writes.push(*d);
                }
                reads.push(*members);
            }
            Op::Match { d, a, members, .. } | Op::Reduce { d, a, members, .. } => {
                writes.push(*d);
                reads.extend([*a, *members]);
            }
            Op::Elect { d, members, .. } => {
                writes.extend(*d);
                reads.push(*members);
            }
            Op::Barrier {
                kind, id, count, ..
            } => {
                if let BarrierKind::Reduce(BarrierReduction::PopulationCount(d), _) = kind {
                    writes.push(*d);
                }
                reads.push(*id);
                reads.extend(*count);
            }
            Op::WarpBarrier { members } => reads.push(*members),
            Op::LoadMatrix { d, address, .. } => {
                writes.extend(d);
                reads.push(address.base);
            }
            Op::Mma(mma) => {
                writes.extend(&mma.d);
                reads.extend(mma.a.iter().chain(&mma.b).chain(&mma.c));
            }
            Op::CopyAsync {
                source_bytes,
                to,
                from,
                ..
            } => {
                reads.extend(*source_bytes);
                reads.extend([to.base, from.base]);
            }
            Op::PhaseInit { address, count } => reads.extend([address.base, *count]),
            Op::PhaseInvalidate { address } | Op::CopiesArrive { address, .. } => {
                reads.push(address.base);
            }
            Op::PhaseArrive {
                d,
                address,
                count,
                expect,
                ..
            } => {
                writes.extend(*d);
                reads.push(address.base);
                reads.extend(count.iter().chain(expect));
            }
            Op::PhaseExpect { address, bytes, .. } => reads.extend([address.base, *bytes]),
            Op::PhaseTest { address, phase, .. } => {
                let (Phase::Parity(phase) | Phase::Token(phase)) = phase;
                reads.extend([address.base, *phase]);
            }
            Op::BulkLoad {
                to,
                from,
                barrier,
                multicast,
            } => {
                reads.extend([to.base, barrier.base]);
                reads.extend(*multicast);
                remote(from, &mut reads);
            }
            Op::BulkStore { to, from } => {
                reads.push(from.base);
                remote(to, &mut reads);
            }
            Op::Wgmma(product) => {
                if let Factor::Shared(a) = product.a {
                    reads.push(a);
                }
                reads.push(product.b);
            }
            Op::BranchIndexed { index, .. } => reads.push(*index),
            Op::MovePredicate { .. }
            | Op::Logic { .. }
            | Op::Fence
            | Op::CopyCommit
            | Op::CopyWait { .. }
            | Op::BulkCommit
            | Op::BulkWait { .. }
            | Op::ProxyFence
            | Op::PhaseInitFence
            | Op::WgmmaFence
            | Op::WgmmaCommit
            | Op::WgmmaWait { .. }
            | Op::SetRegisters { .. }
            | Op::ClusterArrive
            | Op::ClusterWait
            | Op::DependencyWait
            | Op::Branch { .. }
            | Op::Exit
            | Op::Trap
            | Op::Nothing => {}
        }
        Operands {
            reads: reads.into(),
            writes: writes.into(),
        }
    }
}

fn remote(memory: &Remote, reads: &mut Vec<Reg>) {
    match memory {
        Remote::Tensor { map, coordinates } => {
            reads.push(map.base);
            reads.extend(coordinates);
        }
        Remote::Bytes { address, bytes } => reads.extend([address.base, *bytes]),
    }
}
