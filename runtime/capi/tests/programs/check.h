/* What the test programs share: each ends with status 0 if all holds, and says which line did not. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ropeway.h>

static const ropeway_api *rw;

#define FAIL(...) (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

#define HOLDS(condition) ((condition) ? (void)0 : FAIL("%s", #condition))

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        ropeway_status status_ = (call);                                                                               \
        if (status_ != ROPEWAY_OK) FAIL("%s: status %d: %s", #call, (int)status_, rw->last_error());                   \
    } while (0)

/* The call ends with this status and a message that holds these words. */
#define REFUSED(call, expected, words)                                                                                 \
    do {                                                                                                               \
        ropeway_status status_ = (call);                                                                               \
        if (status_ != (expected)) FAIL("%s: status %d, not %d: %s", #call, (int)status_, (int)(expected), rw->last_error()); \
        if (strstr(rw->last_error(), words) == NULL) FAIL("%s: \"%s\" lacks \"%s\"", #call, rw->last_error(), words);  \
    } while (0)

/* A tensor without memory: dtype, rank, extents. */
static inline ropeway_tensor tensor(ropeway_dtype dtype, uint32_t rank, ...) {
    ropeway_tensor t;
    va_list extents;
    ROPEWAY_INIT(t);
    t.dtype = dtype;
    t.rank = rank;
    va_start(extents, rank);
    for (uint32_t axis = 0; axis < rank; axis++) t.shape[axis] = (uint64_t)va_arg(extents, int);
    va_end(extents);
    return t;
}
#define F32(rank, ...) tensor(ROPEWAY_DTYPE_F32, rank, __VA_ARGS__)
#define I32(rank, ...) tensor(ROPEWAY_DTYPE_I32, rank, __VA_ARGS__)

static inline size_t count(const ropeway_tensor *t) {
    size_t n = 1;
    for (uint32_t axis = 0; axis < t->rank; axis++) n *= (size_t)t->shape[axis];
    return n;
}

/* Gives a tensor memory that holds `data`, four bytes an element; undefined content for NULL. */
static inline void place(ropeway_device *device, ropeway_queue *queue, ropeway_tensor *t, const void *data) {
    ropeway_buffer *buffer;
    OK(rw->buffer_create(device, 4 * count(t), &buffer));
    if (data != NULL) OK(rw->queue_upload(queue, buffer, 0, data, 4 * count(t)));
    t->buffer = buffer;
}

static inline ropeway_buffer *workspace_of(ropeway_device *device, const ropeway_plan *plan) {
    ropeway_plan_info info;
    ropeway_buffer *workspace = NULL;
    ROPEWAY_INIT(info);
    OK(rw->plan_info(plan, &info));
    if (info.workspace_bytes > 0) OK(rw->buffer_create(device, info.workspace_bytes, &workspace));
    return workspace;
}

static inline void execute(ropeway_device *device, ropeway_queue *queue, const ropeway_plan *plan, const ropeway_tensor *operands, size_t n) {
    ropeway_execution execution;
    ropeway_buffer *workspace = workspace_of(device, plan);
    ROPEWAY_INIT(execution);
    execution.plan = plan;
    execution.operands = operands;
    execution.operand_count = n;
    execution.workspace = workspace;
    OK(rw->queue_execute(queue, &execution));
    /* Released while its work may still run: that is allowed. */
    rw->buffer_release(workspace);
}

/* Reads all of a tensor that begins at its buffer's begin. */
static inline void fetch(ropeway_queue *queue, const ropeway_tensor *t, void *data) {
    OK(rw->queue_read_blocking(queue, t->buffer, 0, data, 4 * count(t)));
}

static inline void drop(ropeway_tensor *tensors, size_t n) {
    for (size_t i = 0; i < n; i++) rw->buffer_release((ropeway_buffer *)tensors[i].buffer);
}

/* Values between -1 and 1 with few bits, different for each seed. */
static inline void values(float *data, size_t n, unsigned seed) {
    uint32_t state = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        data[i] = (float)((int)(state >> 24) - 128) / 128.0f;
    }
}

#define CLOSE(found, expected, bound)                                                                                  \
    do {                                                                                                               \
        double found_ = (found), expected_ = (expected);                                                               \
        if (!(fabs(found_ - expected_) <= (bound))) FAIL("%s = %.9g, not %.9g", #found, found_, expected_);            \
    } while (0)

static inline void begin(void) {
    rw = ropeway_get_api(ROPEWAY_API_VERSION);
    HOLDS(rw != NULL);
    HOLDS(rw->struct_size == sizeof(ropeway_api));
}

#endif
