/* Memory and queues of the program's own: host memory on the cpu device, a cl_mem and a cl_command_queue on OpenCL, a whole context adopted. */
#include "check.h"

#include <dlfcn.h>

static int released;

static void on_release(void *user) {
    HOLDS(user == &released);
    released++;
}

/* Doubles what lies in `from`, into `to`: d = 2 * a * 1. Gives what the execution gave. */
static ropeway_status doubled(ropeway_device *device, ropeway_queue *queue, ropeway_buffer *from, ropeway_buffer *to) {
    const float two = 2, one = 1;
    ropeway_tensor operands[3] = {F32(2, 16, 1), F32(2, 1, 1), F32(2, 16, 1)};
    ropeway_gemm op;
    ropeway_plan *plan;
    ropeway_buffer *workspace;
    ropeway_execution execution;
    ropeway_status status;
    ROPEWAY_INIT(op);
    op.a = &operands[0];
    op.b = &operands[1];
    op.alpha = &two;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    operands[0].buffer = from;
    operands[2].buffer = to;
    place(device, queue, &operands[1], &one);
    workspace = workspace_of(device, plan);
    ROPEWAY_INIT(execution);
    execution.plan = plan;
    execution.operands = operands;
    execution.operand_count = 3;
    execution.workspace = workspace;
    status = rw->queue_execute(queue, &execution);
    rw->buffer_release(workspace);
    drop(&operands[1], 1);
    rw->plan_release(plan);
    return status;
}

static void host_memory(ropeway_device *device) {
    ropeway_device_info info;
    ropeway_queue *queue;
    ropeway_buffer *from, *to;
    float *in, *out;
    void *stream;
    ROPEWAY_INIT(info);
    OK(rw->device_info(device, &info));
    in = aligned_alloc(info.base_alignment, 1024);
    out = aligned_alloc(info.base_alignment, 1024);
    HOLDS(in != NULL && out != NULL);
    for (int i = 0; i < 256; i++) in[i] = (float)i;
    OK(rw->queue_create(device, ROPEWAY_QUEUE_COMPUTE, &queue));
    OK(rw->buffer_import(device, in, 1024, on_release, &released, &from));
    OK(rw->buffer_import(device, out, 1024, on_release, &released, &to));
    /* No copy: what the program writes is what the kernel reads, and the other way round. */
    in[3] = 50;
    OK(doubled(device, queue, from, to));
    OK(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT));
    for (int i = 0; i < 16; i++) HOLDS(out[i] == 2 * in[i]);
    HOLDS(released == 0);
    rw->buffer_release(from);

    /* Memory may begin anywhere; its elements must be aligned. */
    OK(rw->buffer_import(device, in + 1, 512, on_release, &released, &from));
    OK(doubled(device, queue, from, to));
    OK(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT));
    for (int i = 0; i < 16; i++) HOLDS(out[i] == 2 * in[i + 1]);
    rw->buffer_release(from);
    OK(rw->buffer_import(device, (char *)in + 1, 512, on_release, &released, &from));
    REFUSED(doubled(device, queue, from, to), ROPEWAY_ERROR_INVALID_ARGUMENT, "aligned");
    rw->buffer_release(from);
    rw->buffer_release(to);
    rw->queue_release(queue);
    HOLDS(released == 4);

    /* An import that fails tells nobody of a release. */
    REFUSED(rw->buffer_import(device, NULL, 64, on_release, &released, &from), ROPEWAY_ERROR_INVALID_ARGUMENT, "handle: found NULL");
    REFUSED(rw->queue_import(device, in, on_release, &released, &queue), ROPEWAY_ERROR_UNSUPPORTED, "foreign queues");
    REFUSED(rw->device_native_context(device, &stream), ROPEWAY_ERROR_UNSUPPORTED, "cpu");
    HOLDS(released == 4);
    free(in);
    free(out);
}

/* What is needed of OpenCL, without its headers. */
static struct {
    int32_t (*context_info)(void *, uint32_t, size_t, void *, size_t *);
    void *(*create_context)(const intptr_t *, uint32_t, void **, void *, void *, int32_t *);
    void *(*create_buffer)(void *, uint64_t, size_t, void *, int32_t *);
    void *(*create_queue)(void *, void *, uint64_t, int32_t *);
    int32_t (*write)(void *, void *, uint32_t, size_t, size_t, const void *, uint32_t, const void *, void *);
    int32_t (*read)(void *, void *, uint32_t, size_t, size_t, void *, uint32_t, const void *, void *);
    int32_t (*release_buffer)(void *), (*release_queue)(void *), (*release_context)(void *);
} cl;

