/* Attention of some query rows, output and running sums in one pass: the engine `fused`.
 *
 * Query rows lie in vector lanes: a block is NV vectors of rows, and a key meets all of them at
 * once. MR keys × NV vectors of scores stay in registers from the product with the queries through
 * the softmax and every sum of `Rows` (attncli/attention/rows.py). The weights of a granule of keys
 * are then multiplied with the values, so that memory is O(rows · width).
 *
 * This file is the module; it includes build.h, and so the kernel, once for each build, to be
 * compiled for the instructions of that build in vectors of VL floats.
 *
 * Scores are float32; sums are float32 within a granule and double from then on. Logits are in
 * units of ln 2, so that exp2 needs no product, unless a softcap or bias bends them (`bent`). The
 * shift of a row moves only when a logit passes it by more than SLACK (the online softmax of
 * Milakov & Gimelshein 2018, made lazy), and always to a logit that was seen: that key, the anchor,
 * stays out of the sums, so that 1 − p₁ keeps its digits. Rows whose other keys are worth next to
 * nothing, or whose scores differ too little or too much for float32 squares, are summed once more
 * in double (`exact_row`). Rows that are not finite are counted: the caller mends them.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INTERFACE 2 /* another one when the arguments change: Python asks, see __init__.py */
#define GRAIN 128 /* keys of a granule: what a mask is asked about, what is summed in float32 */
#define AHEAD 64  /* granules whose states a block knows: a row of cells is read in one go */
#define LINE 64   /* bytes of the widest vector */
#define FAR 40.0  /* e³ of a key so many powers of 2 below the first nears the end of float32 */
#define SLACK 4.0f /* how far a logit may pass the shift: more would cost digits of 1 − p₁ */
#define TINY 0x1p-24f /* the smallest positive float16 */
#define LN2 0.693147180559945309417
#define LOG2E 1.44269504088896340736
#define INLINE static inline __attribute__((always_inline))
#define RARE static __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 8")

enum { EMPTY, MIXED, FULL };                                       /* as in predicates.py */
enum { M, REST, ES, REST2, REST3, MEAN, M2, AMAX, FIRST, PLANES }; /* the planes of `sums` */

/* Query rows i0:i1 of heads n0:n1, counted over all batch elements, and keys j0:j1. */
typedef struct {
  const float *q, *k, *v; /* (B·H, lq, d), (B·G, lk, d), (B·G, lk, dv) */
  float *out, *lse;       /* (B·H, lq, dv), (B·H, lq) */
  double *sums, *top_z;   /* (PLANES, B·H, lq), (B·H, lq, 2); NULL without statistics */
  int64_t *count, *top_j; /* (B·H, lq), (B·H, lq, 2) */
  const double *sink;     /* (H,) or NULL */
  const uint8_t *keep;    /* (i1 − i0, j1 − j0), or NULL: every row sees these keys */
  const int8_t *states;   /* of the granules from j0 on, or NULL: all are MIXED */
  const float *bias;      /* (i1 − i0, j1 − j0) or NULL */
  int64_t keep_row, keep_key, bias_row, bias_key; /* strides in elements */
  int64_t all, heads, group, lq, lk, d, dv;       /* all = B·H; group = H / G */
  int64_t n0, n1, i0, i1, j0, j1;
  double scale, cap; /* cap 0: none */
  const float *grad, *shift, *factor, *delta; /* of the backward pass: dO, and by row (B·H, lq) */
  float *dq, *dk, *dval; /* like q, k and v, or NULL; dk and dval are added to */
  double *squares;                            /* Σ dS² (B·H, lq) */
  const float *place; /* the positions of rows (B·H, lq), NaN: not summed; NULL: no sums */
  double *distance;   /* Σ p·|i − j|, and how many p are tiny: (2, B·H, lq) */
  double *received, *along; /* Σ p by key (B·H, lk), by diagonal (B·H, lq + lk − 1): added to */
  char *scratch;
} Job;

INLINE int bends(const Job *J) { return J->cap > 0 || J->bias; }

INLINE int state_at(const Job *J, int64_t j) {
  int state = J->states ? J->states[(j - J->j0) / GRAIN] : MIXED;
  return state == MIXED && !J->keep ? FULL : state;
}

INLINE int sees(const Job *J, int64_t i, int64_t j) {
  int state = state_at(J, j);
  if (state != MIXED) return state == FULL;
  return J->keep[(i - J->i0) * J->keep_row + (j - J->j0) * J->keep_key] != 0;
}

