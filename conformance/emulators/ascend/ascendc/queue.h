// TPipe gives out the core's memories; TQue passes buffers from the pipe that fills them to the pipe that reads them, and back; TBuf is memory alone.
#pragma once
#include "sync.h"

namespace AscendC {

class TPipe;

// The pipes that fill and that read the buffers of a queue from one position to another.
constexpr pipe_t filler_of(TPosition position) {
  switch (position) {
    case TPosition::VECOUT: case TPosition::VECCALC: return PIPE_V;
    case TPosition::A2: case TPosition::B2: case TPosition::C2: return PIPE_MTE1;
    case TPosition::CO1: return PIPE_M;
    default: return PIPE_MTE2;
  }
}
constexpr pipe_t reader_of(TPosition position) {
  switch (position) {
    case TPosition::VECIN: case TPosition::VECCALC: return PIPE_V;
    case TPosition::VECOUT: return PIPE_MTE3;
    case TPosition::A2: case TPosition::B2: case TPosition::C2: return PIPE_M;
    case TPosition::CO1: return PIPE_FIX;
    default: return PIPE_MTE1;
  }
}

template <TPosition from, TPosition to, int32_t depth> class TQueBind {
  friend class TPipe;
  static constexpr pipe_t FILLER = filler_of(from), READER = reader_of(to);
  enum State { FREE, ALLOCATED, QUEUED, TAKEN };
  struct Buffer {
    ropeway::Place place;
    State state = FREE;
    ropeway::Token filled = 0, freed = 0;
  };
  std::vector<Buffer> buffers;
  std::vector<int> queued;
  size_t next = 0;  // buffers are given out in turn, so that the one before may still be read

  template <class T> Buffer &buffer_of(const LocalTensor<T> &tensor, State state, const char *what) {
    ropeway::core().require(tensor.buffer >= 0 && size_t(tensor.buffer) < buffers.size() && buffers[tensor.buffer].state == state, what);
    return buffers[tensor.buffer];
  }

 public:
  template <class T> LocalTensor<T> AllocTensor(ROPEWAY_AT) {
    for (size_t tried = 0; tried < buffers.size(); tried++) {
      size_t i = next;
      next = (next + 1) % buffers.size();
      Buffer &buffer = buffers[i];
      if (buffer.state != FREE) continue;
      buffer.state = ALLOCATED;
      if (buffer.freed) ropeway::core().wait_token(FILLER, std::exchange(buffer.freed, 0), "AllocTensor", at);
      return {buffer.place, from, int(i)};
    }
    ropeway::no_buffer(at);
  }
  template <class T> bool EnQue(const LocalTensor<T> &tensor, ROPEWAY_AT) {
    Buffer &buffer = buffer_of(tensor, ALLOCATED, "EnQue of a tensor that AllocTensor of this queue did not give");
    ropeway::core().require(queued.size() < size_t(depth), "EnQue into a full queue");
    buffer.state = QUEUED;
    buffer.filled = ropeway::core().set_token(FILLER, "EnQue", at);
    queued.push_back(tensor.buffer);
    return true;
  }
  template <class T> LocalTensor<T> DeQue(ROPEWAY_AT) {
    ropeway::core().require(!queued.empty(), "DeQue from an empty queue");
    int index = queued.front();
    queued.erase(queued.begin());
    buffers[index].state = TAKEN;
    ropeway::core().wait_token(READER, std::exchange(buffers[index].filled, 0), "DeQue", at);
    return {buffers[index].place, to, index};
  }
  template <class T> void FreeTensor(const LocalTensor<T> &tensor, ROPEWAY_AT) {
    Buffer &buffer = buffer_of(tensor, TAKEN, "FreeTensor of a tensor that DeQue of this queue did not give");
    buffer.state = FREE;
    buffer.freed = ropeway::core().set_token(READER, "FreeTensor", at);
  }
  bool VacantInQue() const { return queued.size() < size_t(depth); }
  bool HasTensorInQue() const { return !queued.empty(); }
  int32_t GetTensorCountInQue() const { return int32_t(queued.size()); }
};

template <TPosition position, int32_t depth> class TQue : public TQueBind<position, position, depth> {};

template <TPosition position> class TBuf {
  friend class TPipe;
  ropeway::Place place;

 public:
  template <class T> LocalTensor<T> Get() const { return {place, position}; }
  template <class T> LocalTensor<T> Get(uint32_t count) const { return GetWithOffset<T>(count, 0); }
  template <class T> LocalTensor<T> GetWithOffset(uint32_t count, uint32_t offset) const {
    ropeway::Place part{place.memory, place.address + offset, place.address + offset + uint64_t(count) * sizeof(T)};
    ropeway::core().require(part.limit <= place.limit, "a tensor larger than its TBuf");
    return {part, position};
  }
};

class TPipe {
  uint64_t used[ropeway::MEMORIES] = {};
  uint8_t events_taken[ropeway::EVENTS] = {};

  ropeway::Place take(TPosition position, uint64_t bytes) {
    ropeway::Memory memory = memory_of(position);
    bytes = (bytes + 31) / 32 * 32;
    uint64_t start = used[memory];
    used[memory] += bytes;
    if (used[memory] > ropeway::bytes_of(memory)) ropeway::memory_full(memory, used[memory]);
    return {memory, start, start + bytes};
  }

 public:
  TPipe() = default;
  TPipe(const TPipe &) = delete;

  template <TPosition from, TPosition to, int32_t depth> bool InitBuffer(TQueBind<from, to, depth> &queue, uint8_t number, uint32_t bytes) {
    for (int i = 0; i < number; i++) {
      queue.buffers.emplace_back();
      queue.buffers.back().place = take(from, bytes);
    }
    return true;
  }
  template <TPosition position> bool InitBuffer(TBuf<position> &buffer, uint32_t bytes) {
    buffer.place = take(position, bytes);
    return true;
  }
  template <HardEvent event> TEventID AllocEventID() {
    for (int id = 0; id < ropeway::FLAGS_OF_AN_EVENT; id++)
      if (!(events_taken[int(event)] >> id & 1)) {
        events_taken[int(event)] |= 1 << id;
        return TEventID(id);
      }
    ropeway::core().fault("AllocEventID: all eight flags of the event are taken");
  }
  template <HardEvent event> void ReleaseEventID(TEventID id) { events_taken[int(event)] &= ~(1 << id); }
  // One that is not taken, without taking it.
  template <HardEvent event> TEventID FetchEventID() {
    TEventID id = AllocEventID<event>();
    ReleaseEventID<event>(id);
    return id;
  }
};

}  // namespace AscendC
