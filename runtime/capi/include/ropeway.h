/*
 * Ropeway: matrix products, attention and mixture-of-experts routing on whatever chip there is.
 *
 *     const ropeway_api *ropeway = ropeway_get_api(ROPEWAY_API_VERSION);
 *
 * is the only function that the library exports; everything else is in the table that it returns. Programs: runtime/capi/examples. How to link:
 * docs/linking.md.
 *
 * Errors. A function that can fail returns a ropeway_status. last_error() then says what went wrong in the calling thread's last call that
 * failed. No failure leaves anything half done: an output handle is set to NULL, a device stays usable unless the status is
 * ROPEWAY_ERROR_DEVICE_LOST. No panic crosses the interface: a fault in the library is ROPEWAY_ERROR_INTERNAL. Callbacks must not throw.
 *
 * Structs. Each begins with struct_size, which the caller sets to sizeof the struct; it has no padding. A field of zero (NULL) is left at its default.
 * Later versions add fields at the end, and only ones whose zero means what was before: a program built with an older header goes on running.
 * A program built with a newer header runs too, unless it sets a field that this library does not know; that is
 * ROPEWAY_ERROR_UNSUPPORTED. The structs of an array all have the struct_size of the first. The same holds for the table: ROPEWAY_HAS
 * tells whether the library at hand has a function.
 *
 * Handles. What a function puts into `out` is the caller's and is released once, by the release function of its kind; NULL may always be released.
 * Handles keep alive what they need, so they may be released in any order, also while work that uses them is queued: a plan, a queue or a
 * buffer works on after its device's handle is gone. Pointers and strings that the library hands out live as long as the handle they came from.
 *
 * Threads. Every function may be called from any thread, and any number of threads may use the same handle at once, but for its release:
 * that is for one thread, when no other uses the handle any more. Work on one queue runs in the order of the calls (calls of several threads in
 * some order); work on two queues has no order but what queue_record and queue_wait make. last_error() is the calling thread's own. Nothing waits for
 * the device unless its name says so (..._wait, ..._blocking, ..._synchronize), but for pinned_release and a release of a device's last handle.
 * Execution plans nothing, compiles nothing and allocates nothing.
 *
 * The library must not be unloaded (dlclose): drivers keep threads.
 */

#ifndef ROPEWAY_H
#define ROPEWAY_H

/* Made by cbindgen from runtime/capi/src: change it there. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
/* Sets a struct (an object, not a pointer) to zero and its struct_size to its size. */
#define ROPEWAY_INIT(object) (memset(&(object), 0, sizeof(object)), (void)((object).struct_size = sizeof(object)))

/* Whether the library's table has this function; a library that is older than the header may not. */
#define ROPEWAY_HAS(api, function) \
    (offsetof(ropeway_api, function) + sizeof((api)->function) <= (api)->struct_size)

// The version of the interface that this header describes. Additions do not change it.
#define ROPEWAY_API_VERSION 1

// A wait without limit, in place of a number of nanoseconds.
#define ROPEWAY_NO_TIMEOUT UINT64_MAX

// Alignment of a workspace within its buffer, in bytes.
#define ROPEWAY_WORKSPACE_ALIGNMENT 256

// The most dimensions of a tensor.
#define ROPEWAY_MAX_RANK 8

// Device memory.
typedef struct ropeway_buffer ropeway_buffer;

// An open device: memory, queues, plans. Its handles share it.
typedef struct ropeway_device ropeway_device;

// A point in a queue's work.
typedef struct ropeway_event ropeway_event;

// Executions that were recorded once and are submitted as one.
typedef struct ropeway_graph ropeway_graph;

// Host memory that a device copies to directly: the target of queue_download.
typedef struct ropeway_pinned ropeway_pinned;

// An op that is planned and compiled: it is executed with any memory, any number of times.
typedef struct ropeway_plan ropeway_plan;

// A snapshot of what every backend answered: its devices, or why it has none.
typedef struct ropeway_probe ropeway_probe;

// A sequence of work on a device.
typedef struct ropeway_queue ropeway_queue;

// How a call ended: ROPEWAY_OK or one of ROPEWAY_ERROR_...
typedef int32_t ropeway_status;

// How much is logged: everything of this level and those before it.
typedef uint32_t ropeway_log_level;

// Called for each message, from any thread, several at once; the strings are valid during the call. It may call the library, but not
// set_log; what is logged meanwhile is dropped.
typedef void (*ropeway_log_callback)(void *user, ropeway_log_level level, const char *target, const char *message);

// Why a backend has no device.
typedef uint32_t ropeway_unavailable;

// What a backend answered. The strings live as long as the probe.
typedef struct ropeway_backend_info {
    // sizeof(ropeway_backend_info)
    size_t struct_size;
    // The backend's name ("opencl"), by which devices are selected.
    const char *name;
    // Its devices.
    size_t device_count;
    // Why it has none; NULL if it has.
    const char *reason;
    // What to install or set, in a sentence; NULL if it has devices.
    const char *remedy;
    // The reason as a code.
    ropeway_unavailable unavailable;
    // 0.
    uint32_t reserved;
} ropeway_backend_info;

// What sort of processor a device is.
typedef uint32_t ropeway_device_kind;

// What really executes the work.
typedef uint32_t ropeway_execution_kind;

