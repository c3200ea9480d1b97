/* A real external delegate for tests. It needs no header of TensorFlow: the part of the interface that it uses is declared here.
 *
 * Options (all are strings; an unknown one makes tflite_plugin_create_delegate return NULL):
 *   mode    none     claims no operator
 *           exact    claims builtin operators and runs the runtime's own kernels (the default)
 *           off      as exact, then adds `steps` quantization steps to the outputs of operator `at`, clipped to the type
 *           vary     as exact, then changes the outputs of operator `at` in another way at each invocation
 *           nan      as exact, then writes NaN into float outputs of operator `at`, the lowest value into integer ones
 *           edgetpu  claims the custom operator `edgetpu-custom-op` alone; its output number o has at element i the value
 *                    (sum of all bytes of all inputs + 31 i + 7 o) mod 256: as a byte in 8-bit tensors, as a number in other
 *                    integer tensors, divided by 255 in float32 tensors
 *           refuse   cannot be created
 *           fail     returns an error
 *           crash    aborts the process
 *   when    create, prepare or invoke (the default): for crash and fail
 *   after   for crash and fail at invoke: so many invocations go well before; 0
 *   at      number of an operator as in the model; -1, the default: all
 *   node    name of an operator's output tensor: that operator instead of `at`, whatever its number in a part of the model; crash
 *           and fail at invoke then do so where the operator is among those that run
 *   steps   1; negative ones too. A tensor without a scale counts 1/256 as a step where it is float
 *   claim   numbers of the operators to claim, with commas; default: all that it can
 *   delay   microseconds that each invocation of a partition takes longer; 0
 *   reason  what refuse and fail say; default: nothing
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, ERROR = 1 };
enum { FLOAT32 = 1, INT32 = 2, UINT8 = 3, INT64 = 4, INT16 = 7, INT8 = 9 };
enum { CUSTOM = 32, DELEGATE = 51 };
enum { CONSTANT = 1 };

typedef struct {
  int size;
  int data[];
} IntArray;

typedef struct {
  int type;
  void* data;
  IntArray* dims;
  float scale;
  int32_t zero_point;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  void* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  int quantization_type;
  void* quantization;
  void* sparsity;
  const IntArray* dims_signature;
} Tensor;

typedef struct {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  void* delegate;
  bool might_have_side_effect;
} Node;

typedef struct Context Context;
typedef struct Delegate Delegate;

/* Passed by value, and of 64 bytes once, 80 in TensorFlow 2.14, 88 now: a larger one is harmless. */
typedef struct {
  void* (*init)(Context*, const char*, size_t);
  void (*free)(Context*, void*);
  int (*prepare)(Context*, Node*);
  int (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
} Registration;

struct Context {
  size_t tensors_size;
  int (*GetExecutionPlan)(Context*, IntArray**);
  Tensor* tensors;
  void* impl_;
  int (*ResizeTensor)(Context*, Tensor*, IntArray*);
  void (*ReportError)(Context*, const char*, ...);
  int (*AddTensors)(Context*, int, int*);
  int (*GetNodeAndRegistration)(Context*, int, Node**, Registration**);
  int (*ReplaceNodeSubsetsWithDelegateKernels)(Context*, Registration, const IntArray*, Delegate*);
};

struct Delegate {
  void* data_;
  int (*Prepare)(Context*, Delegate*);
  void* CopyFromBufferHandle;
  void* CopyToBufferHandle;
  void* FreeBufferHandle;
  int64_t flags;
  void* opaque_delegate_builder;
};

typedef struct {
  Delegate* delegate;
  IntArray* nodes_to_replace;
  IntArray* input_tensors;
  IntArray* output_tensors;
} DelegateParams;

typedef struct {
  char mode[16];
  char when[16];
  char claim[4096];
  char reason[1024];
  char node[1024];
  int at;
  int steps;
  int after;
  int delay;
} Options;

/* One claimed operator: its own instance of the runtime's kernel, since replaced nodes lose their temporaries. */
typedef struct {
  int number;
  Node node;
  void (*free)(Context*, void*);
  int (*prepare)(Context*, Node*);
  int (*invoke)(Context*, Node*);
} Operator;

typedef struct {
  const Options* options;
  int count;
  Operator* operators;
  IntArray* inner; /* tensors that only claimed operators see */
  int invocations;
} Partition;

static bool is(const char* text, const char* other) { return strcmp(text, other) == 0; }

static IntArray* new_array(int size) {
  IntArray* array = malloc(sizeof(IntArray) + sizeof(int) * (size_t)size);
  array->size = size;
  return array;
}

static IntArray* copied(const IntArray* array) {
  IntArray* copy = new_array(array ? array->size : 0);
  if (array) memcpy(copy->data, array->data, sizeof(int) * (size_t)array->size);
  return copy;
}

static bool holds(const IntArray* array, int value) {
  for (int i = 0; i < array->size; ++i) {
    if (array->data[i] == value) return true;
  }
  return false;
}

static int failed(Context* context, const Options* options) {
  if (options->reason[0]) context->ReportError(context, "%s", options->reason);
  return ERROR;
}

/* ------------------------------------------------------------------------------------------------------------ a partition */

static void* init(Context* context, const char* buffer, size_t length) {
  (void)length;
  const DelegateParams* params = (const DelegateParams*)buffer;
  Partition* partition = calloc(1, sizeof(Partition));
  partition->options = params->delegate->data_;
  const bool edgetpu = is(partition->options->mode, "edgetpu");
  partition->count = params->nodes_to_replace->size;
  partition->operators = calloc((size_t)partition->count, sizeof(Operator));
  int most = 0;
  for (int i = 0; i < partition->count; ++i) {
    Operator* operator = &partition->operators[i];
    Node* node = NULL;
    Registration* registration = NULL;
    operator->number = params->nodes_to_replace->data[i];
    context->GetNodeAndRegistration(context, operator->number, &node, &registration);
    operator->node.inputs = copied(node->inputs);
    operator->node.outputs = copied(node->outputs);
    operator->node.intermediates = copied(node->intermediates);
    operator->node.temporaries = new_array(0);
    operator->node.builtin_data = node->builtin_data;
    operator->free = registration->free;
    operator->prepare = registration->prepare;
    operator->invoke = registration->invoke;
    most += node->outputs->size;
    if (!edgetpu && registration->init) operator->node.user_data = registration->init(context, node->builtin_data, 0);
  }
  partition->inner = new_array(most);
  partition->inner->size = 0;
  for (int i = 0; i < partition->count; ++i) {
    const IntArray* outputs = partition->operators[i].node.outputs;
    for (int j = 0; j < outputs->size; ++j) {
      if (!holds(params->output_tensors, outputs->data[j])) partition->inner->data[partition->inner->size++] = outputs->data[j];
    }
  }
  return partition;
}

static void free_partition(Context* context, void* buffer) {
  Partition* partition = buffer;
  const bool edgetpu = is(partition->options->mode, "edgetpu");
  for (int i = 0; i < partition->count; ++i) {
    Operator* operator = &partition->operators[i];
    if (!edgetpu && operator->free && operator->node.user_data) operator->free(context, operator->node.user_data);
    free(operator->node.inputs);
    free(operator->node.outputs);
    free(operator->node.intermediates);
    free(operator->node.temporaries);
  }
  free(partition->operators);
  free(partition->inner);
  free(partition);
}

/* Kernels add tensors while they hold pointers to others, so that the runtime keeps room for so many before each of them. */
enum { ROOM = 16 };

/* Makes the runtime move its tensors to where there is room for as many again, and returns for how many there is. */
static size_t make_room(Context* context) {
  const Tensor* before = context->tensors;
  size_t size = 0;
  int added = 0;
  do {
    size = context->tensors_size;
    if (context->AddTensors(context, 1, &added) != OK) return 0;
  } while (context->tensors == before && size < 100000);
  return size - 1;
}

/* Prepares the operators; their scratch tensors and what lies between them become the partition's temporaries. */
static int prepare(Context* context, Node* node) {
  Partition* partition = node->user_data;
  if (is(partition->options->mode, "edgetpu")) return OK;
  int size = partition->inner->size;
  size_t room = ROOM;
  for (int i = 0; i < partition->count; ++i) {
    Operator* operator = &partition->operators[i];
    if (room < ROOM) room = make_room(context);
    const size_t tensors = context->tensors_size;
    if (operator->prepare && operator->prepare(context, &operator->node) != OK) return ERROR;
    size += operator->node.temporaries->size;
    const size_t added = context->tensors_size - tensors;
    room = added < room ? room - added : 0;
  }
  free(node->temporaries);
  node->temporaries = new_array(size);
  size = 0;
  for (int i = 0; i < partition->inner->size; ++i) node->temporaries->data[size++] = partition->inner->data[i];
  for (int i = 0; i < partition->count; ++i) {
    const IntArray* scratch = partition->operators[i].node.temporaries;
    for (int j = 0; j < scratch->size; ++j) node->temporaries->data[size++] = scratch->data[j];
  }
  return OK;
}

static long long clipped(long long value, long long lowest, long long highest) {
  return value < lowest ? lowest : (value > highest ? highest : value);
}

#define EACH(type, expression)                        \
  {                                                   \
    type* values = tensor->data;                      \
    const size_t count = tensor->bytes / sizeof(type); \
    for (size_t i = 0; i < count; ++i) {              \
      const type value = values[i];                   \
      (void)value;                                    \
      values[i] = (type)(expression);                 \
    }                                                 \
    break;                                            \
  }

static void add_steps(Tensor* tensor, int steps) {
  const float step = tensor->scale > 0 ? tensor->scale : 1.0f / 256.0f;
  switch (tensor->type) {
    case FLOAT32: EACH(float, value + (float)steps * step)
    case INT8: EACH(int8_t, clipped(value + steps, INT8_MIN, INT8_MAX))
    case UINT8: EACH(uint8_t, clipped(value + steps, 0, UINT8_MAX))
    case INT16: EACH(int16_t, clipped(value + steps, INT16_MIN, INT16_MAX))
    case INT32: EACH(int32_t, clipped((long long)value + steps, INT32_MIN, INT32_MAX))
    default: break;
  }
}

static void vary(Tensor* tensor, int invocation) {
  const int other = 1 + invocation % 7;
  switch (tensor->type) {
    case FLOAT32: EACH(float, value + 0.01f * (float)other)
    case INT8: EACH(int8_t, value ^ other)
    case UINT8: EACH(uint8_t, value ^ other)
    case INT16: EACH(int16_t, value ^ other)
    case INT32: EACH(int32_t, value ^ other)
    default: break;
  }
}

static void spoil(Tensor* tensor) {
  switch (tensor->type) {
    case FLOAT32: EACH(float, NAN)
    case INT8: EACH(int8_t, INT8_MIN)
    case UINT8: EACH(uint8_t, 0)
    case INT16: EACH(int16_t, INT16_MIN)
    case INT32: EACH(int32_t, INT32_MIN)
    default: break;
  }
}

static void fill(Tensor* tensor, uint64_t start) {
  switch (tensor->type) {
    case FLOAT32: EACH(float, (float)((start + 31 * i) & 255) / 255.0f)
    case INT8: EACH(int8_t, (uint8_t)(start + 31 * i))
    case UINT8: EACH(uint8_t, start + 31 * i)
    case INT16: EACH(int16_t, (start + 31 * i) & 255)
    case INT32: EACH(int32_t, (start + 31 * i) & 255)
    case INT64: EACH(int64_t, (start + 31 * i) & 255)
    default: break;
  }
}

static void run_edgetpu(Context* context, const Node* node) {
  uint64_t sum = 0;
  for (int i = 0; i < node->inputs->size; ++i) {
    const Tensor* tensor = &context->tensors[node->inputs->data[i]];
    const uint8_t* bytes = tensor->data;
    for (size_t j = 0; j < tensor->bytes; ++j) sum += bytes[j];
  }
  for (int o = 0; o < node->outputs->size; ++o) fill(&context->tensors[node->outputs->data[o]], sum + 7 * (uint64_t)o);
}

static bool is_meant(Context* context, const Options* options, const Operator* operator) {
  if (!options->node[0]) return options->at == -1 || options->at == operator->number;
  for (int i = 0; i < operator->node.outputs->size; ++i) {
    const char* name = context->tensors[operator->node.outputs->data[i]].name;
    if (name && is(name, options->node)) return true;
  }
  return false;
}

static void change(Context* context, const Partition* partition, const Operator* operator) {
  const Options* options = partition->options;
  if (!is_meant(context, options, operator)) return;
  for (int i = 0; i < operator->node.outputs->size; ++i) {
    Tensor* tensor = &context->tensors[operator->node.outputs->data[i]];
    if (is(options->mode, "off")) add_steps(tensor, options->steps);
    if (is(options->mode, "vary")) vary(tensor, partition->invocations);
    if (is(options->mode, "nan")) spoil(tensor);
  }
}

static int invoke(Context* context, Node* node) {
  Partition* partition = node->user_data;
  const Options* options = partition->options;
  if (options->delay > 0) usleep((useconds_t)options->delay);
  bool meant = !options->node[0];
  for (int i = 0; i < partition->count; ++i) meant = meant || is_meant(context, options, &partition->operators[i]);
  if (meant && is(options->when, "invoke") && partition->invocations >= options->after) {
    if (is(options->mode, "crash")) abort();
    if (is(options->mode, "fail")) return failed(context, options);
  }
  ++partition->invocations;
  for (int i = 0; i < partition->count; ++i) {
    Operator* operator = &partition->operators[i];
    if (is(options->mode, "edgetpu")) {
      run_edgetpu(context, &operator->node);
      continue;
    }
    if (operator->invoke(context, &operator->node) != OK) return ERROR;
    change(context, partition, operator);
  }
  return OK;
}

/* ----------------------------------------------------------------------------------------------------------- the delegate */

/* True where an input that other operators compute may be a shape: what has no size yet cannot be prepared here. */
static bool may_be_dynamic(const Context* context, const Node* node) {
  for (int i = 0; i < node->inputs->size; ++i) {
    if (node->inputs->data[i] < 0) continue;
    const Tensor* tensor = &context->tensors[node->inputs->data[i]];
    const bool computed = tensor->allocation_type != CONSTANT && tensor->dims && tensor->dims->size <= 1;
    if (computed && (tensor->type == INT32 || tensor->type == INT64)) return true;
  }
  return false;
}

/* What holds subgraphs, variables or tables is left to the runtime. */
static bool is_claimable(const Context* context, const Options* options, const Node* node, const Registration* registration) {
  const int code = registration->builtin_code;
  if (is(options->mode, "none")) return false;
  if (is(options->mode, "edgetpu")) {
    return code == CUSTOM && registration->custom_name && is(registration->custom_name, "edgetpu-custom-op");
  }
  const int others[] = {CUSTOM, DELEGATE, 118, 119, 129, 136, 137, 138, 139, 142, 143, 144, 206};
  for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); ++i) {
    if (code == others[i]) return false;
  }
  return registration->invoke != NULL && !may_be_dynamic(context, node);
}

