/* Gradients of some query rows by some keys (formulas: attncli/attention/gradients.py). Scores are
 * made again, tile by tile, and become weights by what the forward pass knows of each row. Included
 * once for each build.
 */
#define Slopes OWN(Slopes)
#define slopes OWN(slopes)
#define slopes_full OWN(slopes_full)
#define slopes_some OWN(slopes_some)
#define slopes_bent OWN(slopes_bent)
#define outer_tile OWN(outer_tile)
#define outer OWN(outer)
#define sum_weights OWN(sum_weights)
#define sum_mass OWN(sum_mass)
#define granule_back OWN(granule_back)
#define granule_back_3 OWN(granule_back_3)
#define open_slopes OWN(open_slopes)
#define close_slopes OWN(close_slopes)
#define walk_back OWN(walk_back)
#define bytes_back OWN(bytes_back)
#define run_back OWN(run_back)

/* Rows of a block: n of them from i0 on. The weight of a logit z is exp(z − shift) · factor. */
typedef struct {
  vf shift[NV], factor[NV], delta[NV];
  vf square[NV]; /* Σ dS² of this granule, and of those before */
  vd squares[NV];
  int64_t i0, n;
  int8_t states[AHEAD];
  float *qt, *gt, *dqt; /* (d, ROWS) scaled, dO (dv, ROWS), Σ dS·K (d, ROWS) */
  float *q;             /* (n, d), times the scale */
  const float *g;       /* dO (n, dv) */
  vf place[NV];  /* the position of a row that counts in sums of weights, else NaN */
  vd distance[NV];
  vi tiny[NV];
  vf *mass;      /* (GRAIN + MR): Σ p of the keys of a granule, by lanes; blocks share it */
  double *along; /* (lq + lk − 1): Σ p of each diagonal of a head, that of the last row first */
} Slopes;

/* Turn scores s and dP, of lines `line`…, into weights P and dS = P∘(dP − δ)∘slope of the softcap. */
INLINE void slopes(vf s[NV][MR], vf dp[NV][MR], Slopes *B, const Shared *T, float *ds, int64_t line,
                   int nv, const int mixed, const int bent) {
  float *p = T->p;
  for (int v = 0; v < nv; v++) {
    vf shift = B->shift[v], factor = B->factor[v], delta = B->delta[v], square = {};
    UNROLL for (int u = 0; u < MR; u++) {
      vf z = s[v][u], slope = dup(1);
      vm sees = lanes(mixed ? T->see[line + u] >> v * VL : ~0ull);
      if (bent && T->cap > 0) {
        vf part = tanh_of(z * dup(T->per_cap));
        z = dup(T->cap) * part, slope -= part * part;
      }
      if (bent && T->bias) z += at_(T->bias, line + u, v);
      vf t = scaled(z - shift, bent);
      vf e = exp2_of(mixed ? top_of(dup(-300), t) : t) * factor;
      if (mixed) e = sel(sees, e, dup(0));
      vf w = e * (dp[v][u] - delta);
      if (bent) w *= slope;
      if (mixed) w = sel(sees, w, dup(0));
      at_(p, line + u, v) = e, at_(ds, line + u, v) = w;
      square += w * w;
    }
    B->square[v] += square;
  }
}

#define SLOPES(name, mixed, bent)                                                                 \
  RARE void name(vf s[NV][MR], vf dp[NV][MR], Slopes *B, const Shared *T, float *ds, int64_t line, \
                 int nv) {                                                                         \
    slopes(s, dp, B, T, ds, line, nv, mixed, bent);                                                \
  }
SLOPES(slopes_full, 0, 0)
SLOPES(slopes_some, 1, 0)
SLOPES(slopes_bent, 1, 1)
#undef SLOPES

#define KEYS 4           /* of a tile of `outer` */
#define WIDTH (VL == 16 ? 4 : 2) /* its vectors of channels */

/* Add KEYS lines of weights times channels of rows (n, width) to `count` lines of to (…, width).
 * `some`: how many channels there are, if not WIDTH whole vectors. */
