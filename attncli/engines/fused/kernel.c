/* Attention of some query rows, output and running sums in one pass: the engine `fused`.
 *
 * Query rows lie in vector lanes: a block is NV vectors of rows, and a key meets all of them at
 * once. MR keys × NV vectors of scores stay in registers from the product with the queries through
 * the softmax and every sum of `Rows` (attncli/attention/rows.py). The weights of a granule of keys
 * are then multiplied with the values, so that memory is O(rows · width).
 *
 * The file includes itself once for each build: what follows `#else` is the kernel, in vectors of
 * VL floats, compiled for the instructions of that build.
 *
 * Scores are float32; sums are float32 within a granule and double from then on. Logits are in
 * units of ln 2, so that exp2 needs no product, unless a softcap or bias bends them (`bent`). The
 * shift of a row moves only when a logit passes it by more than SLACK (the online softmax of
 * Milakov & Gimelshein 2018, made lazy), and always to a logit that was seen: that key, the anchor,
 * stays out of the sums, so that 1 − p₁ keeps its digits. Rows whose other keys are worth next to
 * nothing, or whose scores differ too little or too much for float32 squares, are summed once more
 * in double (`exact_row`). Rows that are not finite are counted: the caller mends them.
 */
#ifndef BUILD

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GRAIN 128 /* keys of a granule: what a mask is asked about, what is summed in float32 */
#define LINE 64   /* bytes of the widest vector */
#define FAR 40.0  /* e³ of a key so many powers of 2 below the first nears the end of float32 */
#define SLACK 4.0f /* how far a logit may pass the shift: more would cost digits of 1 − p₁ */
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
  const uint8_t *keep;    /* (i1 − i0, j1 − j0), or NULL: every row sees every key */
  const int8_t *states;   /* of the granules from j0 on, or NULL: `keep` is asked everywhere */
  const float *bias;      /* (i1 − i0, j1 − j0) or NULL */
  int64_t keep_row, keep_key, bias_row, bias_key; /* strides in elements */
  int64_t all, heads, group, lq, lk, d, dv;       /* all = B·H; group = H / G */
  int64_t n0, n1, i0, i1, j0, j1;
  double scale, cap; /* cap 0: none */
  char *scratch;
} Job;

INLINE int bends(const Job *J) { return J->cap > 0 || J->bias; }

INLINE int state_at(const Job *J, int64_t j) {
  return !J->keep ? FULL : J->states ? J->states[(j - J->j0) / GRAIN] : MIXED;
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
  int64_t (*run)(const Job *);               /* returns how many rows are not finite */
  int64_t (*scratch)(int64_t d, int64_t dv); /* bytes that a run needs */
  int64_t rows;                              /* of a block */
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
  return build ? PyLong_FromLongLong(build->scratch(d, dv)) : NULL;
}

enum { Q, K, V, OUT, LSE, SUMS, TOPS, COUNT, KEYS, SINK, KEEP, STATES, BIAS, SCRATCH, BUFFERS };

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