// What a device is and can do. The strings live as long as the handle that was asked.
typedef struct ropeway_device_info {
    // sizeof(ropeway_device_info)
    size_t struct_size;
    // By which it is opened: "opencl:0".
    const char *selector;
    // The backend's name.
    const char *backend;
    // The device's own name.
    const char *name;
    // Who made it.
    const char *vendor;
    // The platform or driver that speaks for it.
    const char *platform;
    // The vendor's name of the instruction set ("sm_90a"), or "".
    const char *architecture;
    // Version of the driver.
    const char *driver_version;
    // Version of the run-time compiler.
    const char *compiler_version;
    // Bytes of device memory.
    uint64_t memory;
    // Bytes of the largest single buffer.
    uint64_t max_buffer;
    // Alignment in bytes of the base address of a buffer that the library allocates.
    uint64_t base_alignment;
    // Cores, multiprocessors or compute units.
    uint32_t compute_units;
    // Its number among the backend's devices.
    uint32_t ordinal;
    // What sort of processor it is.
    ropeway_device_kind kind;
    // What executes the work.
    ropeway_execution_kind execution;
    // Bit d is set if kernels can load and store dtype d.
    uint32_t storage_dtypes;
    // Bit d is set if the device computes in dtype d natively.
    uint32_t arithmetic_dtypes;
    // 1 if the host can address the same memory without a copy.
    uint32_t unified_memory;
    // 0.
    uint32_t reserved;
} ropeway_device_info;

// Choices at opening a device.
typedef struct ropeway_device_options {
    // sizeof(ropeway_device_options)
    size_t struct_size;
    // Where compiled kernels are kept between runs. NULL: $ROPEWAY_CACHE_DIR, or "ropeway" in the user's cache directory. "": nowhere.
    const char *cache_dir;
    // Kernels that were compiled beforehand (`ropeway compile`), for machines without the vendor's compiler; the directory must be writable
    // for this user or root only. NULL: $ROPEWAY_BINARIES_DIR, if that is set.
    const char *binaries_dir;
} ropeway_device_options;

// Device memory in bytes.
typedef struct ropeway_memory_use {
    // sizeof(ropeway_memory_use)
    size_t struct_size;
    // In use through this open device.
    uint64_t used;
    // Free; UINT64_MAX where the driver does not tell.
    uint64_t free;
    // All there is.
    uint64_t total;
} ropeway_memory_use;

// Called once when the library needs imported memory or an imported queue no longer: from any thread, perhaps long after the handle's
// release, and not at all if the import failed.
typedef void (*ropeway_release_callback)(void *user);

// What a queue is for.
typedef uint32_t ropeway_queue_kind;

// The element type of a tensor.
typedef uint32_t ropeway_dtype;

// How a tensor's elements lie.
typedef uint32_t ropeway_layout;

// A tensor: what a plan must know of it, and, for an execution, where it lies.
typedef struct ropeway_tensor {
    // sizeof(ropeway_tensor)
    size_t struct_size;
    // Its name among an op's operands ("a", "expert_offsets"). Needed in ropeway_request only; in an execution NULL or the name of the
    // operand in that place; not read elsewhere.
    const char *name;
    // Where it lies. Needed for an execution; not read by a plan.
    const struct ropeway_buffer *buffer;
    // First element, counted in elements from the buffer's begin.
    uint64_t offset;
    // Element type. In an execution ROPEWAY_DTYPE_DEFAULT means dtype, shape and strides as they were planned.
    ropeway_dtype dtype;
    // Dimensions in use, at most ROPEWAY_MAX_RANK.
    uint32_t rank;
    // Extents, outermost first. A plan holds for these and for smaller row counts and lengths.
    uint64_t shape[ROPEWAY_MAX_RANK];
    // Strides in elements, outermost first; 0 broadcasts.
    uint64_t strides[ROPEWAY_MAX_RANK];
    // Whether `strides` are read.
    ropeway_layout layout;
    // 0.
    uint32_t reserved;
} ropeway_tensor;

// A plan with its operands and workspace. Read during the call that it is given to, and not afterwards.
typedef struct ropeway_execution {
    // sizeof(ropeway_execution)
    size_t struct_size;
    // What to run.
    const struct ropeway_plan *plan;
    // The operands in the plan's order (plan_operand), each with its buffer.
    const struct ropeway_tensor *operands;
    // Number of operands.
    size_t operand_count;
    // Memory for intermediate results, of which two executions that may overlap in time need one each; NULL if the plan needs none.
    const struct ropeway_buffer *workspace;
    // Where in that buffer it begins, in bytes: a multiple of ROPEWAY_WORKSPACE_ALIGNMENT. It reaches to the buffer's end.
    uint64_t workspace_offset;
} ropeway_execution;

// The kind of an attribute.
typedef uint32_t ropeway_attribute_kind;

// An attribute of an op.
typedef struct ropeway_attribute {
    // sizeof(ropeway_attribute)
    size_t struct_size;
    // Its name ("trans_b", "topk").
    const char *name;
    // If it is a flag or an integer.
    uint64_t integer;
    // If it is a number.
    double number;
    // If it is a word.
    const char *word;
    // Which of the three is read.
    ropeway_attribute_kind kind;
    // 0.
    uint32_t reserved;
} ropeway_attribute;

// Any op that the library has (op_name), by the names of its tensors and attributes; each op's are listed in kernels/<op>/README.md.
typedef struct ropeway_request {
    // sizeof(ropeway_request)
    size_t struct_size;
    // "gemm".
    const char *op;
    // Its inputs, in any order. Outputs are contiguous.
    const struct ropeway_tensor *inputs;
    // Number of inputs.
    size_t input_count;
    // Its attributes; one that is absent has its default.
    const struct ropeway_attribute *attributes;
    // Number of attributes.
    size_t attribute_count;
} ropeway_request;

// A tunable of a kernel and its value. Each kernel's are listed in kernels/<op>/README.md.
typedef struct ropeway_tunable {
    // sizeof(ropeway_tunable)
    size_t struct_size;
    // Its name ("MR").
    const char *name;
    // One of the values that it may have.
    int64_t value;
} ropeway_tunable;