INLINE void outer_tile(float *to, const float *w, const float *rows, int64_t n, int64_t width,
                       int64_t count, const int64_t some) {
  const int64_t bytes = some ? some * 4 : WIDTH * VL * 4;
  vf acc[KEYS][WIDTH];
  for (int u = 0; u < KEYS; u++)
    for (int y = 0; y < WIDTH; y++) acc[u][y] = (vf){};
  for (int64_t r = 0; r < n; r++, rows += width, w++) {
    vf row[WIDTH];
    if (some) {
      memset(row, 0, sizeof row);
      memcpy(row, rows, bytes);
    } else {
      UNROLL for (int y = 0; y < WIDTH; y++) row[y] = *(const vl *)(rows + y * VL);
    }
    UNROLL for (int u = 0; u < KEYS; u++) {
      vf weight = dup(w[u * ROWS]);
      UNROLL for (int y = 0; y < WIDTH; y++) acc[u][y] += weight * row[y];
    }
  }
  for (int u = 0; u < KEYS && u < count; u++, to += width) {
    if (some) {
      vf sum[WIDTH];
      memcpy(sum, to, bytes);
      for (int y = 0; y < WIDTH; y++) sum[y] += acc[u][y];
      memcpy(to, sum, bytes);
    } else {
      UNROLL for (int y = 0; y < WIDTH; y++) *(vl *)(to + y * VL) += acc[u][y];
    }
  }
}

/* Add weights (keys, ROWS) times rows (n, width) to to (keys, width): lanes are channels here. */
static void outer(float *to, const float *weights, const float *rows, int64_t n, int64_t keys,
                  int64_t width) {
  for (int64_t j = 0; j < keys; j += KEYS) {
    const float *w = weights + j * ROWS;
    float *line = to + j * width;
    int64_t x = 0;
    for (; x + WIDTH * VL <= width; x += WIDTH * VL)
      outer_tile(line + x, w, rows + x, n, width, keys - j, 0);
    if (x < width) outer_tile(line + x, w, rows + x, n, width, keys - j, width - x);
  }
}

/* Sum the weights of keys a + from…, `count` lines of T->p, by key, by diagonal and by distance, and
 * count those below TINY. What lies on a diagonal moves on by a lane with each key, and leaves at
 * the last lane. */
INLINE void sum_weights(const Job *J, Slopes *B, const Shared *T, int64_t a, int64_t from,
                        int64_t count, int masked, const int nv) {
  const int last = nv * VL - 1;
  float left[GRAIN + MR + ROWS];
  vf along[NV + 1] = {}, away[NV], far[NV] = {};
  vi tiny[NV] = {};
  vm there[NV];
  for (int v = 0; v < nv; v++) {
    there[v] = same(B->place[v], B->place[v]);
    away[v] = sel(there[v], B->place[v] - dup((float)(a + from)), dup(0));
  }
  for (int64_t line = from; line < from + count; line++) {
    vf sum = {};
    for (int v = nv; v--;) {
      vm sees = there[v];
      if (masked) sees &= lanes(T->see[line] >> v * VL);
      vf p = sel(sees, at_(T->p, line, v), dup(0));
      tiny[v] += sel_i(sees & over(dup(TINY), p), dupi(1), dupi(0));
      far[v] += p * top_of(away[v], -away[v]), away[v] -= 1, sum += p;
      along[v + 1] = p + next_lanes(along[v], along[v + 1]); /* along[0] stays 0 */
    }
    B->mass[line] += sum, left[line - from] = along[nv][VL - 1];
  }
  for (int r = last; r--;) left[count + last - 1 - r] = along[r / VL + 1][r % VL];
  const int64_t first = a + from - (B->i0 + last) + J->lq - 1; /* lanes past the rows: 0 */
  for (int64_t x = first < 0 ? -first : 0; x < count + last; x++) B->along[first + x] += left[x];
  for (int v = 0; v < nv; v++) B->distance[v] += wide(far[v]), B->tiny[v] += tiny[v];
}

