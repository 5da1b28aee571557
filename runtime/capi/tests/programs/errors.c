/* Statuses, messages, structs of other sizes, releases, the log. */
#include "check.h"

struct longer_tensor {
    ropeway_tensor tensor;
    uint64_t later;
};

static void sizes(ropeway_device *device) {
    ropeway_gemm op;
    ropeway_plan *plan = (ropeway_plan *)1;
    ropeway_tensor a = F32(2, 4, 8), b = F32(2, 8, 4);
    struct longer_tensor longer;
    ropeway_device_info info;

    ROPEWAY_INIT(op);
    op.a = &a;
    op.b = &b;
    a.struct_size = 0;
    REFUSED(rw->plan_gemm(device, &op, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "a: found struct_size 0");
    HOLDS(plan == NULL);
    a.struct_size = sizeof(a);

    /* A later header's struct: all is well until its new field is used. */
    memset(&longer, 0, sizeof(longer));
    longer.tensor = a;
    longer.tensor.struct_size = sizeof(longer);
    op.a = &longer.tensor;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    rw->plan_release(plan);
    longer.later = 1;
    REFUSED(rw->plan_gemm(device, &op, NULL, &plan), ROPEWAY_ERROR_UNSUPPORTED, "a: the field at byte 176 of ropeway_tensor is set");

    /* An earlier header's struct to be filled: what it has not is left alone. */
    memset(&info, 0x5a, sizeof(info));
    info.struct_size = offsetof(ropeway_device_info, name);
    OK(rw->device_info(device, &info));
    HOLDS(info.struct_size == offsetof(ropeway_device_info, name));
    HOLDS(strlen(info.selector) > 0 && strlen(info.backend) > 0);
    HOLDS(info.memory == 0x5a5a5a5a5a5a5a5a);
}

static void arguments(ropeway_device *device, ropeway_queue *queue) {
    ropeway_device *none;
    ropeway_buffer *buffer;
    ropeway_plan *plan;
    ropeway_request request;
    ropeway_attribute attribute;
    ropeway_tensor inputs[2] = {F32(2, 4, 8), F32(2, 8, 4)};
    ropeway_gemm op;
    ropeway_execution execution;
    float word = 0;

    REFUSED(rw->device_open("nothing", NULL, &none), ROPEWAY_ERROR_INVALID_ARGUMENT, "device: found \"nothing\"");
    HOLDS(none == NULL);
    REFUSED(rw->device_open(NULL, NULL, &none), ROPEWAY_ERROR_INVALID_ARGUMENT, "selector: found NULL");
    REFUSED(rw->device_open("cpu", NULL, NULL), ROPEWAY_ERROR_INVALID_ARGUMENT, "out: found NULL");
    REFUSED(rw->device_open("\xff", NULL, &none), ROPEWAY_ERROR_INVALID_ARGUMENT, "UTF-8");
    REFUSED(rw->device_adopt("cpu", &word, &word, NULL, &none), ROPEWAY_ERROR_UNSUPPORTED, "\"cpu\"");
    REFUSED(rw->buffer_create(NULL, 4, &buffer), ROPEWAY_ERROR_INVALID_ARGUMENT, "device: found NULL");
    REFUSED(rw->buffer_create(device, UINT64_MAX, &buffer), ROPEWAY_ERROR_OUT_OF_MEMORY, "");
    HOLDS(buffer == NULL);
    REFUSED(rw->queue_create(device, 9, &queue), ROPEWAY_ERROR_INVALID_ARGUMENT, "kind: found 9");
    OK(rw->queue_create(device, ROPEWAY_QUEUE_COMPUTE, &queue));

    OK(rw->buffer_create(device, 64, &buffer));
    REFUSED(rw->queue_upload(queue, buffer, 61, &word, 4), ROPEWAY_ERROR_INVALID_ARGUMENT, "to: slice: found 4 bytes at offset 61");
    REFUSED(rw->queue_upload(queue, buffer, 0, NULL, 4), ROPEWAY_ERROR_INVALID_ARGUMENT, "data: found NULL for 4 bytes");
    REFUSED(rw->queue_read_blocking(queue, NULL, 0, &word, 4), ROPEWAY_ERROR_INVALID_ARGUMENT, "from: found NULL");
    REFUSED(rw->queue_copy(queue, buffer, 0, buffer, 8, 16), ROPEWAY_ERROR_INVALID_ARGUMENT, "overlap");
    OK(rw->queue_upload(queue, buffer, 64, NULL, 0));
    OK(rw->queue_read_blocking(queue, buffer, 64, NULL, 0));

    ROPEWAY_INIT(request);
    request.op = "gemm";
    request.inputs = inputs;
    request.input_count = 2;
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "inputs[0].name: found NULL");
    inputs[0].name = inputs[1].name = "a";
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "a second tensor");
    inputs[1].name = "b";
    ROPEWAY_INIT(attribute);
    attribute.name = "trans_c";
    request.attributes = &attribute;
    request.attribute_count = 1;
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "trans_c: found an unknown attribute");
    attribute.name = "alpha";
    attribute.kind = ROPEWAY_ATTRIBUTE_NUMBER;
    attribute.number = NAN;
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "alpha: found NaN");
    request.attribute_count = 0;
    request.op = "gem";
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "op: found \"gem\", expected one of");
    request.op = "gemm";
    inputs[1].rank = 9;
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "b: found 9 dimensions");
    inputs[1].rank = 2;
    inputs[1].dtype = 77;
    REFUSED(rw->plan_create(device, &request, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "b: found dtype 77");
    inputs[1].dtype = ROPEWAY_DTYPE_F32;

    ROPEWAY_INIT(op);
    op.a = &inputs[0];
    REFUSED(rw->plan_gemm(device, &op, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "b: found nothing");
    op.b = &inputs[1];
    op.trans_a = 2;
    REFUSED(rw->plan_gemm(device, &op, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "trans_a: found 2");
    op.trans_a = 0;
    op.activation = 99;
    REFUSED(rw->plan_gemm(device, &op, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "activation: found 99");
    op.activation = 0;
    REFUSED(rw->plan_gemm(device, NULL, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "gemm: found NULL");

    OK(rw->plan_gemm(device, &op, NULL, &plan));
    ROPEWAY_INIT(execution);
    REFUSED(rw->queue_execute(queue, &execution), ROPEWAY_ERROR_INVALID_ARGUMENT, "plan: found NULL");
    execution.plan = plan;
    execution.operands = inputs;
    execution.operand_count = 2;
    REFUSED(rw->queue_execute(queue, &execution), ROPEWAY_ERROR_INVALID_ARGUMENT, "found 2 operands, expected 3: a, b, d");
    {
        ropeway_tensor operands[3] = {inputs[0], inputs[1], F32(2, 4, 4)};
        execution.operands = operands;
        execution.operand_count = 3;
        REFUSED(rw->queue_execute(queue, &execution), ROPEWAY_ERROR_INVALID_ARGUMENT, "a: found a tensor without a buffer");
        operands[0].buffer = operands[1].buffer = operands[2].buffer = buffer;
        REFUSED(rw->queue_execute(queue, &execution), ROPEWAY_ERROR_INVALID_ARGUMENT, "a: view: found F32 [4, 8] at element 0");
        operands[0].name = "b";
        REFUSED(rw->queue_execute(queue, &execution), ROPEWAY_ERROR_INVALID_ARGUMENT, "a tensor named \"b\" in its place");
    }
    rw->plan_release(plan);
    rw->buffer_release(buffer);
    rw->queue_release(queue);
}

static void nulls(void) {
    rw->probe_release(NULL);
    rw->device_release(NULL);
    rw->buffer_release(NULL);
    rw->pinned_release(NULL);
    rw->queue_release(NULL);
    rw->event_release(NULL);
    rw->plan_release(NULL);
    rw->graph_release(NULL);
    HOLDS(rw->probe_backend_count(NULL) == 0 && rw->buffer_size(NULL) == 0 && rw->pinned_size(NULL) == 0);
    HOLDS(rw->pinned_data(NULL) == NULL);
    REFUSED(rw->event_wait(NULL, 0), ROPEWAY_ERROR_INVALID_ARGUMENT, "event: found NULL");
    REFUSED(rw->queue_synchronize(NULL, 0), ROPEWAY_ERROR_INVALID_ARGUMENT, "queue: found NULL");
    REFUSED(rw->graph_rebind(NULL, 0, NULL, NULL, 0), ROPEWAY_ERROR_INVALID_ARGUMENT, "graph: found NULL");
    REFUSED(rw->plan_info(NULL, NULL), ROPEWAY_ERROR_INVALID_ARGUMENT, "plan: found NULL");
    REFUSED(rw->pinned_wait(NULL, 0), ROPEWAY_ERROR_INVALID_ARGUMENT, "pinned: found NULL");
}

struct heard {
    int planned;
    ropeway_status from_inside;
};

static void hear(void *user, ropeway_log_level level, const char *target, const char *message) {
    struct heard *heard = user;
    HOLDS(level >= ROPEWAY_LOG_ERROR && level <= ROPEWAY_LOG_DEBUG);
    if (strncmp(target, "ropeway", 7) == 0 && strstr(message, "planned") != NULL && strstr(message, "gemm") != NULL) heard->planned++;
    heard->from_inside = rw->set_log(ROPEWAY_LOG_OFF, NULL, NULL);
}

static void plan_product(ropeway_device *device, int m) {
    ropeway_tensor a = F32(2, m, 8), b = F32(2, 8, 4);
    ropeway_gemm op;
    ropeway_plan *plan;
    ROPEWAY_INIT(op);
    op.a = &a;
    op.b = &b;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    rw->plan_release(plan);
}

static void logging(ropeway_device *device) {
    struct heard heard = {0, ROPEWAY_OK};
    REFUSED(rw->set_log(99, hear, &heard), ROPEWAY_ERROR_INVALID_ARGUMENT, "level: found 99");
    plan_product(device, 31);
    HOLDS(heard.planned == 0);
    OK(rw->set_log(ROPEWAY_LOG_DEBUG, hear, &heard));
    plan_product(device, 32);
    HOLDS(heard.planned == 1);
    HOLDS(heard.from_inside == ROPEWAY_ERROR_INVALID_ARGUMENT);
    OK(rw->set_log(ROPEWAY_LOG_WARN, hear, &heard));
    plan_product(device, 33);
    HOLDS(heard.planned == 1);
    OK(rw->set_log(ROPEWAY_LOG_OFF, NULL, NULL));
    plan_product(device, 34);
    HOLDS(heard.planned == 1);
}

/* Every handle lives on after those it came from are gone. */
static void any_order(const char *selector) {
    ropeway_device *device;
    ropeway_queue *queue;
    ropeway_buffer *buffer;
    ropeway_event *event;
    ropeway_pinned *pinned;
    uint32_t done, word = 0;
    OK(rw->device_open(selector, NULL, &device));
    OK(rw->queue_create(device, ROPEWAY_QUEUE_COMPUTE, &queue));
    OK(rw->buffer_create(device, 4, &buffer));
    OK(rw->pinned_create(device, 4, &pinned));
    rw->device_release(device);
    OK(rw->queue_fill(queue, buffer, 0, 4, 7));
    OK(rw->queue_record(queue, &event));
    OK(rw->queue_download(queue, buffer, 0, 4, pinned));
    rw->buffer_release(buffer);
    rw->queue_release(queue);
    OK(rw->pinned_wait(pinned, ROPEWAY_NO_TIMEOUT));
    memcpy(&word, rw->pinned_data(pinned), 4);
    HOLDS(word == 0x07070707);
    rw->pinned_release(pinned);
    OK(rw->event_wait(event, ROPEWAY_NO_TIMEOUT));
    OK(rw->event_is_done(event, &done));
    HOLDS(done == 1);
    rw->event_release(event);
}

int main(int argc, char **argv) {
    const char *selector = argc > 1 ? argv[1] : "cpu";
    ropeway_device *device;
    ropeway_queue *queue = NULL;
    begin();
    HOLDS(ropeway_get_api(0) == NULL && ropeway_get_api(ROPEWAY_API_VERSION + 1) == NULL);
    HOLDS(ropeway_get_api(ROPEWAY_API_VERSION) == rw);
    HOLDS(ROPEWAY_HAS(rw, graph_release));
    HOLDS(strcmp(rw->last_error(), "") == 0);
    nulls();
    OK(rw->device_open(selector, NULL, &device));
    sizes(device);
    arguments(device, queue);
    logging(device);
    rw->device_release(device);
    any_order(selector);
    return 0;
}