// Choices that a caller may take out of the planner's hands.
typedef struct ropeway_plan_options {
    // sizeof(ropeway_plan_options)
    size_t struct_size;
    // Use the kernel of this name or fail. NULL: the planner's choice.
    const char *kernel;
    // Names of operands that will be bound in prepared form (plan_prepare).
    const char *const *prepared;
    // Number of such names.
    size_t prepared_count;
    // Use these tunables of the kernel named above, all that it has, or fail. NULL: tuned values, else the kernel's defaults.
    const struct ropeway_tunable *config;
    // Number of tunables.
    size_t config_count;
} ropeway_plan_options;

// What is applied to each element before it is rounded to the output dtype.
typedef uint32_t ropeway_activation;

// `d = activation(alpha * op(a) op(b) + beta * c + bias)`, over leading dimensions that broadcast. Operands: a, b, c, bias, d.
typedef struct ropeway_gemm {
    // sizeof(ropeway_gemm)
    size_t struct_size;
    // [..., m, k], or [..., k, m] with trans_a.
    const struct ropeway_tensor *a;
    // [..., k, n], or [..., n, k] with trans_b; with b_format U8 [..., n, bytes of a row].
    const struct ropeway_tensor *b;
    // Broadcasts to [..., m, n]; has a's dtype (I8: I32). NULL: none.
    const struct ropeway_tensor *c;
    // [n], of a's dtype (I8: I32). NULL: none.
    const struct ropeway_tensor *bias;
    // F32 [m, k / 128] beside an 8-bit float a. NULL: none.
    const struct ropeway_tensor *a_scale;
    // F32 [n / 128, k / 128] beside an 8-bit float b. NULL: none.
    const struct ropeway_tensor *b_scale;
    // NULL: 1. At 0 neither a nor b is read.
    const float *alpha;
    // NULL: 1 if c is given, else 0. At 0 c is not read.
    const float *beta;
    // 1 if a is stored transposed.
    uint32_t trans_a;
    // 1 if b is stored transposed.
    uint32_t trans_b;
    // The epilogue.
    ropeway_activation activation;
    // The dtype of d; by default a's (I8: I32).
    ropeway_dtype out_dtype;
    // GGML blocks that b holds ("q4_0", "q8_0"). NULL: none.
    const char *b_format;
} ropeway_gemm;

// One product for each expert over contiguous rows. Operands: a, b, expert_offsets, d.
typedef struct ropeway_grouped_gemm {
    // sizeof(ropeway_grouped_gemm)
    size_t struct_size;
    // [rows, k].
    const struct ropeway_tensor *a;
    // [experts, n, k]; with b_format U8 [experts, n, bytes of a row].
    const struct ropeway_tensor *b;
    // I32 [experts + 1], on the device: first 0, never descending, last <= rows.
    const struct ropeway_tensor *expert_offsets;
    // F32 [rows, k / 128] beside an 8-bit float a. NULL: none.
    const struct ropeway_tensor *a_scale;
    // F32 [experts, n / 128, k / 128] beside an 8-bit float b. NULL: none.
    const struct ropeway_tensor *b_scale;
    // GGML blocks that b holds. NULL: none.
    const char *b_format;
    // NONE or SWIGLU.
    ropeway_activation activation;
    // The dtype of d; by default a's.
    ropeway_dtype out_dtype;
} ropeway_grouped_gemm;

// One product for each expert over a fixed capacity of rows, of which the first counts[e] hold something. Operands: a, b, counts, d.
typedef struct ropeway_grouped_gemm_masked {
    // sizeof(ropeway_grouped_gemm_masked)
    size_t struct_size;
    // [experts, capacity, k].
    const struct ropeway_tensor *a;
    // [experts, n, k]; with b_format U8 [experts, n, bytes of a row].
    const struct ropeway_tensor *b;
    // I32 [experts], on the device: 0 to capacity.
    const struct ropeway_tensor *counts;
    // F32 [experts, capacity, k / 128] beside an 8-bit float a. NULL: none.
    const struct ropeway_tensor *a_scale;
    // F32 [experts, n / 128, k / 128] beside an 8-bit float b. NULL: none.
    const struct ropeway_tensor *b_scale;
    // GGML blocks that b holds. NULL: none.
    const char *b_format;
    // NONE or SWIGLU.
    ropeway_activation activation;
    // The dtype of d; by default a's.
    ropeway_dtype out_dtype;
} ropeway_grouped_gemm_masked;

// `softmax(scale * q k^T + mask) v` in one pass. Operands: q, k, v, mask, kv_lens, sinks, alibi_slopes, o, lse.
typedef struct ropeway_attention {
    // sizeof(ropeway_attention)
    size_t struct_size;
    // [batch, heads, q_len, d].
    const struct ropeway_tensor *q;
    // [batch, kv_heads, kv_len, d]; heads is a multiple of kv_heads.
    const struct ropeway_tensor *k;
    // [batch, kv_heads, kv_len, dv].
    const struct ropeway_tensor *v;
    // F32, broadcasts to [batch, heads, q_len, kv_len]; added to the scores. NULL: none.
    const struct ropeway_tensor *mask;
    // I32 [batch], on the device: keys of each sequence, 0 to kv_len. NULL: kv_len.
    const struct ropeway_tensor *kv_lens;
    // F32 [heads]: one more score of each head, with value zero. NULL: none.
    const struct ropeway_tensor *sinks;
    // F32 [heads]. NULL: none.
    const struct ropeway_tensor *alibi_slopes;
    // NULL: 1 / sqrt(d).
    const float *scale;
    // Scores become softcap * tanh(score / softcap). NULL or 0: they stay.
    const float *softcap;
    // With causal: a query sees its last `window` keys. 0: all.
    uint64_t window;
    // 1: the last query sees the last key, the one before sees one less, and so on.
    uint32_t causal;
    // 1: there is an output lse [batch, heads, q_len], the logarithm of the sum of exponentials.
    uint32_t return_lse;
} ropeway_attention;

