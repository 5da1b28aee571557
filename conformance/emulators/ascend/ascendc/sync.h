// Flags between pipes, barriers, flags between cores, and which block and core this is.
#pragma once
#include "tensor.h"

namespace ropeway {

struct TaskType {
  const char *kernel;
  KernelMetaType type;
};

// What the copy units can join with what is in global memory.
template <class T> constexpr bool is_atomic = std::is_same<T, float>::value || std::is_same<T, half>::value || std::is_same<T, bfloat16_t>::value ||
                                              std::is_same<T, int32_t>::value || std::is_same<T, int16_t>::value || std::is_same<T, int8_t>::value;

}  // namespace ropeway

// Found by the launch before the kernel runs, as the tool-chain finds it in the binary: so it lies in a section of its own.
#define KERNEL_TASK_TYPE_DEFAULT(value) \
  static ropeway::TaskType ropeway_task_type __attribute__((section("ropeway_tasks"), used)) = {__func__, value}

#define ASCEND_IS_AIC (ropeway::core().cube)
#define ASCEND_IS_AIV (!ropeway::core().cube)

namespace AscendC {

enum class HardEvent : uint8_t {
#define ROPEWAY_EVENT(from, to) from##_##to,
  ROPEWAY_EVENTS(ROPEWAY_EVENT)
#undef ROPEWAY_EVENT
      MAX
};

using TEventID = int8_t;
enum event_t : int32_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

template <HardEvent event> void SetFlag(int32_t id, ROPEWAY_AT) { ropeway::core().set_flag(ropeway::Event(event), id, at); }
template <HardEvent event> void WaitFlag(int32_t id, ROPEWAY_AT) { ropeway::core().wait_flag(ropeway::Event(event), id, at); }
template <pipe_t pipe> void PipeBarrier(ROPEWAY_AT) { ropeway::core().barrier(pipe, at); }

template <uint8_t mode, pipe_t pipe> void CrossCoreSetFlag(uint16_t id, ROPEWAY_AT) { ropeway::core().cross_set(mode, pipe, id, at); }
// On this chip mode and pipe of the wait have no effect: all pipes of the core wait.
template <uint8_t mode = 0, pipe_t pipe = PIPE_S> void CrossCoreWaitFlag(uint16_t id, ROPEWAY_AT) { ropeway::core().cross_wait(id, at); }

// Vector cores of a mixed kernel count through all AI cores.
inline int64_t GetBlockIdx() {
  ropeway::Core &core = ropeway::core();
  return core.vectors && !core.cube ? int64_t(core.block) * core.vectors + core.sub_block : core.block;
}
inline int64_t GetBlockNum() { return ropeway::core().num_blocks; }
inline int64_t GetSubBlockIdx() { return ropeway::core().sub_block; }
inline int64_t GetSubBlockNum() { return ropeway::core().vectors ? ropeway::core().vectors : 1; }
// Vector cores to a cube core.
inline int64_t GetTaskRation() { return GetSubBlockNum(); }

// From now on, what the copy units write to global memory is added to what is there, or is left out where that is greater.
template <class T> void SetAtomicAdd() {
  static_assert(ropeway::is_atomic<T>, "a type that the copy units can add");
  ropeway::core().atomic = ropeway::Atomic::Add;
}
template <class T> void SetAtomicMax() {
  static_assert(ropeway::is_atomic<T>, "a type that the copy units can compare");
  ropeway::core().atomic = ropeway::Atomic::Max;
}
inline void SetAtomicNone() { ropeway::core().atomic = ropeway::Atomic::None; }

template <class T> T CeilDivision(T number, T by) { return (number + by - 1) / by; }

}  // namespace AscendC

using AscendC::EVENT_ID0;
using AscendC::EVENT_ID1;
using AscendC::EVENT_ID2;
using AscendC::EVENT_ID3;
using AscendC::EVENT_ID4;
using AscendC::EVENT_ID5;
using AscendC::EVENT_ID6;
using AscendC::EVENT_ID7;
using AscendC::event_t;