static int take_all(PyObject **from, Py_buffer *b, Job *J, const Build *build) {
  int64_t rows = J->all * J->lq, kv = J->all / J->group * J->lk;
  int64_t some = J->i1 - J->i0, keys = J->j1 - J->j0;
  int64_t sums = from[SUMS] == Py_None ? 0 : rows;
  if (take(from[Q], b + Q, 0, 4 * rows * J->d, "query") ||
      take(from[K], b + K, 0, 4 * kv * J->d, "key") ||
      take(from[V], b + V, 0, 4 * kv * J->dv, "value") ||
      take(from[OUT], b + OUT, 1, 4 * rows * J->dv, "output") ||
      take(from[LSE], b + LSE, 1, 4 * rows, "lse") ||
      take(from[SUMS], b + SUMS, 1, 8 * PLANES * sums, "sums") ||
      take(from[TOPS], b + TOPS, 1, 16 * sums, "top_z") ||
      take(from[COUNT], b + COUNT, 1, 8 * sums, "n") ||
      take(from[KEYS], b + KEYS, 1, 16 * sums, "top_j") ||
      take(from[SINK], b + SINK, 0, 8 * J->heads, "sink") ||
      take(from[STATES], b + STATES, 0, (keys + GRAIN - 1) / GRAIN, "states") ||
      take(from[SCRATCH], b + SCRATCH, 1, build->scratch(J->d, J->dv), "scratch") ||
      take_plane(from[KEEP], b + KEEP, some, keys, 1, &J->keep_row, &J->keep_key, "keep") ||
      take_plane(from[BIAS], b + BIAS, some, keys, 4, &J->bias_row, &J->bias_key, "bias"))
    return -1;
  J->q = b[Q].buf, J->k = b[K].buf, J->v = b[V].buf, J->out = b[OUT].buf, J->lse = b[LSE].buf;
  J->sums = b[SUMS].buf, J->top_z = b[TOPS].buf, J->count = b[COUNT].buf, J->top_j = b[KEYS].buf;
  J->sink = b[SINK].buf, J->keep = b[KEEP].buf, J->states = b[STATES].buf, J->bias = b[BIAS].buf;
  J->scratch = b[SCRATCH].buf;
  if (J->q && J->k && J->v && J->out && J->lse && J->scratch &&
      (!J->sums || (J->top_z && J->count && J->top_j)))
    return 0;
  PyErr_SetString(PyExc_ValueError, "a buffer that must be there is None");
  return -1;
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

static PyObject *attend(PyObject *self, PyObject *args) {
  Job J = {0};
  const char *name;
  PyObject *from[BUFFERS];
  Py_buffer buffers[BUFFERS];
  if (!PyArg_ParseTuple(
          args, "s(OOOOOOOOOOOOOO)(LLLLLLL)(LLLLLL)dd", &name, from, from + 1, from + 2, from + 3,
          from + 4, from + 5, from + 6, from + 7, from + 8, from + 9, from + 10, from + 11,
          from + 12, from + 13, &J.all, &J.heads, &J.group, &J.lq, &J.lk, &J.d, &J.dv, &J.n0,
          &J.n1, &J.i0, &J.i1, &J.j0, &J.j1, &J.scale, &J.cap))
    return NULL;
  const Build *build = build_named(name);
  if (!build || !fits(&J)) return NULL;
  memset(buffers, 0, sizeof buffers);
  int64_t odd = 0;
  int taken = take_all(from, buffers, &J, build);
  if (!taken) {
    Py_BEGIN_ALLOW_THREADS;
    odd = build->run(&J);
    Py_END_ALLOW_THREADS;
  }
  for (int x = 0; x < BUFFERS; x++)
    if (buffers[x].obj) PyBuffer_Release(buffers + x);
  return taken ? NULL : PyLong_FromLongLong(odd);
}

static PyMethodDef methods[] = {
    {"builds", builds, METH_NOARGS, "The builds that run here, and how many rows a block has."},
    {"scratch", scratch, METH_VARARGS, "scratch(build, d, dv): bytes of scratch of a thread."},
    {"attend", attend, METH_VARARGS,
     "attend(build, (q, k, v, out, lse, sums, top_z, n, top_j, sink, keep, states, bias, scratch),\n"
     "       (B·H, H, H / G, lq, lk, d, dv), (n0, n1, i0, i1, j0, j1), scale, cap)\n\n"
     "Write the rows i0:i1 of heads n0:n1; return how many of them are not finite."},
    {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, slots,
                                 NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OWN(name) JOIN(name, BUILD)

/* Names that each build has of its own: vf is vf_avx2 in the second. */
#define vf OWN(vf)
#define vi OWN(vi)
#define vu OWN(vu)
#define vd OWN(vd)
#define dup OWN(dup)
#define dupi OWN(dupi)
#define vm OWN(vm)
#define over OWN(over)
#define same OWN(same)
#define same_i OWN(same_i)
#define sel OWN(sel)
#define sel_i OWN(sel_i)
#define top_of OWN(top_of)
#define low_of OWN(low_of)
#define any OWN(any)
#define exp2_of OWN(exp2_of)
#define transpose OWN(transpose)
#define tanh_of OWN(tanh_of)
#define State OWN(State)
#define Block OWN(Block)
#define Shared OWN(Shared)
#define lanes OWN(lanes)
#define decay OWN(decay)
#define raise OWN(raise)
#define add OWN(add)
#define add_but_anchor OWN(add_but_anchor)
#define lead OWN(lead)
#define most OWN(most)
#define least OWN(least)
#define centre_at OWN(centre_at)
#define scores OWN(scores)
#define softmax OWN(softmax)
#define product OWN(product)
#define flush OWN(flush)
#define granule OWN(granule)
#define look OWN(look)
#define state_of OWN(state_of)
#define lay OWN(lay)
#define dot OWN(dot)
#define exact_row OWN(exact_row)
#define open_block OWN(open_block)
#define write_sums OWN(write_sums)
#define close_block OWN(close_block)
#define bytes_of OWN(bytes_of)
#define carve OWN(carve)
#define walk OWN(walk)
#define scaled OWN(scaled)
#define granule_3 OWN(granule_3)
#define weigh_full OWN(weigh_full)
#define weigh_some OWN(weigh_some)
#define weigh_bent OWN(weigh_bent)
#define sum_full OWN(sum_full)
#define sum_some OWN(sum_some)
#define sum_bent OWN(sum_bent)
#define run OWN(run)

#if defined(__x86_64__) && defined(__clang__)
#define BUILD avx512
#define VL 16
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#include "kernel.c"
#pragma clang attribute pop
#define BUILD avx2
#define VL 8
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "kernel.c"
#pragma clang attribute pop
#elif defined(__x86_64__)
#define BUILD avx512
#define VL 16
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "kernel.c"
#pragma GCC pop_options
#define BUILD avx2
#define VL 8
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "kernel.c"
#pragma GCC pop_options
#endif
#define BUILD portable
#define VL 4
#include "kernel.c"


#else /* one build */

#if VL == 8
#define MR 4 /* 16 registers: MR × NV scores, NV queries, one key */
#else
#define MR 8
#endif
#define NV 3
#define ROWS (VL * NV)

typedef float vf __attribute__((vector_size(VL * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), may_alias));
typedef double vd __attribute__((vector_size(VL * 8), may_alias));
#define wide(x) __builtin_convertvector(x, vd)
#define at_(base, x, v) (*(vf *)((base) + (x) * ROWS + (v) * VL)) /* vector v of line x */

/* --- vectors ----------------------------------------------------------------------------------- */

INLINE vf dup(float x) { return x - (vf){}; }
INLINE vi dupi(int32_t x) { return x - (vi){}; }

/* Conditions of lanes: bits of a mask register, or lanes of ones. `&`, `|` and `~` work on both. */
#if VL == 16
typedef __mmask16 vm;
INLINE vm over(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE vm same(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE vm same_i(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vf sel(vm c, vf a, vf b) { return (vf)_mm512_mask_blend_ps(c, (__m512)b, (__m512)a); }
INLINE vi sel_i(vm c, vi a, vi b) {
  return (vi)_mm512_mask_blend_epi32(c, (__m512i)b, (__m512i)a);
}
INLINE int any(vm c) { return c != 0; }
INLINE vm lanes(uint64_t bits) { return (vm)bits; } /* one bit for each lane */
#else
typedef vi vm;
INLINE vm over(vf a, vf b) { return a > b; }
INLINE vm same(vf a, vf b) { return a == b; }
INLINE vm same_i(vi a, vi b) { return a == b; }
INLINE vf sel(vm c, vf a, vf b) { return (vf)(((vi)a & c) | ((vi)b & ~c)); }
INLINE vi sel_i(vm c, vi a, vi b) { return (a & c) | (b & ~c); }
INLINE int any(vm c) {
#if VL == 8
  return _mm256_movemask_ps((__m256)c) != 0;
#else
  int32_t found = 0;
  for (int x = 0; x < VL; x++) found |= c[x];
  return found != 0;
#endif
}
INLINE vm lanes(uint64_t bits) {
  vu bit;
  for (int x = 0; x < VL; x++) bit[x] = 1u << x;
  return ((vu)dupi((int32_t)bits) & bit) != 0;
}
#endif

INLINE vf top_of(vf a, vf b) { /* the maximum; b where one of them is NaN */
#if VL == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif VL == 8
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return sel(over(a, b), a, b);
#endif
}
INLINE vf low_of(vf a, vf b) {
#if VL == 16
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif VL == 8
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return sel(over(b, a), a, b);
#endif
}
/* Turn row y, lane x into row x, lane y: blocks of half the size change places, then their halves. */
INLINE void transpose(vf part[VL]) {
#if VL == 16
#define EACH(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s), \
                   F(8, s), F(9, s), F(10, s), F(11, s), F(12, s), F(13, s), F(14, s), F(15, s)
#elif VL == 8
#define EACH(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s)
#else
#define EACH(F, s) F(0, s), F(1, s), F(2, s), F(3, s)
#endif
#define LEFT(x, s) ((x) & (s) ? VL + (x) - (s) : (x))
#define RIGHT(x, s) ((x) & (s) ? VL + (x) : (x) + (s))
#define SWAP(s)                                                \
  for (int y = 0; y < VL; y++) {                               \
    if (y & (s)) continue;                                     \
    vf a = part[y], b = part[y + (s)];                         \
    part[y] = __builtin_shufflevector(a, b, EACH(LEFT, s));    \
    part[y + (s)] = __builtin_shufflevector(a, b, EACH(RIGHT, s)); \
  }
#if VL == 16
  SWAP(8)
#endif
#if VL >= 8
  SWAP(4)
#endif
  SWAP(2)
  SWAP(1)
}

/* 2^x for x < 128, within 3·2⁻²⁴; 0 far below, NaN for NaN. The polynomial is a minimax fit of 2^f
 * on |f| ≤ ½ with a constant term of 1, so that 2^0 is 1. */
INLINE vf exp2_of(vf x) {
#if VL == 16
  vf n = (vf)_mm512_roundscale_ps((__m512)x, 8);
#else
  vi gone = x < dup(-126);
  x = top_of(dup(-126), x);
  vf t = x + dup(12582912.0f), n = t - dup(12582912.0f); /* 1.5·2²³: n is the nearest integer */
#endif
  vf f = x - n;
  vf p = dup(0x1.5bbbdp-10f);
  p = p * f + dup(0.009671512991189957f);
  p = p * f + dup(0.05550733581185341f);
  p = p * f + dup(0.24022242426872253f);
  p = p * f + dup(0.6931470036506653f);
  p = p * f + dup(1.0f);
#if VL == 16
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return (vf)((vi)((vu)p + ((vu)t << 23)) & ~gone);
#endif
}

/* Logits in units of ln 2. */
INLINE vf scaled(vf t, const int bent) {
  if (bent) t *= (float)LOG2E;
  return t;
}

/* tanh(x) within 4·2⁻²⁴ of its size: x + x³·P(x²) near 0, 1 − 2/(e^2x + 1) elsewhere. */
INLINE vf tanh_of(vf x) {
  vm below = over(dup(0), x);
  vf a = sel(below, -x, x), y = x * x;
  vf p = dup(-0.005704974289983511f);
  p = p * y + dup(0.020639074966311455f);
  p = p * y + dup(-0.05373971164226532f);
  p = p * y + dup(0.13331441581249237f);
  p = p * y + dup(-0.3333328068256378f);
  vf near_0 = p * y * x + x;
  vf e = exp2_of(low_of(dup(40), a * dup((float)(2 * LOG2E))));
  vf far = 1 - 2 / (e + 1);
  far = sel(below, -far, far);
  return sel(over(dup(0.625f), a), near_0, sel(same(x, x), far, x));
}

/* --- the rows of a block ------------------------------------------------------------------------ */

typedef struct {
  vf m[NV], t1[NV], t2[NV];              /* the shift; the two largest logits */
  vi j1[NV], j2[NV], n[NV];              /* their keys; visible keys */
  vf low[NV], centre[NV], first[NV];     /* the lowest score, or −max|s| if bent */
  vf e1[NV], es[NV], e2[NV], e3[NV], s1[NV], s2[NV]; /* of this granule, less the anchor */
  vd E1[NV], ES[NV], E2[NV], E3[NV], S1[NV], S2[NV]; /* of the granules before */
} State;
typedef struct {
  State S;
  int64_t i0, n; /* n rows from i0 on */
  int centred;   /* bit v: all rows of vector v have a centre */
  float *qt, *ot; /* (d, ROWS), (dv, ROWS) */
} Block;

/* What the blocks of a thread share for a granule. */
typedef struct {
  float *p, *bias, *tail;  /* weights and biases (GRAIN + MR, ROWS); keys (MR, d) past the last */
  uint64_t *see;           /* of each key, a bit for each row */
  float cap, per_cap;
} Shared;

INLINE void decay(State *S, int v, vf f, vf step) { /* the shift grew by −step, f = e^step */
  vd F = wide(f), D = wide(step);
  S->es[v] = f * (S->es[v] + step * S->e1[v]);
  S->e1[v] *= f, S->e2[v] *= f * f, S->e3[v] *= f * f * f;
  S->ES[v] = F * (S->ES[v] + D * S->E1[v]);
  S->E1[v] *= F, S->E2[v] *= F * F, S->E3[v] *= F * F * F;
}

/* Move the shift of vector v to `top` where it is above, with all that was summed by it: the
 * output, and lines p0:p1 of weights that wait for their values. */
RARE void raise(Block *B, int v, vf top, float *p, int64_t p0, int64_t p1, int64_t dv, int bent) {
  State *S = &B->S;
  vf old = S->m[v], now = top_of(old, top);
  vm fresh = same(old, dup(-INFINITY));
  vf step = sel(fresh, dup(0), top_of(dup(-300), old - now));
  vf f = sel(fresh, dup(0), exp2_of(scaled(step, bent)));
  S->m[v] = now;
  for (int64_t x = 0; x < dv; x++) at_(B->ot, x, v) *= f;
  for (int64_t x = p0; x < p1; x++) at_(p, x, v) *= f;
  decay(S, v, f, step);
}

INLINE void add(State *S, int v, vf e, vf t) {
  vf square = e * e;
  S->e1[v] += e, S->es[v] += e * t, S->e2[v] += square, S->e3[v] += square * e;
}

/* Add the weights e of logits z, where the shift has moved from `old`: the key at the new one is
 * the anchor and stays out, the one at the old joins the rest. */
RARE void add_but_anchor(State *S, int v, const vf *z, const vf *e, vf old, int bent) {
  vf m = S->m[v];
  vm look = (vm)~same(m, old);
  for (int u = 0; u < MR; u++) {
    vm anchor = look & same(z[u], m) & over(e[u], dup(0));
    look &= ~anchor;
    vf some = sel(anchor, dup(0), e[u]);
    add(S, v, some, sel(over(some, dup(0)), z[u] - m, some));
  }
  vm joins = over(m, old) & over(old, dup(-INFINITY));
  vf step = sel(joins, old - m, dup(-300));
  add(S, v, exp2_of(scaled(step, bent)), step);
}

/* The largest of MR logits, and the smallest. */
INLINE vf most(const vf *z) {
  vf y[MR];
  UNROLL for (int u = 0; u < MR; u++) y[u] = z[u];
  UNROLL for (int half = MR / 2; half; half /= 2)
    UNROLL for (int u = 0; u < half; u++) y[u] = top_of(y[u], y[u + half]);
  return y[0];
}
INLINE vf least(const vf *z) {
  vf y[MR];
  UNROLL for (int u = 0; u < MR; u++) y[u] = z[u];
  UNROLL for (int half = MR / 2; half; half /= 2)
    UNROLL for (int u = 0; u < half; u++) y[u] = low_of(y[u], y[u + half]);
  return y[0];
}

/* Put the logits z of keys j… among the two largest; `top` is their maximum. */
INLINE void lead(State *S, int v, const vf *z, vf top, int64_t j) {
  vf left[MR], at[MR];
  UNROLL for (int u = 0; u < MR; u++) left[u] = z[u];
  for (int turn = 0; turn < 2; turn++) {
    UNROLL for (int u = 0; u < MR; u++) at[u] = sel(same(left[u], top), dup((float)u), dup(MR));
    vf first = least(at), t1 = S->t1[v], t2 = S->t2[v];
    vm beats = over(top, t1), next = over(top, t2); /* in a tie the earlier key is first */
    vi name = __builtin_convertvector(first, vi) + dupi((int32_t)j);
    S->j2[v] = sel_i(beats, S->j1[v], sel_i(next, name, S->j2[v]));
    S->j1[v] = sel_i(beats, name, S->j1[v]);
    S->t2[v] = t2 = sel(beats, t1, sel(next, top, t2));
    S->t1[v] = sel(beats, top, t1);
    if (turn) return;
    UNROLL for (int u = 0; u < MR; u++)
      left[u] = sel(same(first, dup((float)u)), dup(-INFINITY), z[u]);
    top = most(left);
    if (!any(over(top, t2))) return;
  }
}

/* Choose the centre of moments where a row sees its first scores: their mean. */
RARE void centre_at(Block *B, int v, const vf *s, const uint64_t *see) {
  State *S = &B->S;
  vf sum = {}, n = {};
  for (int u = 0; u < MR; u++) {
    vm sees = lanes(see ? see[u] >> v * VL : ~0ull);
    sum += sel(sees, s[u], dup(0));
    n += sel(sees, dup(1), dup(0));
  }
  vm none = same_i(S->n[v], dupi(0));
  S->centre[v] = sel(none & over(n, dup(0)), sum / n, S->centre[v]);
  if (!any(none & same(n, dup(0)))) B->centred |= 1 << v;
}

/* --- a tile: MR keys × NV vectors of rows ------------------------------------------------------ */

/* Write scores of MR keys, vector by vector: the softmax takes one of them after the other. */
INLINE void scores(vf s[NV][MR], const float *qt, const float *k, const int64_t d, const int nv) {
  vf acc[MR][NV];
  for (int u = 0; u < MR; u++)
    for (int v = 0; v < nv; v++) acc[u][v] = (vf){};
  for (int64_t x = 0; x < d; x++) {
    vf q[NV];
    for (int v = 0; v < nv; v++) q[v] = at_(qt, x, v);
    UNROLL for (int u = 0; u < MR; u++) {
      vf key = dup(k[u * d + x]);
      UNROLL for (int v = 0; v < nv; v++) acc[u][v] += key * q[v];
    }
  }
  for (int u = 0; u < MR; u++)
    for (int v = 0; v < nv; v++) s[v][u] = acc[u][v];
}

/* Turn scores s of keys j…, `line`… of the granule, into weights, and sum. `from`: the first line
 * that waits for its values. Known when compiled: stats, mixed (some rows see only some of the
 * keys) and bent (always mixed). */
INLINE void softmax(vf s[NV][MR], Block *B, const Shared *T, int64_t from, int64_t line, int64_t j,
                    int64_t dv, int nv, const int stats, const int mixed, const int bent) {
  State *S = &B->S;
  float *p = T->p;
  for (int v = 0; v < nv; v++) {
    vf z[MR], e[MR];
    vm sees[MR];
    UNROLL for (int u = 0; u < MR; u++) {
      z[u] = s[v][u];
      if (bent && T->cap > 0) z[u] = dup(T->cap) * tanh_of(z[u] * dup(T->per_cap));
      if (bent && T->bias) z[u] += at_(T->bias, line + u, v);
      sees[u] = lanes(mixed ? T->see[line + u] >> v * VL : ~0ull);
      if (mixed) z[u] = sel(sees[u], z[u], dup(-INFINITY));
    }
    vf top = most(z), old = S->m[v];
    const int moved = any(over(top, old + dup(SLACK)));
    if (__builtin_expect(moved, 0)) raise(B, v, top, p, from, line, dv, bent);
    if (stats) {
      vf score[MR];
      UNROLL for (int u = 0; u < MR; u++) {
        if (bent) score[u] = sel(sees[u], low_of(s[v][u], -s[v][u]), dup(0));
        else score[u] = mixed ? sel(sees[u], z[u], dup(INFINITY)) : z[u];
      }
      S->low[v] = low_of(S->low[v], least(score));
      if (any(over(top, S->t2[v]))) lead(S, v, z, top, j);
      if (__builtin_expect(!(B->centred >> v & 1), 0))
        centre_at(B, v, s[v], mixed ? T->see + line : NULL);
      if (j == 0) S->first[v] = z[0];
    }
    vf m = S->m[v], c = S->centre[v], e1 = {}, es = {}, e2 = {}, e3 = {}, s1 = {}, s2 = {};
    UNROLL for (int u = 0; u < MR; u++) {
      vf t = z[u] - m;
      e[u] = exp2_of(mixed ? top_of(dup(-300), scaled(t, bent)) : t);
      if (mixed) e[u] = sel(sees[u], e[u], dup(0));
      at_(p, line + u, v) = e[u];
      e1 += e[u];
      if (stats) {
        vf away = s[v][u] - c, square = e[u] * e[u];
        if (mixed) away = sel(sees[u], away, dup(0)), t = sel(sees[u], t, dup(0));
        if (bent) t = top_of(dup(-1e30f), t); /* 0 · ∞ would not be 0 */
        s1 += away, s2 += away * away, es += e[u] * t, e2 += square, e3 += square * e[u];
      }
    }
    if (stats) {
      S->s1[v] += s1, S->s2[v] += s2;
      if (!mixed) S->n[v] += dupi(MR);
      for (int u = 0; mixed && u < MR; u++) S->n[v] += sel_i(sees[u], dupi(1), dupi(0));
      if (__builtin_expect(moved, 0)) {
        vf logit[MR], weight[MR]; /* arrays whose address is taken leave the registers */
        for (int u = 0; u < MR; u++) logit[u] = z[u], weight[u] = e[u];
        add_but_anchor(S, v, logit, weight, old, bent);
        continue;
      }
      S->es[v] += es, S->e2[v] += e2, S->e3[v] += e3;
    }
    S->e1[v] += e1;
  }
}

#define SOFTMAX(name, stats, mixed, bent)                                                       \
  RARE void name(vf s[NV][MR], Block *B, const Shared *T, int64_t from, int64_t line, int64_t j, \
                 int64_t dv, int nv) {                                                           \
    softmax(s, B, T, from, line, j, dv, nv, stats, mixed, bent);                                 \
  }
SOFTMAX(weigh_full, 0, 0, 0)
SOFTMAX(weigh_some, 0, 1, 0)
SOFTMAX(weigh_bent, 0, 1, 1)
SOFTMAX(sum_full, 1, 0, 0)
SOFTMAX(sum_some, 1, 1, 0)
SOFTMAX(sum_bent, 1, 1, 1)
#undef SOFTMAX

/* Add weights (keys, ROWS) times values (keys, dv) to ot. The sum of a granule is made apart:
 * fewer roundings in a row. */
INLINE void product(float *ot, const float *p, const float *val, const int64_t dv, int64_t keys, const int nv) {
  int64_t x = 0;
  for (; x + MR <= dv; x += MR) {
    vf acc[MR][NV];
    for (int u = 0; u < MR; u++)
      for (int v = 0; v < nv; v++) acc[u][v] = (vf){};
    for (int64_t j = 0; j < keys; j++) {
      vf w[NV];
      for (int v = 0; v < nv; v++) w[v] = at_(p, j, v);
      UNROLL for (int u = 0; u < MR; u++) {
        vf b = dup(val[j * dv + x + u]);
        UNROLL for (int v = 0; v < nv; v++) acc[u][v] += b * w[v];
      }
    }
    UNROLL for (int u = 0; u < MR; u++)
      for (int v = 0; v < nv; v++) at_(ot, x + u, v) += acc[u][v];
  }
  for (; dv % MR && x < dv; x++) {
    vf acc[NV] = {};
    for (int64_t j = 0; j < keys; j++)
      for (int v = 0; v < nv; v++) acc[v] += dup(val[j * dv + x]) * at_(p, j, v);
    for (int v = 0; v < nv; v++) at_(ot, x, v) += acc[v];
  }
}

INLINE void flush(State *S, const int nv, const int stats) {
  for (int v = 0; v < nv; v++) {
#define FLUSH(A, a) S->A[v] += wide(S->a[v]), S->a[v] = (vf){}
    FLUSH(E1, e1);
    if (stats) FLUSH(ES, es), FLUSH(E2, e2), FLUSH(E3, e3), FLUSH(S1, s1), FLUSH(S2, s2);
  }
}

/* Keys a:z, a granule or less, against one block. see[x] is what sees key a + x where `masked`. */
INLINE void granule(const Job *J, Block *B, const Shared *T, const float *k, const float *val,
                    int64_t a, int64_t z, int masked, const int nv) {
  const int64_t d = J->d, dv = J->dv;
  const int bent = bends(J), stats = J->sums != NULL;
  const uint64_t whole = (1ull << B->n) - 1;
  int64_t from = 0; /* lines from:line have weights, and wait for their values */
  for (int64_t line = 0; a + line < z; line += MR) {
    uint64_t all = ~0ull, none = 0;
    for (int u = 0; masked && u < MR; u++) all &= T->see[line + u], none |= T->see[line + u];
    if (masked && !none) { /* nobody sees these keys */
      if (from < line) product(B->ot, T->p + from * ROWS, val + from * dv, dv, line - from, nv);
      from = line + MR;
      continue;
    }
    vf s[NV][MR];
    const float *key = k + line * d;
    if (a + line + MR > J->lk) {
      memset(T->tail, 0, MR * d * 4);
      memcpy(T->tail, key, (J->lk - a - line) * d * 4);
      key = T->tail;
    }
    scores(s, B->qt, key, d, nv);
    (bent ? stats ? sum_bent : weigh_bent
     : masked && (all & whole) != whole ? stats ? sum_some : weigh_some
     : stats ? sum_full : weigh_full)(s, B, T, from, line, a + line, dv, nv);
  }
  flush(&B->S, nv, stats);
  if (from < z - a) product(B->ot, T->p + from * ROWS, val + from * dv, dv, z - a - from, nv);
}

RARE void granule_3(const Job *J, Block *B, const Shared *T, const float *k, const float *val,
                    int64_t a, int64_t z, int masked) {
  if (B->n > 2 * VL) granule(J, B, T, k, val, a, z, masked, 3);
  else if (B->n > VL) granule(J, B, T, k, val, a, z, masked, 2);
  else granule(J, B, T, k, val, a, z, masked, 1);
}

/* --- masks, biases -------------------------------------------------------------------------------- */

/* Whether the block sees none, some or all of keys a:z. */
static int state_of(const Job *J, const Block *B, int64_t a, int64_t z) {
  const int64_t step = J->keep_key;
  if (state_at(J, a) != MIXED) return state_at(J, a);
  uint8_t every = 1, some = 0;
  for (int64_t r = 0; r < B->n && every >= some; r++) {
    const uint8_t *row = J->keep + (B->i0 + r - J->i0) * J->keep_row + (a - J->j0) * step;
    if (step == 1)
      for (int64_t x = 0; x < z - a; x++) every &= row[x] != 0, some |= row[x] != 0;
    else
      for (int64_t x = 0; x < z - a; x++) every &= row[x * step] != 0, some |= row[x * step] != 0;
  }
  return every ? FULL : some ? MIXED : EMPTY;
}

/* Write which rows of the block see keys a:z; the lines up to a multiple of MR see nothing. */
static void look(const Job *J, const Block *B, const Shared *T, int64_t a, int64_t z, int state) {
  uint64_t *restrict see = T->see;
  const int64_t keys = z - a, step = J->keep_key;
  for (int64_t x = 0; x < keys; x++) see[x] = state == FULL ? (1ull << B->n) - 1 : 0;
  for (int64_t r = 0; state == MIXED && r < B->n; r++) {
    const uint8_t *row = J->keep + (B->i0 + r - J->i0) * J->keep_row + (a - J->j0) * step;
    if (step == 1)
      for (int64_t x = 0; x < keys; x++) see[x] |= (uint64_t)(row[x] != 0) << r;
    else
      for (int64_t x = 0; x < keys; x++) see[x] |= (uint64_t)(row[x * step] != 0) << r;
  }
  for (int64_t x = keys; x % MR; x++) see[x] = 0;
}

static void lay(const Job *J, const Block *B, const Shared *T, int64_t a, int64_t z) {
  for (int64_t r = 0; r < B->n; r++) {
    const float *row = J->bias + (B->i0 + r - J->i0) * J->bias_row + (a - J->j0) * J->bias_key;
    for (int64_t x = 0; x < z - a; x++) T->bias[x * ROWS + r] = row[x * J->bias_key];
  }
}

/* --- what float32 loses --------------------------------------------------------------------------- */

static double dot(const float *a, const float *b, int64_t d) {
  vd sum = {};
  int64_t x = 0;
  for (; x + VL <= d; x += VL) {
    vf left, right;
    memcpy(&left, a + x, sizeof left), memcpy(&right, b + x, sizeof right);
    sum += wide(left) * wide(right);
  }
  double total = 0;
  for (int y = 0; y < VL; y++) total += sum[y];
  for (; x < d; x++) total += (double)a[x] * b[x];
  return total;
}

/* Sum a row in double: all but its first key, and moments about that key's score. */
RARE void exact_row(const Job *J, int64_t n, int64_t i, int64_t j1, double *o, int64_t plane) {
  const float *q = J->q + (n * J->lq + i) * J->d, *k = J->k + n / J->group * J->lk * J->d;
  double base = 0, peak = 0, rest = 0, es = 0, e2 = 0, e3 = 0, s1 = 0, s2 = 0, count = 0;
  for (int64_t at = -1; at < J->j1 - J->j0; at++) {
    int64_t j = at < 0 ? j1 : J->j0 + at; /* the first key comes first */
    if (at >= 0 && (j == j1 || !sees(J, i, j))) continue;
    double s = J->scale * dot(q, k + j * J->d, J->d), z = s;
    if (J->cap > 0) z = J->cap * tanh(s / J->cap);
    if (J->bias) z += J->bias[(i - J->i0) * J->bias_row + (j - J->j0) * J->bias_key];
    count += 1;
    if (at < 0) {
      base = s, peak = z;
      continue;
    }
    double t = z - peak, e = exp(t), away = s - base;
    if (e > 0) rest += e, es += e * t, e2 += e * e, e3 += e * e * e;
    s1 += away, s2 += away * away;
  }
  o[REST * plane] = rest, o[ES * plane] = es, o[REST2 * plane] = e2, o[REST3 * plane] = e3;
  o[MEAN * plane] = base + s1 / count, o[M2 * plane] = fmax(0, s2 - s1 / count * s1);
}

/* --- blocks ----------------------------------------------------------------------------------------- */

static void open_block(const Job *J, Block *B, int64_t n, int64_t i0, int64_t rows) {
  const float *q = J->q + (n * J->lq + i0) * J->d;
  double unit = J->scale * (bends(J) ? 1 : LOG2E);
  B->i0 = i0, B->n = rows, B->centred = 0;
  for (int64_t x = 0; x < J->d; x += VL)
    for (int v = 0; v < NV; v++) {
      vf part[VL] = {};
      const int64_t width = J->d - x < VL ? J->d - x : VL;
      const float *from = q + v * VL * J->d + x;
      if (width == VL && (v + 1) * VL <= rows)
        for (int y = 0; y < VL; y++) memcpy(part + y, from + y * J->d, VL * 4);
      else
        for (int y = 0; y < VL && v * VL + y < rows; y++) memcpy(part + y, from + y * J->d, width * 4);
      transpose(part);
      for (int y = 0; y < width; y++)
        at_(B->qt, x + y, v) = __builtin_convertvector(wide(part[y]) * unit, vf);
    }
  memset(B->ot, 0, J->dv * ROWS * 4);
  memset(&B->S, 0, sizeof B->S);
  for (int v = 0; v < NV; v++) {
    B->S.m[v] = B->S.t1[v] = B->S.t2[v] = B->S.first[v] = dup(-INFINITY);
    B->S.low[v] = dup(bends(J) ? 0 : INFINITY);
    B->S.j1[v] = B->S.j2[v] = dupi(-1);
  }
}

/* Write the sums of row r, relative to its largest logit and in natural units. */
static void write_sums(const Job *J, const Block *B, int64_t n, int64_t r) {
  const State *S = &B->S;
  const int v = (int)(r / VL), y = (int)(r % VL), bent = bends(J);
  const double unit = bent ? 1 : LN2, none = -INFINITY;
  const int64_t at = n * J->lq + B->i0 + r, plane = J->all * J->lq;
  double *o = J->sums + at, m = S->m[v][y], t1 = S->t1[v][y], t2 = S->t2[v][y];
  const int64_t count = S->n[v][y];
  double e1 = S->E1[v][y], es = S->ES[v][y], e2 = S->E2[v][y], e3 = S->E3[v][y];
  if (t1 > m) { /* the anchor joins, the first key leaves */
    double step = (m - t1), f = exp(step * unit);
    es = f * (es + step * (e1 + 1)), e1 = f * (e1 + 1) - 1;
    e2 = f * f * (e2 + 1) - 1, e3 = f * f * f * (e3 + 1) - 1;
  }
  double mean = count ? S->S1[v][y] / count : 0, s2 = S->S2[v][y], m2 = s2 - count * mean * mean;
  double low = S->low[v][y], amax = bent || -low > t1 ? -low : t1;
  J->count[at] = count, J->top_j[2 * at] = S->j1[v][y], J->top_j[2 * at + 1] = S->j2[v][y];
  J->top_z[2 * at] = t1 * unit, J->top_z[2 * at + 1] = t2 * unit;
  o[M * plane] = t1 * unit, o[FIRST * plane] = S->first[v][y] * unit;
  o[REST * plane] = fmax(0, e1), o[ES * plane] = es * unit;
  o[REST2 * plane] = fmax(0, e2), o[REST3 * plane] = fmax(0, e3);
  o[AMAX * plane] = count ? amax * unit : 0;
  int alike = !bent && low == t1;
  if (alike) mean = low - S->centre[v][y], m2 = 0;
  o[MEAN * plane] = count ? (mean + S->centre[v][y]) * unit : 0;
  o[M2 * plane] = fmax(0, m2) * unit * unit;
  int far = t2 > none && (t1 - t2) * unit > FAR * LN2;
  int lost = !alike && !(m2 > 0.01 * s2 && s2 > count * 1e-24 && s2 < 1e34);
  if (count > 1 && t1 < INFINITY && (far || lost)) exact_row(J, n, B->i0 + r, S->j1[v][y], o, plane);
}

/* Write output, lse and sums; return how many rows are not finite. */
static int64_t close_block(const Job *J, Block *B, int64_t n) {
  const State *S = &B->S;
  const double unit = bends(J) ? 1 : LN2, sink = J->sink ? J->sink[n % J->heads] : -INFINITY;
  vf inverse[NV] = {};
  float *out = J->out + (n * J->lq + B->i0) * J->dv;
  vf odd[NV] = {};
  int64_t found = 0;
  for (int64_t r = 0; r < B->n; r++) {
    int v = (int)(r / VL), y = (int)(r % VL);
    double m = S->m[v][y] * unit, e1 = S->E1[v][y] + (J->sums && m > -INFINITY), lse = sink;
    inverse[v][y] = e1 != 0 ? (float)(1 / e1) : 0;
    if (e1 != 0 && sink == -INFINITY) lse = m + log(e1);
    else if (e1 != 0) { /* or NaN */
      double top = sink > m ? sink : m;
      lse = top + log(e1 * exp(m - top) + exp(sink - top));
      inverse[v][y] = (float)exp(m - lse);
    }
    J->lse[n * J->lq + B->i0 + r] = (float)lse;
    if (!(e1 < INFINITY && m < INFINITY)) odd[v][y] = NAN;
    if (J->sums && !(S->low[v][y] > -INFINITY)) odd[v][y] = NAN;
    if (J->sums) write_sums(J, B, n, r);
  }
  for (int64_t x = 0; x < J->dv; x++)
    for (int v = 0; v < NV; v++) odd[v] += at_(B->ot, x, v) * 0;
  for (int64_t r = 0; r < B->n; r++) found += odd[r / VL][r % VL] != 0;
  for (int64_t x = 0; x < J->dv; x += VL)
    for (int v = 0; v * VL < B->n; v++) {
      vf part[VL];
      const int64_t width = J->dv - x < VL ? J->dv - x : VL;
      for (int y = 0; y < VL; y++) part[y] = at_(B->ot, x + (y < width ? y : 0), v) * inverse[v];
      transpose(part);
      float *to = out + v * VL * J->dv + x;
      if (width == VL && (v + 1) * VL <= B->n)
        for (int y = 0; y < VL; y++) memcpy(to + y * J->dv, part + y, VL * 4);
      else
        for (int y = 0; y < VL && v * VL + y < B->n; y++) memcpy(to + y * J->dv, part + y, width * 4);
    }
  return found;
}

static int64_t bytes_of(int64_t d, int64_t dv) {
  int64_t nb = together(ROWS, d, dv);
  return LINE + nb * ((int64_t)sizeof(Block) + LINE + (d + dv) * ROWS * 4) +
         2 * (GRAIN + MR) * ROWS * 4 + MR * d * 4 + LINE + (GRAIN + MR) * 8;
}

INLINE void *carve(char **from, int64_t bytes) {
  void *found = *from;
  *from += (bytes + LINE - 1) / LINE * LINE;
  return found;
}

/* Some blocks of one head, rows i0:i1, walk over the keys together. */
static int64_t walk(const Job *J, Block *blocks, Shared *T, int64_t n, int64_t i0, int64_t i1) {
  const float *key = J->k + n / J->group * J->lk * J->d;
  const float *value = J->v + n / J->group * J->lk * J->dv;
  const int bent = bends(J);
  int64_t count = 0, odd = 0;
  for (int64_t i = i0; i < i1; i += ROWS)
    open_block(J, blocks + count++, n, i, i1 - i < ROWS ? i1 - i : ROWS);
  for (int64_t a = J->j0; a < J->j1; a += GRAIN) {
    const int64_t z = J->j1 - a < GRAIN ? J->j1 : a + GRAIN;
    if (state_at(J, a) == EMPTY) continue;
    const float *k = key + a * J->d, *val = value + a * J->dv;
    for (Block *B = blocks; B < blocks + count; B++) {
      const int state = state_of(J, B, a, z), masked = state == MIXED || bent || (z - a) % MR;
      if (state == EMPTY) continue;
      if (masked) look(J, B, T, a, z, state);
      if (J->bias) lay(J, B, T, a, z);
      granule_3(J, B, T, k, val, a, z, masked);
    }
  }
  for (Block *B = blocks; B < blocks + count; B++) odd += close_block(J, B, n);
  return odd;
}

static int64_t run(const Job *J) {
  const int64_t nb = together(ROWS, J->d, J->dv);
  char *from = J->scratch + (LINE - (uintptr_t)J->scratch % LINE) % LINE;
  Block *blocks = carve(&from, nb * (int64_t)sizeof(Block));
  Shared T = {.cap = (float)J->cap, .per_cap = J->cap > 0 ? (float)(1 / J->cap) : 0};
  T.p = carve(&from, (GRAIN + MR) * ROWS * 4);
  T.bias = carve(&from, (GRAIN + MR) * ROWS * 4);
  T.see = carve(&from, (GRAIN + MR) * 8);
  T.tail = carve(&from, MR * J->d * 4);
  if (!J->bias) T.bias = NULL;
  for (int64_t x = 0; x < nb; x++) {
    blocks[x].qt = carve(&from, J->d * ROWS * 4);
    blocks[x].ot = carve(&from, J->dv * ROWS * 4);
  }
  int64_t odd = 0;
  for (int64_t n = J->n0; n < J->n1; n++)
    for (int64_t i = J->i0; i < J->i1; i += nb * ROWS)
      odd += walk(J, blocks, &T, n, i, J->i1 - i < nb * ROWS ? J->i1 : i + nb * ROWS);
  return odd;
}

#define NAME_(x) #x
#define NAME(x) NAME_(x)
static const Build OWN(build) = {NAME(BUILD), run, bytes_of, ROWS};
#undef NAME
#undef NAME_
#undef EACH
#undef LEFT
#undef RIGHT
#undef SWAP
#undef FLUSH
#undef ROWS
#undef NV
#undef MR
#undef VL
#undef BUILD
#endif