static void load(void) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW);
    HOLDS(library != NULL);
    *(void **)&cl.context_info = dlsym(library, "clGetContextInfo");
    *(void **)&cl.create_context = dlsym(library, "clCreateContext");
    *(void **)&cl.create_buffer = dlsym(library, "clCreateBuffer");
    *(void **)&cl.create_queue = dlsym(library, "clCreateCommandQueue");
    *(void **)&cl.write = dlsym(library, "clEnqueueWriteBuffer");
    *(void **)&cl.read = dlsym(library, "clEnqueueReadBuffer");
    *(void **)&cl.release_buffer = dlsym(library, "clReleaseMemObject");
    *(void **)&cl.release_queue = dlsym(library, "clReleaseCommandQueue");
    *(void **)&cl.release_context = dlsym(library, "clReleaseContext");
}

/* The program's memory on the program's queue: everything is in that queue's order, with no synchronisation in between. */
static void opencl_objects(ropeway_device *device, void *context, void *cl_device) {
    const uint64_t read_write = 1;
    float in[16], out[16];
    int32_t code;
    void *from_mem = cl.create_buffer(context, read_write, sizeof(in), NULL, &code);
    void *to_mem = cl.create_buffer(context, read_write, sizeof(out), NULL, &code);
    void *cl_queue = cl.create_queue(context, cl_device, 0, &code);
    ropeway_buffer *from, *to;
    ropeway_queue *queue;
    HOLDS(from_mem != NULL && to_mem != NULL && cl_queue != NULL);
    released = 0;
    REFUSED(rw->buffer_import(device, from_mem, 65, on_release, &released, &from), ROPEWAY_ERROR_INVALID_ARGUMENT, "bytes: found 65");
    OK(rw->buffer_import(device, from_mem, sizeof(in), on_release, &released, &from));
    OK(rw->buffer_import(device, to_mem, sizeof(out), on_release, &released, &to));
    OK(rw->queue_import(device, cl_queue, on_release, &released, &queue));
    for (int i = 0; i < 16; i++) in[i] = (float)i * 3;
    HOLDS(cl.write(cl_queue, from_mem, 0, 0, sizeof(in), in, 0, NULL, NULL) == 0);
    OK(doubled(device, queue, from, to));
    HOLDS(cl.read(cl_queue, to_mem, 1, 0, sizeof(out), out, 0, NULL, NULL) == 0);
    for (int i = 0; i < 16; i++) HOLDS(out[i] == 2 * in[i]);
    OK(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT));
    rw->buffer_release(from);
    rw->buffer_release(to);
    rw->queue_release(queue);
    HOLDS(released == 3);
    cl.release_buffer(from_mem);
    cl.release_buffer(to_mem);
    cl.release_queue(cl_queue);
}

static void opencl(ropeway_device *device) {
    const uint32_t context_devices = 0x1081;
    ropeway_device *adopted;
    void *context, *own, *cl_device;
    int32_t code;
    load();
    OK(rw->device_native_context(device, &context));
    HOLDS(cl.context_info(context, context_devices, sizeof(cl_device), &cl_device, NULL) == 0);
    opencl_objects(device, context, cl_device);

    own = cl.create_context(NULL, 1, &cl_device, NULL, NULL, &code);
    HOLDS(own != NULL);
    REFUSED(rw->device_adopt("opencl", own, NULL, NULL, &adopted), ROPEWAY_ERROR_INVALID_ARGUMENT, "NULL");
    OK(rw->device_adopt("opencl", own, cl_device, NULL, &adopted));
    opencl_objects(adopted, own, cl_device);
    rw->device_release(adopted);
    cl.release_context(own);
}

int main(int argc, char **argv) {
    const char *selector = argc > 1 ? argv[1] : "cpu";
    ropeway_device *device;
    begin();
    OK(rw->device_open(selector, NULL, &device));
    if (strncmp(selector, "opencl", 6) == 0) {
        opencl(device);
    } else {
        host_memory(device);
    }
    rw->device_release(device);
    return 0;
}