// Attention over sequences of different lengths, one after the other. Operands: q, k, v, cu_q, cu_kv, sinks, alibi_slopes, o, lse.
typedef struct ropeway_attention_varlen {
    // sizeof(ropeway_attention_varlen)
    size_t struct_size;
    // [tokens, heads, d].
    const struct ropeway_tensor *q;
    // [kv_tokens, kv_heads, d].
    const struct ropeway_tensor *k;
    // [kv_tokens, kv_heads, dv].
    const struct ropeway_tensor *v;
    // I32 [sequences + 1], on the device: cumulative query lengths, from 0 to tokens.
    const struct ropeway_tensor *cu_q;
    // I32 [sequences + 1], on the device: cumulative key lengths, from 0 to kv_tokens.
    const struct ropeway_tensor *cu_kv;
    // As in ropeway_attention.
    const struct ropeway_tensor *sinks;
    // As in ropeway_attention.
    const struct ropeway_tensor *alibi_slopes;
    // As in ropeway_attention.
    const float *scale;
    // As in ropeway_attention.
    const float *softcap;
    // As in ropeway_attention.
    uint64_t window;
    // As in ropeway_attention.
    uint32_t causal;
    // 1: there is an output lse [tokens, heads].
    uint32_t return_lse;
} ropeway_attention_varlen;

// Attention over a paged KV cache. Operands: q, cu_q, k_cache, v_cache, block_table, kv_lens, sinks, alibi_slopes, o, lse.
typedef struct ropeway_attention_paged {
    // sizeof(ropeway_attention_paged)
    size_t struct_size;
    // [tokens, heads, d].
    const struct ropeway_tensor *q;
    // I32 [batch + 1], on the device: cumulative query lengths, from 0 to tokens.
    const struct ropeway_tensor *cu_q;
    // [blocks, block_size, kv_heads, d].
    const struct ropeway_tensor *k_cache;
    // [blocks, block_size, kv_heads, dv].
    const struct ropeway_tensor *v_cache;
    // I32 [batch, max_blocks], on the device: the blocks of each sequence.
    const struct ropeway_tensor *block_table;
    // I32 [batch], on the device: keys of each sequence.
    const struct ropeway_tensor *kv_lens;
    // As in ropeway_attention.
    const struct ropeway_tensor *sinks;
    // As in ropeway_attention.
    const struct ropeway_tensor *alibi_slopes;
    // As in ropeway_attention.
    const float *scale;
    // As in ropeway_attention.
    const float *softcap;
    // As in ropeway_attention.
    uint64_t window;
    // As in ropeway_attention.
    uint32_t causal;
    // 1: there is an output lse [tokens, heads].
    uint32_t return_lse;
} ropeway_attention_paged;

// How a router's logits become scores.
typedef uint32_t ropeway_score;

// Chooses each token's experts. Operands: logits, bias, topk_ids, topk_weights.
typedef struct ropeway_moe_route {
    // sizeof(ropeway_moe_route)
    size_t struct_size;
    // [tokens, experts].
    const struct ropeway_tensor *logits;
    // F32 [experts], added to the scores for the choice only. NULL: none.
    const struct ropeway_tensor *bias;
    // Factor of the weights. NULL: 1.
    const float *scale;
    // Experts a token.
    uint64_t topk;
    // Groups that the experts are divided into. 0: 1.
    uint64_t groups;
    // Groups that a token may choose from. 0: 1.
    uint64_t topk_groups;
    // How logits become scores.
    ropeway_score score;
    // 1: weights are divided by their sum.
    uint32_t renormalize;
} ropeway_moe_route;

// Brings token rows into expert order. Operands: x, topk_ids, rows, expert_offsets, source.
typedef struct ropeway_expert_scatter {
    // sizeof(ropeway_expert_scatter)
    size_t struct_size;
    // [tokens, hidden].
    const struct ropeway_tensor *x;
    // I32 [tokens, topk], on the device; -1 for no expert.
    const struct ropeway_tensor *topk_ids;
    // Number of experts.
    uint64_t experts;
} ropeway_expert_scatter;

// The weighted sum of each token's rows. Operands: rows, source, topk_weights, y.
typedef struct ropeway_expert_gather {
    // sizeof(ropeway_expert_gather)
    size_t struct_size;
    // [tokens * topk, hidden], in expert order.
    const struct ropeway_tensor *rows;
    // I32 [tokens * topk], on the device: token * topk + slot of each row.
    const struct ropeway_tensor *source;
    // F32 [tokens, topk].
    const struct ropeway_tensor *topk_weights;
} ropeway_expert_gather;

// A whole mixture-of-experts layer on the device: route, scatter, grouped gemm with swiglu, grouped gemm, gather.
// Operands: x, logits, bias, w_gate_up, w_down, y, topk_ids.
typedef struct ropeway_moe_ffn {
    // sizeof(ropeway_moe_ffn)
    size_t struct_size;
    // [tokens, hidden].
    const struct ropeway_tensor *x;
    // [tokens, experts].
    const struct ropeway_tensor *logits;
    // F32 [experts], added to the scores for the choice only. NULL: none.
    const struct ropeway_tensor *bias;
    // [experts, 2 * inter, hidden].
    const struct ropeway_tensor *w_gate_up;
    // [experts, hidden, inter].
    const struct ropeway_tensor *w_down;
    // As in ropeway_moe_route.
    const float *scale;
    // As in ropeway_moe_route.
    uint64_t topk;
    // As in ropeway_moe_route.
    uint64_t groups;
    // As in ropeway_moe_route.
    uint64_t topk_groups;
    // As in ropeway_moe_route.
    ropeway_score score;
    // As in ropeway_moe_route.
    uint32_t renormalize;
} ropeway_moe_ffn;

