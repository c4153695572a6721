/* One build: for BUILD, in vectors of VL floats. */
#include "vectors.h"
#include "tiles.h"
#include "forward.h"
#include "backward.h"

#define NAME_(x) #x
#define NAME(x) NAME_(x)
static const Build OWN(build) = {NAME(BUILD), ROWS, run, bytes_of, run_back, bytes_back};

#undef NAME
#undef NAME_
#undef EACH
#undef LEFT
#undef RIGHT
#undef SWAP
#undef FLUSH
#undef KEYS
#undef WIDTH
#undef ROWS
#undef NV
#undef MR
#undef VL
#undef BUILD
