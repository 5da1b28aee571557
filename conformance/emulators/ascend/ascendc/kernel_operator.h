// The subset of AscendC that kernels are written in, over a model of one chip (dav-2201): written from the documented behaviour of each function.
// Anything not declared here is a compile error, and what is declared but not modelled in some parameter is a fault: nothing is passed over.
//
//   numbers.h   half, bfloat16_t, rounding        queue.h  TPipe, TQue, TBuf
//   core.h      a core as instructions see it     copy.h   DataCopy, DataCopyPad
//   tensor.h    positions, parameters' fields,    cube.h   LoadData, Mmad, Fixpipe
//               LocalTensor, GlobalTensor         vector.h, reduce.h   the vector unit
//   sync.h      flags, barriers, what block this is
//
// and, compiled once and linked with every kernel (machine.cpp):
//
//   machine.h   pipes, memories, clocks           launch.h  blocks, cores, cross-core flags
//   engine.h    a core: what it is made of        cost.h    an estimate of cycles
//   pipes.h     a core: how instructions run
#pragma once
#include "copy.h"
#include "cube.h"
#include "numbers.h"
#include "queue.h"
#include "reduce.h"
#include "sync.h"
#include "tensor.h"
#include "vector.h"