static bool is_wanted(const Options* options, int number) {
  if (!options->claim[0]) return true;
  for (const char* text = options->claim; text; text = strchr(text, ',')) {
    if (*text == ',') ++text;
    if (strtol(text, NULL, 10) == number) return true;
  }
  return false;
}

static int prepare_delegate(Context* context, Delegate* delegate) {
  const Options* options = delegate->data_;
  if (is(options->when, "prepare") && is(options->mode, "crash")) abort();
  if (is(options->when, "prepare") && is(options->mode, "fail")) return failed(context, options);
  IntArray* plan = NULL;
  if (context->GetExecutionPlan(context, &plan) != OK) return ERROR;
  IntArray* claimed = new_array(plan->size);
  claimed->size = 0;
  for (int i = 0; i < plan->size; ++i) {
    Node* node = NULL;
    Registration* registration = NULL;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) != OK) return ERROR;
    const bool claimable = is_claimable(context, options, node, registration);
    if (claimable && is_wanted(options, plan->data[i])) claimed->data[claimed->size++] = plan->data[i];
  }
  int status = OK;
  if (claimed->size) {
    Registration registration = {0};
    registration.init = init;
    registration.free = free_partition;
    registration.prepare = prepare;
    registration.invoke = invoke;
    registration.builtin_code = DELEGATE;
    registration.custom_name = "TestDelegate";
    registration.version = 1;
    status = context->ReplaceNodeSubsetsWithDelegateKernels(context, registration, claimed, delegate);
  }
  free(claimed);
  return status;
}