/* Add the mass of a granule's keys, and begin anew. */
static void sum_mass(double *received, vf *mass, int64_t keys) {
  for (int64_t x = 0; x < keys; x++) {
    const vd sum = wide(mass[x]);
    for (int y = 0; y < VL; y++) received[x] += sum[y];
    mass[x] = (vf){};
  }
}

/* Keys a:z, a granule or less, against one block; k, val, dk, dv begin at key a. */
INLINE void granule_back(const Job *J, Slopes *B, const Shared *T, float *ds, const float *k,
                         const float *val, float *dk, float *dval, int64_t a, int64_t z, int masked,
                         const int nv) {
  const int64_t d = J->d, dv = J->dv;
  const uint64_t whole = (1ull << B->n) - 1;
  int64_t from = 0, keys = z - a;
  for (int64_t line = 0; line < keys + MR; line += MR) {
    uint64_t all = ~0ull, some = ~0ull;
    if (masked && line < keys) {
      some = 0;
      for (int u = 0; u < MR; u++) all &= T->see[line + u], some |= T->see[line + u];
    }
    if (line >= keys || !some) { /* what waits for its products gets them */
      const int64_t count = (line < keys ? line : keys) - from;
      if (count > 0) {
        const float *p = T->p + from * ROWS, *w = ds + from * ROWS;
        if (J->place) sum_weights(J, B, T, a, from, count, masked, nv);
        if (J->dq) product(B->dqt, w, k + from * d, d, count, nv);
        if (J->dk) outer(dk + from * d, w, B->q, B->n, count, d);
        if (J->dval) outer(dval + from * dv, p, B->g, B->n, count, dv);
      }
      from = line + MR;
      continue;
    }
    vf s[NV][MR], dp[NV][MR];
    scores(s, B->qt, whole_tile(J, T, k + line * d, a + line, d), d, nv);
    scores(dp, B->gt, whole_tile(J, T, val + line * dv, a + line, dv), dv, nv);
    (bends(J) ? slopes_bent : masked && (all & whole) != whole ? slopes_some : slopes_full)(
        s, dp, B, T, ds, line, nv);
  }
  for (int v = 0; v < nv; v++) B->squares[v] += wide(B->square[v]), B->square[v] = (vf){};
}

RARE void granule_back_3(const Job *J, Slopes *B, const Shared *T, float *ds, const float *k,
                         const float *val, float *dk, float *dval, int64_t a, int64_t z,
                         int masked) {
  if (B->n > 2 * VL) granule_back(J, B, T, ds, k, val, dk, dval, a, z, masked, 3);
  else if (B->n > VL) granule_back(J, B, T, ds, k, val, dk, dval, a, z, masked, 2);
  else granule_back(J, B, T, ds, k, val, dk, dval, a, z, masked, 1);
}

static void open_slopes(const Job *J, Slopes *B, int64_t n, int64_t i0, int64_t rows) {
  const int64_t at = n * J->lq + i0, d = J->d;
  const float *q = J->q + at * d;
  B->i0 = i0, B->n = rows, B->g = J->grad + at * J->dv;
  lift(B->qt, q, rows, d, J->scale * (bends(J) ? 1 : LOG2E));
  lift(B->gt, B->g, rows, J->dv, 1);
  for (int64_t x = 0; x < rows * d; x++) B->q[x] = (float)(q[x] * J->scale);
  memset(B->dqt, 0, d * ROWS * 4);
  if (J->place) B->along = J->along + n * (J->lq + J->lk - 1);
  for (int v = 0; v < NV; v++) {
    B->shift[v] = B->factor[v] = B->delta[v] = B->square[v] = (vf){};
    B->squares[v] = B->distance[v] = (vd){};
    B->place[v] = dup(NAN), B->tiny[v] = dupi(0);
  }
  for (int64_t r = 0; r < rows; r++) {
    int v = (int)(r / VL), y = (int)(r % VL);
    B->shift[v][y] = J->shift[at + r], B->factor[v][y] = J->factor[at + r];
    B->delta[v][y] = J->delta[at + r];
    if (J->place) B->place[v][y] = J->place[at + r];
  }
}