// What a plan promises about repeated executions.
typedef uint32_t ropeway_determinism;

// What a plan is. The strings live as long as the plan.
typedef struct ropeway_plan_info {
    // sizeof(ropeway_plan_info)
    size_t struct_size;
    // The op's name.
    const char *op;
    // The plan for people: kernels, configurations, launches.
    const char *description;
    // Bytes of workspace that an execution needs; 0 if none.
    uint64_t workspace_bytes;
    // Operands that an execution binds.
    size_t operand_count;
    // Arithmetic operations that the op cannot avoid, a multiply-add counting two.
    double operations;
    // Bytes that it must read or write at least once.
    double bytes;
    // What it promises about repeated executions.
    ropeway_determinism determinism;
    // Launches on the device.
    uint32_t launch_count;
} ropeway_plan_info;

// What an operand of a plan is. The name lives as long as the plan.
typedef struct ropeway_operand_info {
    // sizeof(ropeway_operand_info)
    size_t struct_size;
    // Its name.
    const char *name;
    // Bytes from its first to its last element.
    uint64_t bytes;
    // Element type.
    ropeway_dtype dtype;
    // Number of dimensions.
    uint32_t rank;
    // Extents as planned: row counts and lengths at their largest.
    uint64_t shape[ROPEWAY_MAX_RANK];
    // Strides in elements.
    uint64_t strides[ROPEWAY_MAX_RANK];
    // Whether it is contiguous.
    ropeway_layout layout;
    // 1 if the op writes it.
    uint32_t is_output;
    // 1 if it is bound in prepared form (plan_prepare).
    uint32_t is_prepared;
    // 0.
    uint32_t reserved;
    // If the op writes it: the inputs whose memory it may be, as a bit each (1 << place). Such an input and this operand may be bound to the same
    // place of one buffer, with one dtype and layout; other outputs must not overlap an operand.
    uint64_t in_place;
} ropeway_operand_info;

