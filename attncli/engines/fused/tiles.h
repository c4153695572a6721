/* What both passes do with tiles of MR keys × NV vectors of rows. Included once for each build. */
#define Shared OWN(Shared)
#define carve OWN(carve)
#define bytes_shared OWN(bytes_shared)
#define share OWN(share)
#define whole_tile OWN(whole_tile)
#define scores OWN(scores)
#define product OWN(product)
#define any_byte OWN(any_byte)
#define block_state OWN(block_state)
#define survey OWN(survey)
#define look OWN(look)
#define lay OWN(lay)
#define lift OWN(lift)
#define lower OWN(lower)

/* What the blocks of a thread share for a granule. */
typedef struct {
  float *p, *bias, *tail;  /* weights and biases (GRAIN + MR, ROWS); keys (MR, d) past the last */
  uint64_t *see;           /* of each key, a bit for each row */
  float cap, per_cap;
} Shared;

INLINE void *carve(char **from, int64_t bytes) {
  void *found = *from;
  *from += (bytes + LINE - 1) / LINE * LINE;
  return found;
}

INLINE int64_t bytes_shared(int64_t d) {
  return 5 * LINE + 2 * (GRAIN + MR) * ROWS * 4 + (GRAIN + MR) * 8 + MR * d * 4;
}

/* Take it from scratch, whose rest begins at a line of the cache. d: of the widest of keys. */
static Shared share(const Job *J, char **from, int64_t d) {
  *from += (LINE - (uintptr_t)*from % LINE) % LINE;
  Shared T = {.cap = (float)J->cap, .per_cap = J->cap > 0 ? (float)(1 / J->cap) : 0};
  T.p = carve(from, (GRAIN + MR) * ROWS * 4);
  T.bias = carve(from, (GRAIN + MR) * ROWS * 4);
  T.see = carve(from, (GRAIN + MR) * 8);
  T.tail = carve(from, MR * d * 4);
  if (!J->bias) T.bias = NULL;
  return T;
}

/* Return MR keys (or values) from j on: these, or where there are fewer, a copy and zeros. */
INLINE const float *whole_tile(const Job *J, const Shared *T, const float *keys, int64_t j,
                               int64_t d) {
  if (j + MR <= J->lk) return keys;
  memset(T->tail, 0, MR * d * 4);
  memcpy(T->tail, keys, (J->lk - j) * d * 4);
  return T->tail;
}

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

/* Whether rows i0:i0 + n see none, some or all of keys a:z. */
static int block_state(const Job *J, int64_t i0, int64_t n, int64_t a, int64_t z) {
  const int64_t step = J->keep_key;
  if (state_at(J, a) != MIXED) return state_at(J, a);
  uint8_t every = 1, some = 0;
  for (int64_t r = 0; r < n && every >= some; r++) {
    const uint8_t *row = J->keep + (i0 + r - J->i0) * J->keep_row + (a - J->j0) * step;
    if (step == 1)
      for (int64_t x = 0; x < z - a; x++) every &= row[x] != 0, some |= row[x] != 0;
    else
      for (int64_t x = 0; x < z - a; x++) every &= row[x * step] != 0, some |= row[x * step] != 0;
  }
  return every ? FULL : some ? MIXED : EMPTY;
}

INLINE int any_byte(vb x) {
  uint64_t part[VL / 2], found = 0;
  memcpy(part, &x, sizeof part);
  for (int y = 0; y < VL / 2; y++) found |= part[y];
  return found != 0;
}

/* Write the states of AHEAD granules from key a on, or of those that there are. Cells that lie side
 * by side are read row by row, whole lines of memory, which is what this waits for. */