/* Blocks of rows that walk over the keys together: what they hold should stay in the cache. */
INLINE int64_t together(int64_t rows, int64_t d, int64_t dv) {
  int64_t most = (1 << 18) / (4 * rows * (d + dv + 1));
  return most < 1 ? 1 : most > 4 ? 4 : most;
}

typedef struct {
  const char *name;
  int64_t rows;                           /* of a block */
  int64_t (*run)(const Job *);            /* returns how many rows are not finite */
  int64_t (*bytes)(int64_t, int64_t);     /* of scratch, by the widths of keys and values */
  int64_t (*run_back)(const Job *);
  int64_t (*bytes_back)(int64_t, int64_t);
} Build;

static const Build build_avx512, build_avx2, build_portable;

/* The builds that this processor can run, the fastest first; returns how many. */
static int known(const Build **found) {
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    found[n++] = &build_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[n++] = &build_avx2;
#endif
  found[n++] = &build_portable;
  return n;
}

static const Build *build_named(const char *name) {
  const Build *found[3];
  for (int n = known(found); n--;)
    if (!strcmp(found[n]->name, name)) return found[n];
  PyErr_Format(PyExc_ValueError, "no build '%s' runs here", name);
  return NULL;
}

static PyObject *builds(PyObject *self, PyObject *none) {
  const Build *found[3];
  int n = known(found);
  PyObject *names = PyDict_New();
  for (int x = 0; names && x < n; x++) {
    PyObject *rows = PyLong_FromLongLong(found[x]->rows);
    if (!rows || PyDict_SetItemString(names, found[x]->name, rows)) Py_CLEAR(names);
    Py_XDECREF(rows);
  }
  return names;
}

static PyObject *scratch(PyObject *self, PyObject *args) {
  const char *name;
  long long d, dv;
  if (!PyArg_ParseTuple(args, "sLL", &name, &d, &dv)) return NULL;
  const Build *build = build_named(name);
  return build ? Py_BuildValue("LL", (long long)build->bytes(d, dv),
                               (long long)build->bytes_back(d, dv)) : NULL;
}

enum { SCRATCH, Q, K, V, KEEP, STATES, BIAS, SHARED_BUFFERS }; /* of both passes, then of one */
enum { OUT = SHARED_BUFFERS, LSE, SUMS, TOPS, COUNT, KEYS, SINK, FORWARD_BUFFERS };
enum { GRAD = SHARED_BUFFERS, SHIFT, FACTOR, DELTA, SQUARES, DQ, DK, DV, PLACE, DISTANCE, RECEIVED,
       ALONG, BACKWARD_BUFFERS };
#define MOST_BUFFERS BACKWARD_BUFFERS

/* Take a C-contiguous buffer of so many bytes at least; None leaves it empty. Returns 0 or −1. */
static int take(PyObject *from, Py_buffer *into, int writable, int64_t bytes, const char *name) {
  if (from == Py_None) return 0;
  if (PyObject_GetBuffer(from, into, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO)) return -1;
  if (into->len >= bytes) return 0;
  PyErr_Format(PyExc_ValueError, "%s has %zd bytes, expected %lld", name, into->len,
               (long long)bytes);
  return -1;
}

/* Take a plane (rows, keys) with strides, which it returns in elements. Returns 0 or −1. */
static int take_plane(PyObject *from, Py_buffer *into, int64_t rows, int64_t keys, int64_t size,
                      int64_t *row, int64_t *key, const char *name) {
  if (from == Py_None) return 0;
  if (PyObject_GetBuffer(from, into, PyBUF_STRIDED_RO)) return -1;
  if (into->ndim == 2 && into->itemsize == size && into->shape[0] == rows &&
      into->shape[1] == keys && into->strides[0] % size == 0 && into->strides[1] % size == 0) {
    *row = into->strides[0] / size, *key = into->strides[1] / size;
    return 0;
  }
  PyErr_Format(PyExc_ValueError, "%s is no plane of %lld rows and %lld keys", name,
               (long long)rows, (long long)keys);
  return -1;
}