// The functions of the library. See the top of this header for errors, structs, handles and threads.
typedef struct ropeway_api {
    // Bytes of this library's table; ROPEWAY_HAS compares with it.
    size_t struct_size;
    // The library's version: "major.minor.patch".
    const char *library_version;
    // What went wrong in the calling thread's last call that failed, or "". Valid until the thread's next failure.
    const char *(*last_error)(void);
    // Has the library's messages up to this level given to a callback, for the whole process; NULL ends it. When it returns, an earlier callback
    // runs no more. UNSUPPORTED if the program that this library is linked into has a log of its own for it.
    ropeway_status (*set_log)(ropeway_log_level level, ropeway_log_callback callback, void *user);
    // Asks every backend for its devices. Takes no seconds and opens nothing that stays open.
    ropeway_status (*probe)(struct ropeway_probe **out);
    // Number of backends; 0 for NULL.
    size_t (*probe_backend_count)(const struct ropeway_probe *probe);
    // What a backend answered: how many devices it has, or why none.
    ropeway_status (*probe_backend)(const struct ropeway_probe *probe, size_t backend, struct ropeway_backend_info *out);
    // A device of a backend.
    ropeway_status (*probe_device)(const struct ropeway_probe *probe,
                                   size_t backend,
                                   size_t device,
                                   struct ropeway_device_info *out);
    // Releases a probe.
    void (*probe_release)(struct ropeway_probe *probe);
    // Opens a device by "backend" or "backend:number" ("cpu", "opencl:1"). `options` may be NULL.
    ropeway_status (*device_open)(const char *selector,
                                  const struct ropeway_device_options *options,
                                  struct ropeway_device **out);
    // Opens a device in a context that the program has made, so that the program's memory and queues can be imported. Backend "opencl": a cl_context,
    // which is retained, and one of its cl_device_ids. Others use the device's own context (CUDA: the primary one) and need no adoption: UNSUPPORTED.
    // `options` may be NULL.
    ropeway_status (*device_adopt)(const char *backend,
                                   void *context,
                                   void *native_device,
                                   const struct ropeway_device_options *options,
                                   struct ropeway_device **out);
    // What a device is and can do.
    ropeway_status (*device_info)(const struct ropeway_device *device, struct ropeway_device_info *out);
    // Memory in use and left.
    ropeway_status (*device_memory)(const struct ropeway_device *device, struct ropeway_memory_use *out);
    // The context that a device's memory and queues belong to, which stays the device's: a cl_context. Others: UNSUPPORTED.
    ropeway_status (*device_native_context)(const struct ropeway_device *device, void **out);
    // Releases a device's handle; the device closes when nothing of it is left.
    void (*device_release)(struct ropeway_device *device);
    // Allocates device memory with undefined content. 0 bytes are allowed.
    ropeway_status (*buffer_create)(const struct ropeway_device *device, uint64_t bytes, struct ropeway_buffer **out);
    // Takes in memory that the program allocated on this device: a CUDA device pointer at a multiple of 16 bytes, a cl_mem of the device's context, any
    // host pointer for "cpu" (elements that lie unaligned are refused at execution). `handle` must be that, of at least `bytes` bytes, until `callback` (may be NULL) is called with `user`; without a
    // callback, until the buffer is released and its work is done. UNSUPPORTED where the backend cannot (Vulkan).
    ropeway_status (*buffer_import)(const struct ropeway_device *device,
                                    void *handle,
                                    uint64_t bytes,
                                    ropeway_release_callback callback,
                                    void *user,
                                    struct ropeway_buffer **out);
    // Bytes; 0 for NULL.
    uint64_t (*buffer_size)(const struct ropeway_buffer *buffer);
    // Releases a buffer; its memory is freed after the work that uses it.
    void (*buffer_release)(struct ropeway_buffer *buffer);
    // Allocates host memory that the device copies to directly, zeroed.
    ropeway_status (*pinned_create)(const struct ropeway_device *device, uint64_t bytes, struct ropeway_pinned **out);
    // Its bytes, at one address for as long as it lives. The program leaves them alone while a copy is under way. NULL for NULL.
    void *(*pinned_data)(const struct ropeway_pinned *pinned);
    // Its size in bytes; 0 for NULL.
    uint64_t (*pinned_size)(const struct ropeway_pinned *pinned);
    // Waits until the copy into it is done (at once if there is none), at most `timeout_ns`, and reports what went wrong. After a failed copy the
    // memory takes no other.
    ropeway_status (*pinned_wait)(const struct ropeway_pinned *pinned, uint64_t timeout_ns);
    // Releases pinned memory, after waiting for a copy that is under way.
    void (*pinned_release)(struct ropeway_pinned *pinned);
    // A new queue.
    ropeway_status (*queue_create)(const struct ropeway_device *device,
                                   ropeway_queue_kind kind,
                                   struct ropeway_queue **out);
    // Takes in a stream or command queue that the program made on this device: a CUstream, a cl_command_queue. What is enqueued joins its order, and a
    // capture that the program has begun on it. It must stay valid until `callback` (may be NULL) is called with `user`; without a callback, until the queue
    // is released and its work is done. UNSUPPORTED where the backend cannot (cpu, Vulkan).
    ropeway_status (*queue_import)(const struct ropeway_device *device,
                                   void *handle,
                                   ropeway_release_callback callback,
                                   void *user,
                                   struct ropeway_queue **out);
    // Copies host bytes to the device. `data` is taken over before the call returns.
    ropeway_status (*queue_upload)(const struct ropeway_queue *queue,
                                   const struct ropeway_buffer *to,
                                   uint64_t offset,
                                   const void *data,
                                   uint64_t bytes);
    // Copies from the device and waits for it, and so for all earlier work of this queue.
    ropeway_status (*queue_read_blocking)(const struct ropeway_queue *queue,
                                          const struct ropeway_buffer *from,
                                          uint64_t offset,
                                          void *data,
                                          uint64_t bytes);
    // Begins a copy from the device to the begin of pinned memory, which pinned_wait waits for. INVALID_ARGUMENT while an earlier copy fills it.
    ropeway_status (*queue_download)(const struct ropeway_queue *queue,
                                     const struct ropeway_buffer *from,
                                     uint64_t offset,
                                     uint64_t bytes,
                                     const struct ropeway_pinned *into);
    // Copies within the device. The ranges do not overlap.
    ropeway_status (*queue_copy)(const struct ropeway_queue *queue,
                                 const struct ropeway_buffer *from,
                                 uint64_t from_offset,
                                 const struct ropeway_buffer *to,
                                 uint64_t to_offset,
                                 uint64_t bytes);
    // Sets every byte of a range.
    ropeway_status (*queue_fill)(const struct ropeway_queue *queue,
                                 const struct ropeway_buffer *to,
                                 uint64_t offset,
                                 uint64_t bytes,
                                 uint8_t value);
    // Checks the operands against the plan, on the host, and enqueues it.
    ropeway_status (*queue_execute)(const struct ropeway_queue *queue, const struct ropeway_execution *execution);
    // Enqueues a graph of the same device.
    ropeway_status (*queue_replay)(const struct ropeway_queue *queue, const struct ropeway_graph *graph);
    // An event that is done when all earlier work of this queue is.
    ropeway_status (*queue_record)(const struct ropeway_queue *queue, struct ropeway_event **out);
    // Makes later work of this queue wait, on the device, for an event of the same device, which may be another queue's.
    ropeway_status (*queue_wait)(const struct ropeway_queue *queue, const struct ropeway_event *event);
    // Hands everything to the device that the driver still holds back.
    ropeway_status (*queue_flush)(const struct ropeway_queue *queue);
    // Waits until all earlier work is done, at most `timeout_ns` (ROPEWAY_NO_TIMEOUT: without limit), and reports what went wrong in it: among others
    // DATA_OUT_OF_RANGE if a kernel met an id, offset or length that is out of range.
    ropeway_status (*queue_synchronize)(const struct ropeway_queue *queue, uint64_t timeout_ns);
    // Releases a queue; what is enqueued still runs.
    void (*queue_release)(struct ropeway_queue *queue);
    // Sets `done` to 1 if the work before the event is done, else to 0.
    ropeway_status (*event_is_done)(const struct ropeway_event *event, uint32_t *done);
    // Waits for it, at most `timeout_ns`, and reports what went wrong in the work before it.
    ropeway_status (*event_wait)(const struct ropeway_event *event, uint64_t timeout_ns);
    // Device time between two events of one device, both done.
    ropeway_status (*event_elapsed)(const struct ropeway_event *earlier,
                                    const struct ropeway_event *later,
                                    uint64_t *nanoseconds);
    // Releases an event.
    void (*event_release)(struct ropeway_event *event);
    // The name of the op with this number, for plan_create; NULL past the last.
    const char *(*op_name)(size_t index);
    // Plans and compiles any op by its name. Equal requests on one device are planned once. The plan holds for all row counts and lengths up to those of
    // the request. `options` may be NULL.
    ropeway_status (*plan_create)(const struct ropeway_device *device,
                                  const struct ropeway_request *request,
                                  const struct ropeway_plan_options *options,
                                  struct ropeway_plan **out);
    // plan_create of gemm.
    ropeway_status (*plan_gemm)(const struct ropeway_device *device,
                                const struct ropeway_gemm *op,
                                const struct ropeway_plan_options *options,
                                struct ropeway_plan **out);
    // plan_create of grouped_gemm.
    ropeway_status (*plan_grouped_gemm)(const struct ropeway_device *device,
                                        const struct ropeway_grouped_gemm *op,
                                        const struct ropeway_plan_options *options,
                                        struct ropeway_plan **out);
    // plan_create of grouped_gemm_masked.
    ropeway_status (*plan_grouped_gemm_masked)(const struct ropeway_device *device,
                                               const struct ropeway_grouped_gemm_masked *op,
                                               const struct ropeway_plan_options *options,
                                               struct ropeway_plan **out);
    // plan_create of attention.
    ropeway_status (*plan_attention)(const struct ropeway_device *device,
                                     const struct ropeway_attention *op,
                                     const struct ropeway_plan_options *options,
                                     struct ropeway_plan **out);
    // plan_create of attention_varlen.
    ropeway_status (*plan_attention_varlen)(const struct ropeway_device *device,
                                            const struct ropeway_attention_varlen *op,
                                            const struct ropeway_plan_options *options,
                                            struct ropeway_plan **out);
    // plan_create of attention_paged.
    ropeway_status (*plan_attention_paged)(const struct ropeway_device *device,
                                           const struct ropeway_attention_paged *op,
                                           const struct ropeway_plan_options *options,
                                           struct ropeway_plan **out);
    // plan_create of moe_route.
    ropeway_status (*plan_moe_route)(const struct ropeway_device *device,
                                     const struct ropeway_moe_route *op,
                                     const struct ropeway_plan_options *options,
                                     struct ropeway_plan **out);
    // plan_create of expert_scatter.
    ropeway_status (*plan_expert_scatter)(const struct ropeway_device *device,
                                          const struct ropeway_expert_scatter *op,
                                          const struct ropeway_plan_options *options,
                                          struct ropeway_plan **out);
    // plan_create of expert_gather.
    ropeway_status (*plan_expert_gather)(const struct ropeway_device *device,
                                         const struct ropeway_expert_gather *op,
                                         const struct ropeway_plan_options *options,
                                         struct ropeway_plan **out);
    // plan_create of moe_ffn.
    ropeway_status (*plan_moe_ffn)(const struct ropeway_device *device,
                                   const struct ropeway_moe_ffn *op,
                                   const struct ropeway_plan_options *options,
                                   struct ropeway_plan **out);
    // What a plan is.
    ropeway_status (*plan_info)(const struct ropeway_plan *plan, struct ropeway_plan_info *out);
    // What the operand in this place is: the order in which an execution binds them, inputs first.
    ropeway_status (*plan_operand)(const struct ropeway_plan *plan, size_t index, struct ropeway_operand_info *out);
    // Brings a constant operand (a weight) into the form that the plan wants where its options list the operand as prepared; enqueued on `queue`. Bind
    // the buffer in place of the operand, described as plan_operand says.
    ropeway_status (*plan_prepare)(const struct ropeway_plan *plan,
                                   const char *operand,
                                   const struct ropeway_tensor *tensor,
                                   const struct ropeway_queue *queue,
                                   struct ropeway_buffer **out);
    // Releases a plan.
    void (*plan_release)(struct ropeway_plan *plan);
    // Makes a graph of executions, in their order; all allocating happens now, queue_replay only submits. The plans, buffers and workspaces stay alive
    // with it.
    ropeway_status (*graph_create)(const struct ropeway_device *device,
                                   const struct ropeway_execution *executions,
                                   size_t count,
                                   struct ropeway_graph **out);
    // Puts other tensors in place of operands (by their places) of an execution (by its number); all its operands must then satisfy the plan together, so a
    // change of row count names every operand that has those rows. Holds for later replays. A failure leaves the graph as it was.
    ropeway_status (*graph_rebind)(const struct ropeway_graph *graph,
                                   size_t execution,
                                   const uint32_t *indices,
                                   const struct ropeway_tensor *operands,
                                   size_t count);
    // Releases a graph.
    void (*graph_release)(struct ropeway_graph *graph);
} ropeway_api;