static void close_slopes(const Job *J, const Slopes *B, int64_t n) {
  const int64_t at = n * J->lq + B->i0, plane = J->all * J->lq;
  vf factor[NV];
  for (int v = 0; v < NV; v++) factor[v] = dup((float)J->scale);
  if (J->dq) lower(J->dq + at * J->d, B->dqt, B->n, J->d, factor);
  for (int64_t r = 0; r < B->n; r++) J->squares[at + r] = B->squares[r / VL][r % VL];
  for (int64_t r = 0; J->place && r < B->n; r++) {
    J->distance[at + r] = B->distance[r / VL][r % VL];
    J->distance[plane + at + r] = B->tiny[r / VL][r % VL];
  }
}

static void walk_back(const Job *J, Slopes *blocks, const Shared *T, float *ds, int64_t n, int64_t i0,
                      int64_t i1) {
  const int64_t kv = n / J->group * J->lk;
  int64_t count = 0;
  for (int64_t i = i0; i < i1; i += ROWS)
    open_slopes(J, blocks + count++, n, i, i1 - i < ROWS ? i1 - i : ROWS);
  for (int64_t a = J->j0; a < J->j1; a += GRAIN) {
    const int64_t z = J->j1 - a < GRAIN ? J->j1 : a + GRAIN, d = J->d, dv = J->dv, at = kv + a;
    const int64_t nth = (a - J->j0) / GRAIN % AHEAD;
    if (!nth)
      for (Slopes *B = blocks; B < blocks + count; B++) survey(J, B->i0, B->n, a, B->states);
    if (state_at(J, a) == EMPTY) continue;
    for (Slopes *B = blocks; B < blocks + count; B++) {
      const int state = B->states[nth];
      const int masked = state == MIXED || bends(J) || (z - a) % MR;
      if (state == EMPTY) continue;
      if (masked) look(J, T, B->i0, B->n, a, z, state);
      if (J->bias) lay(J, T, B->i0, B->n, a, z);
      granule_back_3(J, B, T, ds, J->k + at * d, J->v + at * dv, J->dk ? J->dk + at * d : NULL,
                     J->dval ? J->dval + at * dv : NULL, a, z, masked);
    }
    if (J->place) sum_mass(J->received + n * J->lk + a, blocks->mass, z - a);
  }
  for (Slopes *B = blocks; B < blocks + count; B++) close_slopes(J, B, n);
}

static int64_t bytes_back(int64_t d, int64_t dv) {
  int64_t nb = together(ROWS, 3 * d, dv);
  return bytes_shared(d > dv ? d : dv) + (GRAIN + MR) * (ROWS + VL) * 4 + LINE +
         nb * ((int64_t)sizeof(Slopes) + 5 * LINE + (3 * d + dv) * ROWS * 4);
}

static int64_t run_back(const Job *J) {
  const int64_t nb = together(ROWS, 3 * J->d, J->dv);
  char *from = J->scratch;
  Shared T = share(J, &from, J->d > J->dv ? J->d : J->dv);
  float *ds = carve(&from, (GRAIN + MR) * ROWS * 4);
  vf *mass = carve(&from, (GRAIN + MR) * (int64_t)sizeof(vf));
  memset(mass, 0, (GRAIN + MR) * sizeof(vf));
  Slopes *blocks = carve(&from, nb * (int64_t)sizeof(Slopes));
  for (int64_t x = 0; x < nb; x++) {
    blocks[x].mass = mass;
    blocks[x].qt = carve(&from, J->d * ROWS * 4);
    blocks[x].gt = carve(&from, J->dv * ROWS * 4);
    blocks[x].dqt = carve(&from, J->d * ROWS * 4);
    blocks[x].q = carve(&from, J->d * ROWS * 4);
  }
  for (int64_t n = J->n0; n < J->n1; n++)
    for (int64_t i = J->i0; i < J->i1; i += nb * ROWS)
      walk_back(J, blocks, &T, ds, n, i, J->i1 - i < nb * ROWS ? J->i1 : i + nb * ROWS);
  return 0;
}