static bool keep(char* place, size_t room, const char* text) {
  if (strlen(text) >= room) return false;
  strcpy(place, text);
  return true;
}

static bool set_option(Options* options, const char* key, const char* value) {
  if (is(key, "mode")) return keep(options->mode, sizeof(options->mode), value);
  if (is(key, "when")) return keep(options->when, sizeof(options->when), value);
  if (is(key, "claim")) return keep(options->claim, sizeof(options->claim), value);
  if (is(key, "node")) return keep(options->node, sizeof(options->node), value);
  if (is(key, "reason")) return keep(options->reason, sizeof(options->reason), value);
  int* numbers[] = {&options->at, &options->steps, &options->after, &options->delay};
  const char* names[] = {"at", "steps", "after", "delay"};
  for (int i = 0; i < 4; ++i) {
    char* end = NULL;
    if (!is(key, names[i])) continue;
    *numbers[i] = (int)strtol(value, &end, 10);
    return end != value && *end == 0;
  }
  return false;
}

static bool is_known(const Options* options) {
  const char* modes[] = {"none", "exact", "off", "vary", "nan", "edgetpu", "refuse", "fail", "crash"};
  const char* times[] = {"create", "prepare", "invoke"};
  bool mode = false, when = false;
  for (int i = 0; i < 9; ++i) mode = mode || is(options->mode, modes[i]);
  for (int i = 0; i < 3; ++i) when = when || is(options->when, times[i]);
  return mode && when;
}

Delegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values, size_t count,
                                        void (*report_error)(const char*)) {
  Options* options = calloc(1, sizeof(Options));
  strcpy(options->mode, "exact");
  strcpy(options->when, "invoke");
  options->at = -1;
  options->steps = 1;
  bool good = true;
  for (size_t i = 0; i < count; ++i) good = set_option(options, keys[i], values[i]) && good;
  if (is(options->when, "create") && is(options->mode, "crash")) abort();
  if (is(options->mode, "refuse") || (is(options->when, "create") && is(options->mode, "fail"))) {
    if (options->reason[0] && report_error) report_error(options->reason);
    good = false;
  }
  if (!good || !is_known(options)) {
    free(options);
    return NULL;
  }
  Delegate* delegate = calloc(1, sizeof(Delegate));
  delegate->data_ = options;
  delegate->Prepare = prepare_delegate;
  delegate->flags = 1; /* else the runtime prepares all operators first, and stumbles over custom ones that it does not know */
  return delegate;
}

/* Called with NULL after a failed creation. */
void tflite_plugin_destroy_delegate(Delegate* delegate) {
  if (!delegate) return;
  free(delegate->data_);
  free(delegate);
}