// It has devices.
#define ROPEWAY_AVAILABLE 0

// A library could not be loaded.
#define ROPEWAY_UNAVAILABLE_LIBRARY_NOT_FOUND 1

// A library lacks a function that the backend needs.
#define ROPEWAY_UNAVAILABLE_SYMBOL_MISSING 2

// The driver is older than the backend can use.
#define ROPEWAY_UNAVAILABLE_VERSION_TOO_OLD 3

// The library is there, but reports no device.
#define ROPEWAY_UNAVAILABLE_NO_DEVICE 4

// The only devices there lack what the backend cannot do without.
#define ROPEWAY_UNAVAILABLE_FEATURE_MISSING 5

// The library is there, but its initialisation failed.
#define ROPEWAY_UNAVAILABLE_INITIALISATION_FAILED 6

// Something that no code above covers; the text says it.
#define ROPEWAY_UNAVAILABLE_OTHER 7

// Anything else.
#define ROPEWAY_DEVICE_KIND_OTHER 0

// Few wide cores, explicit vectors, caches.
#define ROPEWAY_DEVICE_KIND_CPU 1

// Many narrow lanes, explicit local memory.
#define ROPEWAY_DEVICE_KIND_GPU 2

// A matrix accelerator.
#define ROPEWAY_DEVICE_KIND_NPU 3

// The named chip itself.
#define ROPEWAY_EXECUTION_HARDWARE 0

// A driver that runs a vendor-neutral interface on the host's processor (PoCL, lavapipe).
#define ROPEWAY_EXECUTION_SOFTWARE 1

// A double of a vendor's driver.
#define ROPEWAY_EXECUTION_EMULATED 2

// Nothing: calls are recorded only.
#define ROPEWAY_EXECUTION_RECORDED 3

// Nothing.
#define ROPEWAY_LOG_OFF 0

// What failed and is not returned to a caller.
#define ROPEWAY_LOG_ERROR 1

// What was worked round.
#define ROPEWAY_LOG_WARN 2