static void survey(const Job *J, int64_t i0, int64_t n, int64_t a, int8_t *states) {
  vb some[AHEAD], gaps[AHEAD];
  const int plain = J->keep && !J->states && J->keep_key == 1;
  const int64_t left = J->j1 - a, whole = plain ? left / GRAIN < AHEAD ? left / GRAIN : AHEAD : 0;
  memset(some, 0, whole * sizeof *some), memset(gaps, 0, whole * sizeof *gaps);
  for (int64_t r = 0; r < n && whole; r++) {
    const uint8_t *row = J->keep + (i0 + r - J->i0) * J->keep_row + a - J->j0;
    for (int64_t g = 0; g < whole; g++)
      UNROLL for (int x = 0; x < GRAIN; x += VL * 4) {
        const vb cells = *(const vb *)(row + g * GRAIN + x);
        some[g] |= cells, gaps[g] |= (vb)(cells == 0);
      }
  }
  for (int64_t g = 0; g < AHEAD && g * GRAIN < left; g++) {
    const int64_t j = a + g * GRAIN, z = J->j1 - j < GRAIN ? J->j1 : j + GRAIN;
    if (g >= whole) states[g] = (int8_t)block_state(J, i0, n, j, z);
    else states[g] = !any_byte(some[g]) ? EMPTY : any_byte(gaps[g]) ? MIXED : FULL;
  }
}

/* Write which of the n rows from i0 on see keys a:z; the lines up to a multiple of MR see nothing. */
static void look(const Job *J, const Shared *T, int64_t i0, int64_t n, int64_t a, int64_t z,
                 int state) {
  uint64_t *restrict see = T->see;
  const int64_t keys = z - a, step = J->keep_key;
  for (int64_t x = 0; x < keys; x++) see[x] = state == FULL ? (1ull << n) - 1 : 0;
  for (int64_t r = 0; state == MIXED && r < n; r++) {
    const uint8_t *row = J->keep + (i0 + r - J->i0) * J->keep_row + (a - J->j0) * step;
    if (step == 1)
      for (int64_t x = 0; x < keys; x++) see[x] |= (uint64_t)(row[x] != 0) << r;
    else
      for (int64_t x = 0; x < keys; x++) see[x] |= (uint64_t)(row[x * step] != 0) << r;
  }
  for (int64_t x = keys; x % MR; x++) see[x] = 0;
}

/* Lay their biases into lanes. */
static void lay(const Job *J, const Shared *T, int64_t i0, int64_t n, int64_t a, int64_t z) {
  for (int64_t r = 0; r < n; r++) {
    const float *row = J->bias + (i0 + r - J->i0) * J->bias_row + (a - J->j0) * J->bias_key;
    for (int64_t x = 0; x < z - a; x++) T->bias[x * ROWS + r] = row[x * J->bias_key];
  }
}

/* Put n rows (n, d) into lanes, times unit: (d, ROWS). Lanes without a row are 0. */
static void lift(float *to, const float *rows, int64_t n, int64_t d, double unit) {
  for (int64_t x = 0; x < d; x += VL)
    for (int v = 0; v < NV; v++) {
      vf part[VL] = {};
      const int64_t width = d - x < VL ? d - x : VL;
      const float *from = rows + v * VL * d + x;
      if (width == VL && (v + 1) * VL <= n)
        for (int y = 0; y < VL; y++) memcpy(part + y, from + y * d, VL * 4);
      else
        for (int y = 0; y < VL && v * VL + y < n; y++) memcpy(part + y, from + y * d, width * 4);
      transpose(part);
      for (int y = 0; y < width; y++)
        at_(to, x + y, v) = __builtin_convertvector(wide(part[y]) * unit, vf);
    }
}

/* Write n rows (n, d) from lanes (d, ROWS), each times a factor of its own. */
static void lower(float *rows, const float *from, int64_t n, int64_t d, const vf factor[NV]) {
  for (int64_t x = 0; x < d; x += VL)
    for (int v = 0; v * VL < n; v++) {
      vf part[VL];
      const int64_t width = d - x < VL ? d - x : VL;
      for (int y = 0; y < VL; y++) part[y] = at_(from, x + (y < width ? y : 0), v) * factor[v];
      transpose(part);
      float *to = rows + v * VL * d + x;
      if (width == VL && (v + 1) * VL <= n)
        for (int y = 0; y < VL; y++) memcpy(to + y * d, part + y, VL * 4);
      else
        for (int y = 0; y < VL && v * VL + y < n; y++) memcpy(to + y * d, part + y, width * 4);
    }
}
