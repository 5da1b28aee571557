// The subset of AscendC that kernels are written in, over a model of one chip (dav-2201): written from the documented behaviour of each function.
// Anything not declared here is a compile error, and what is declared but not modelled in some parameter is a fault: nothing is passed over.
//
//   numbers.h   half, bfloat16_t, rounding        tensor.h  positions, parameters' fields, LocalTensor, GlobalTensor
//   machine.h   pipes, memories, clocks           sync.h    flags, barriers, what block this is
//   core.h      a core: interface                 queue.h   TPipe, TQue, TBuf
//   launch.h    blocks, cores, cross-core flags   copy.h    DataCopy, DataCopyPad
//   pipes.h     a core: how instructions run      cube.h    LoadData, Mmad, Fixpipe
//                                                 vector.h, reduce.h   the vector unit
#pragma once
#include "copy.h"
#include "cube.h"
#include "numbers.h"
#include "pipes.h"
#include "queue.h"
#include "reduce.h"
#include "sync.h"
#include "tensor.h"
#include "vector.h"