// What happens once.
#define ROPEWAY_LOG_INFO 3

// Plans, compilations.
#define ROPEWAY_LOG_DEBUG 4

// Everything.
#define ROPEWAY_LOG_TRACE 5

// Nothing.
#define ROPEWAY_ACTIVATION_NONE 0

// max(x, 0); NaN stays NaN.
#define ROPEWAY_ACTIVATION_RELU 1

// By the error function.
#define ROPEWAY_ACTIVATION_GELU 2

// By the tanh approximation.
#define ROPEWAY_ACTIVATION_GELU_TANH 3

// x * sigmoid(x).
#define ROPEWAY_ACTIVATION_SILU 4

// silu(gate) * up: columns 0 .. n/2 are the gate, n/2 .. n the value; the output has n/2 columns.
#define ROPEWAY_ACTIVATION_SWIGLU 5

// Softmax over all experts.
#define ROPEWAY_SCORE_SOFTMAX 0

// Sigmoid of each logit.
#define ROPEWAY_SCORE_SIGMOID 1

// True or false: `integer` is 1 or 0.
#define ROPEWAY_ATTRIBUTE_FLAG 0

// A whole number of 0 or more: `integer`.
#define ROPEWAY_ATTRIBUTE_INTEGER 1

// A number: `number`.
#define ROPEWAY_ATTRIBUTE_NUMBER 2

// A word: `word`.
#define ROPEWAY_ATTRIBUTE_WORD 3

// Results may differ from run to run within the error bound.
#define ROPEWAY_DETERMINISM_NONE 0

// Two runs with equal inputs on one device give equal bits.
#define ROPEWAY_DETERMINISM_RUN_TO_RUN 1

// Besides, a row's result does not depend on which or how many other rows are in the batch.
#define ROPEWAY_DETERMINISM_BATCH_INVARIANT 2

// Executions and copies.
#define ROPEWAY_QUEUE_COMPUTE 0

// Copies that should run beside a compute queue where the device has an engine for them.
#define ROPEWAY_QUEUE_TRANSFER 1

// It did what it was asked.
#define ROPEWAY_OK 0

// The request is malformed; the message names the argument, what was found and what is expected.
#define ROPEWAY_ERROR_INVALID_ARGUMENT 1

// The request is sound, but this device or this library cannot do it; the message says what it lacks.
#define ROPEWAY_ERROR_UNSUPPORTED 2

// A vendor's library, driver or device is not there; the message says what to install.
#define ROPEWAY_ERROR_UNAVAILABLE 3

// The device or the host has no room for an allocation. The device stays usable.
#define ROPEWAY_ERROR_OUT_OF_MEMORY 4

// The device is gone. Every later call on it fails in the same way; open it anew.
#define ROPEWAY_ERROR_DEVICE_LOST 5

// A wait passed its time limit. The work may still be running.
#define ROPEWAY_ERROR_TIMEOUT 6

// A kernel did not compile; the message holds the compiler's log.
#define ROPEWAY_ERROR_COMPILE_FAILED 7

// The driver refused or aborted a launch.
#define ROPEWAY_ERROR_LAUNCH_FAILED 8

// A kernel met a value in device memory (an id, an offset, a length) that is out of range and skipped it.
#define ROPEWAY_ERROR_DATA_OUT_OF_RANGE 9

// A file could not be read, written or trusted.
#define ROPEWAY_ERROR_FILE 10

// The driver reported something that no code above covers.
#define ROPEWAY_ERROR_DRIVER 11

// A fault in the library itself. Please report the message.
#define ROPEWAY_ERROR_INTERNAL 12

// What the function at hand takes by default.
#define ROPEWAY_DTYPE_DEFAULT 0

// IEEE 754 binary32.
#define ROPEWAY_DTYPE_F32 1

// IEEE 754 binary16.
#define ROPEWAY_DTYPE_F16 2

// bfloat16: the upper half of a binary32.
#define ROPEWAY_DTYPE_BF16 3

// Signed 8-bit integer.
#define ROPEWAY_DTYPE_I8 4

// Signed 32-bit integer.
#define ROPEWAY_DTYPE_I32 5

// OCP 8-bit float, 4 exponent and 3 mantissa bits.
#define ROPEWAY_DTYPE_F8_E4M3 6

// OCP 8-bit float, 5 exponent and 2 mantissa bits.
#define ROPEWAY_DTYPE_F8_E5M2 7

// Unsigned byte; also the storage of quantised blocks.
#define ROPEWAY_DTYPE_U8 8

// Signed 4-bit integer, two to a byte, the first in the low half.
#define ROPEWAY_DTYPE_I4 9

// OCP MXFP4.
#define ROPEWAY_DTYPE_MXFP4 10

// GGML block of 32 weights, 18 bytes. A tensor of blocks is described as rows of U8, with b_format.
#define ROPEWAY_DTYPE_Q4_0 11

// GGML block of 32 weights, 20 bytes.
#define ROPEWAY_DTYPE_Q4_1 12

// GGML block of 32 weights, 34 bytes.
#define ROPEWAY_DTYPE_Q8_0 13

// GGML block of 256 weights, 144 bytes.
#define ROPEWAY_DTYPE_Q4_K 14

// GGML block of 256 weights, 210 bytes.
#define ROPEWAY_DTYPE_Q6_K 15

// Row-major without gaps; `strides` are not read.
#define ROPEWAY_LAYOUT_CONTIGUOUS 0

// As `strides` say.
#define ROPEWAY_LAYOUT_STRIDED 1

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The table of functions of this version of the interface (ROPEWAY_API_VERSION), which lives as long as the process; NULL if the library does not speak
// that version. May be called from any thread, any number of times.
const struct ropeway_api *ropeway_get_api(uint32_t version);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ROPEWAY_H */