static int take_shared(PyObject **from, Py_buffer *b, Job *J, int64_t scratch) {
  int64_t rows = J->all * J->lq, kv = J->all / J->group * J->lk;
  int64_t some = J->i1 - J->i0, keys = J->j1 - J->j0;
  if (take(from[SCRATCH], b + SCRATCH, 1, scratch, "scratch") ||
      take(from[Q], b + Q, 0, 4 * rows * J->d, "query") ||
      take(from[K], b + K, 0, 4 * kv * J->d, "key") ||
      take(from[V], b + V, 0, 4 * kv * J->dv, "value") ||
      take(from[STATES], b + STATES, 0, (keys + GRAIN - 1) / GRAIN, "states") ||
      take_plane(from[KEEP], b + KEEP, some, keys, 1, &J->keep_row, &J->keep_key, "keep") ||
      take_plane(from[BIAS], b + BIAS, some, keys, 4, &J->bias_row, &J->bias_key, "bias"))
    return -1;
  J->scratch = b[SCRATCH].buf, J->q = b[Q].buf, J->k = b[K].buf, J->v = b[V].buf;
  J->keep = b[KEEP].buf, J->states = b[STATES].buf, J->bias = b[BIAS].buf;
  return 0;
}

static int take_forward(PyObject **from, Py_buffer *b, Job *J) {
  int64_t rows = J->all * J->lq, sums = from[SUMS] == Py_None ? 0 : rows;
  if (take(from[OUT], b + OUT, 1, 4 * rows * J->dv, "output") ||
      take(from[LSE], b + LSE, 1, 4 * rows, "lse") ||
      take(from[SUMS], b + SUMS, 1, 8 * PLANES * sums, "sums") ||
      take(from[TOPS], b + TOPS, 1, 16 * sums, "top_z") ||
      take(from[COUNT], b + COUNT, 1, 8 * sums, "n") ||
      take(from[KEYS], b + KEYS, 1, 16 * sums, "top_j") ||
      take(from[SINK], b + SINK, 0, 8 * J->heads, "sink"))
    return -1;
  J->out = b[OUT].buf, J->lse = b[LSE].buf, J->sink = b[SINK].buf, J->sums = b[SUMS].buf;
  J->top_z = b[TOPS].buf, J->count = b[COUNT].buf, J->top_j = b[KEYS].buf;
  return 0;
}

static int take_backward(PyObject **from, Py_buffer *b, Job *J) {
  int64_t rows = J->all * J->lq, kv = J->all / J->group * J->lk;
  if (take(from[GRAD], b + GRAD, 0, 4 * rows * J->dv, "grad_output") ||
      take(from[SHIFT], b + SHIFT, 0, 4 * rows, "shift") ||
      take(from[FACTOR], b + FACTOR, 0, 4 * rows, "factor") ||
      take(from[DELTA], b + DELTA, 0, 4 * rows, "delta") ||
      take(from[DQ], b + DQ, 1, 4 * rows * J->d, "grad_query") ||
      take(from[DK], b + DK, 1, 4 * kv * J->d, "grad_key") ||
      take(from[DV], b + DV, 1, 4 * kv * J->dv, "grad_value") ||
      take(from[SQUARES], b + SQUARES, 1, 8 * rows, "squares") ||
      take(from[PLACE], b + PLACE, 0, 4 * rows, "place") ||
      take(from[DISTANCE], b + DISTANCE, 1, 16 * rows, "distance") ||
      take(from[RECEIVED], b + RECEIVED, 1, 8 * J->all * J->lk, "received") ||
      take(from[ALONG], b + ALONG, 1, 8 * J->all * (J->lq + J->lk - 1), "diagonals"))
    return -1;
  J->grad = b[GRAD].buf, J->shift = b[SHIFT].buf, J->factor = b[FACTOR].buf;
  J->delta = b[DELTA].buf, J->dq = b[DQ].buf, J->dk = b[DK].buf, J->dval = b[DV].buf;
  J->squares = b[SQUARES].buf, J->place = b[PLACE].buf, J->distance = b[DISTANCE].buf;
  J->received = b[RECEIVED].buf, J->along = b[ALONG].buf;
  return 0;
}

/* Whether what must be there is: None is only for what may be left out. */
static int complete(PyObject **from, int count, int sums) {
  for (int x = 0; x < count; x++) {
    int optional = x == KEEP || x == STATES || x == BIAS;
    if (count == FORWARD_BUFFERS) optional |= x == SINK || (!sums && x >= SUMS);
    else optional |= x == DQ || x == DK || x == DV || (!sums && x >= PLACE);
    if (from[x] != Py_None || optional) continue;
    PyErr_Format(PyExc_ValueError, "buffer %d must be there, and is None", x);
    return 0;
  }
  return 1;
}

static int fits(const Job *J) {
  if (J->all >= 0 && J->heads > 0 && J->group > 0 && J->all % J->heads == 0 &&
      J->heads % J->group == 0 && J->d >= 0 && J->dv >= 0 && 0 <= J->n0 && J->n0 <= J->n1 &&
      J->n1 <= J->all && 0 <= J->i0 && J->i0 <= J->i1 && J->i1 <= J->lq && 0 <= J->j0 &&
      J->j0 <= J->j1 && J->j1 <= J->lk && J->lk < (1ll << 31))
    return 1;
  PyErr_SetString(PyExc_ValueError, "these heads, rows and keys are not there");
  return 0;
}

/* Parse, take buffers, run without the interpreter's lock, and let the buffers go. */
static PyObject *pass(PyObject *args, int back) {
  Job J = {0};
  const char *name;
  PyObject *given, *from[MOST_BUFFERS];
  Py_buffer buffers[MOST_BUFFERS];
  const int count = back ? BACKWARD_BUFFERS : FORWARD_BUFFERS;
  if (!PyArg_ParseTuple(args, "sO!(LLLLLLL)(LLLLLL)dd", &name, &PyTuple_Type, &given, &J.all,
                        &J.heads, &J.group, &J.lq, &J.lk, &J.d, &J.dv, &J.n0, &J.n1, &J.i0, &J.i1,
                        &J.j0, &J.j1, &J.scale, &J.cap))
    return NULL;
  const Build *build = build_named(name);
  if (!build || !fits(&J)) return NULL;
  if (PyTuple_Size(given) != count) {
    PyErr_Format(PyExc_ValueError, "expected %d buffers", count);
    return NULL;
  }
  for (int x = 0; x < count; x++) from[x] = PyTuple_GetItem(given, x);
  if (!complete(from, count, from[back ? PLACE : SUMS] != Py_None)) return NULL;
  memset(buffers, 0, sizeof buffers);
  int64_t odd = 0;
  int64_t bytes = back ? build->bytes_back(J.d, J.dv) : build->bytes(J.d, J.dv);
  int taken = take_shared(from, buffers, &J, bytes) ||
              (back ? take_backward : take_forward)(from, buffers, &J);
  if (!taken) {
    Py_BEGIN_ALLOW_THREADS;
    odd = (back ? build->run_back : build->run)(&J);
    Py_END_ALLOW_THREADS;
  }
  for (int x = 0; x < count; x++)
    if (buffers[x].obj) PyBuffer_Release(buffers + x);
  return taken ? NULL : PyLong_FromLongLong(odd);
}

static PyObject *attend(PyObject *self, PyObject *args) { return pass(args, 0); }
static PyObject *backward(PyObject *self, PyObject *args) { return pass(args, 1); }

static PyMethodDef methods[] = {
    {"builds", builds, METH_NOARGS, "The builds that run here, and how many rows a block has."},
    {"scratch", scratch, METH_VARARGS,
     "scratch(build, d, dv): bytes that a thread needs to attend, and to go backward."},
    {"attend", attend, METH_VARARGS,
     "attend(build, (scratch, q, k, v, keep, states, bias, out, lse, sums, top_z, n, top_j, sink),\n"
     "       (B·H, H, H / G, lq, lk, d, dv), (n0, n1, i0, i1, j0, j1), scale, cap)\n\n"
     "Write the rows i0:i1 of heads n0:n1; return how many of them are not finite."},
    {"backward", backward, METH_VARARGS,
     "backward(build, (scratch, q, k, v, keep, states, bias, grad_output, shift, factor, delta,\n"
     "                 squares, grad_query, grad_key, grad_value, place, distance, received,\n"
     "                 diagonals), …as attend…)\n\n"
     "Write the rows' Σ dS², grad_query and distance, add what they give to the others. Those after\n"
     "squares may be None: grad_*, and all from place on."},
    {NULL, NULL, 0, NULL}};

static int execute(PyObject *module) {
  return PyModule_AddIntConstant(module, "interface", INTERFACE);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, slots,
                                 NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OWN(name) JOIN(name, BUILD)

#if defined(__x86_64__) && defined(__clang__)
#define BUILD avx512
#define VL 16
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#include "build.h"
#pragma clang attribute pop
#define BUILD avx2
#define VL 8
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "build.h"
#pragma clang attribute pop
#elif defined(__x86_64__)
#define BUILD avx512
#define VL 16
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "build.h"
#pragma GCC pop_options
#define BUILD avx2
#define VL 8
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "build.h"
#pragma GCC pop_options
#endif
#define BUILD portable
#define VL 4
#include "build.h"
